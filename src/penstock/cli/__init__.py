"""The command line: ``penstock pack | resolve | inspect | verify | doctor``.

One module for each command: its arguments, and how its result looks. What a command computes stands apart:
``summary`` for inspect, ``audit`` for verify, ``facts`` for doctor. ``output`` is the terminal, ``main`` the
entry.

A result goes to stdout, as text or with ``--json`` as one JSON document; progress and errors go to stderr.
Exit codes: 0 done, 1 failed, 2 wrong usage, 130 interrupted.
"""
