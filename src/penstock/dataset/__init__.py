"""Datasets: from a link to a manifest that never changes.

``links`` parses what a user writes, ``resolve`` turns it into a manifest: pinned by hash, as its pointer says, or
by indexing (``index``, ``dev_manifest``), one process at a time (``intent_lock``, ``lock_owner``).
``manifest_store`` keeps manifests, pointers and locks on any store; ``manifest_text`` writes the canonical form,
``manifest`` is the columns over a mapped file that ``manifest_cache`` makes; ``labels`` knows classes, and ``spool``
sorts what doesn't fit into memory.
"""
