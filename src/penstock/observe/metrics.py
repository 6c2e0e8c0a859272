"""Metrics of this process's loaders for Prometheus, on request.

``penstock.metrics.serve()`` or ``PENSTOCK_METRICS_PORT`` serves them; a program that has an endpoint of its own
registers ``LoaderCollector()`` there. Needs the package prometheus-client, which nothing else imports.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from typing import Any, Final

from penstock import config
from penstock.errors import ConfigError
from penstock.observe.live import totals
from penstock.observe.prometheus import load_prometheus
from penstock.observe.stages import STAGES

__all__ = ["LoaderCollector", "MetricsServer", "serve", "serve_as_configured", "stop"]

_log = logging.getLogger("penstock")

_ADVICE: Final = "to serve metrics, or unset PENSTOCK_METRICS_PORT"
_COUNTERS: Final = {
    "delivered_batches_total": "Batches that next() returned",
    "delivered_samples_total": "Samples in them",
    "delivered_bytes_total": "Payload bytes of them, as they lie in storage",
    "faulty_samples_total": "Samples that were to be in those batches and were faulty",
    "replaced_samples_total": "Faulty samples with another one in their place",
    "skipped_samples_total": "Faulty samples without",
    "tune_decisions_total": "Changes that tuning made",
}
_GAUGES: Final = {
    "inflight_bytes": "Charged now: read ahead, queued, and held by the consumer",
    "max_inflight_bytes": "The cap on that",
    "ram_high_water_bytes": "The most that was charged at once",
    "arena_resident_bytes": "Pages of the budget that are in memory",
    "prefetch_batches": "Batches that may be built at once",
    "max_queue_batches": "Finished batches that may wait",
    "decode_threads": "Threads that decode",
}


class LoaderCollector:
    """Gives Prometheus the numbers of all loaders of this process, added up by dataset.

    Counters go on growing when a loader is closed and the next epoch's takes its place.
    """

    def collect(self) -> Iterator[Any]:
        """The metrics now."""
        core = load_prometheus(_ADVICE).core
        found = totals()
        for key, meaning in _COUNTERS.items():
            family = core.CounterMetricFamily(f"penstock_{key}", meaning, labels=["dataset"])
            for total in found:
                family.add_metric([total.dataset], total.counters.get(key, 0))
            yield family
        family = core.CounterMetricFamily(
            "penstock_stage_seconds_total",
            "Seconds that batches were in a stage, over all threads",
            labels=["dataset", "stage"],
        )
        for total in found:
            for stage in STAGES:
                family.add_metric([total.dataset, stage], total.counters.get(f"{stage}_s", 0))
        yield family
        for key, meaning in _GAUGES.items():
            family = core.GaugeMetricFamily(f"penstock_{key}", meaning, labels=["dataset"])
            for total in found:
                family.add_metric([total.dataset], total.gauges.get(key, 0))
            yield family
        family = core.GaugeMetricFamily("penstock_loaders", "Loaders that are open", labels=["dataset"])
        for total in found:
            family.add_metric([total.dataset], total.loaders)
        yield family


class MetricsServer:
    """An endpoint that answers until it is closed, or until the process ends.

    Attributes:
        port: that it listens on.
    """

    def __init__(self, server: Any, thread: threading.Thread) -> None:
        self.port = int(server.server_port)
        self._server = server
        self._thread = thread

    def close(self) -> None:
        """Stop answering. Safe twice."""
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def __enter__(self) -> MetricsServer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def serve(port: int = 9464, host: str = "127.0.0.1") -> MetricsServer:
    """Serve this process's loaders, and what prometheus-client knows of the process, as ``/metrics``.

    Args:
        port: to listen on; 0 takes a free one.
        host: the address to listen on. The endpoint has no access control, so leave it at loopback unless the network
            is your own.

    Raises:
        PenstockError: prometheus-client isn't installed; the message names it.
        ConfigError: the address can't be listened on.
    """
    prometheus = load_prometheus(_ADVICE)
    registry = prometheus.CollectorRegistry()
    registry.register(LoaderCollector())
    prometheus.ProcessCollector(registry=registry)
    try:
        server, thread = prometheus.start_http_server(port, addr=host, registry=registry)
    except (OSError, OverflowError) as error:
        raise ConfigError(f"metrics can't be served on {host}:{port}: {error}; choose another port") from error
    thread.name = "penstock-metrics"  # not a thread of the user's: see Pipeline
    return MetricsServer(server, thread)


_starting = threading.RLock()
_started: MetricsServer | None = None


def serve_as_configured() -> None:
    """Serve on ``PENSTOCK_METRICS_PORT``, once in this process, where it is set.

    A port that is taken is a warning: it may be the next rank on the same machine, whose training should not end here.

    Raises:
        PenstockError: prometheus-client isn't installed.
        ConfigError: the variable isn't a port.
    """
    global _started  # noqa: PLW0603 - one endpoint for all loaders of the process
    port = config.positive_int("METRICS_PORT", 0)
    if not port:
        return
    with _starting:
        if _started is not None:
            return
        try:
            _started = serve(port)
        except ConfigError as error:
            _log.warning("%s (PENSTOCK_METRICS_PORT)", error)


def stop() -> None:
    """Close the endpoint that ``PENSTOCK_METRICS_PORT`` opened, if there is one."""
    global _started
    with _starting:
        server, _started = _started, None
    if server is not None:
        server.close()
