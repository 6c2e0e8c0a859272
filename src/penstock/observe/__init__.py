"""Seeing a loader at work: seconds by stage, a trace of an epoch, a live view, metrics.

``stages`` adds up where time goes, ``trace`` writes it down batch by batch, ``rates`` turns two readings into speeds,
``live`` shows a running loader to ``penstock top``, and ``metrics`` shows it to Prometheus.
"""
