"""A job's numbers for Prometheus. Pure, but for the package prometheus-client, which nothing else here needs.

No series is of one node: ten thousand nodes would be too many, and each can serve its own (``penstock.metrics``).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final, get_args

from penstock.coordinator.snapshot import Snapshot
from penstock.coordinator.state import Phase
from penstock.observe.prometheus import load_prometheus

__all__ = ["metrics_text"]

_GAUGES: Final = {
    "samples": "Samples of an epoch",
    "done": "Samples of the running epoch that are done",
    "leased": "Samples that nodes have leases on, and haven't done",
    "queued": "Samples that nobody has yet",
    "left_of_all_epochs": "Samples that aren't done, of all epochs",
    "samples_per_s": "Samples that were done a second, lately",
    "epoch": "The running epoch",
    "fence": "The last one that was given out",
    "world_size": "Nodes that share the job",
    "given_back": "Ranges that were begun and given back, which go first",
}
_COUNTERS: Final = {
    "done_of_all_epochs": ("done_samples", "Samples that are done, over all epochs"),
    "granted": ("leases_granted", "Leases that were granted"),
}
_OF_NODES: Final = {
    "samples_per_s": "What nodes say that they deliver",
    "bytes_per_s": "What nodes say that they deliver",
    "inflight_bytes": "Charged on all nodes, as they say",
    "max_inflight_bytes": "The sum of their caps",
}


def metrics_text(snapshot: Snapshot, events: Mapping[str, int]) -> tuple[str, bytes]:
    """The text that Prometheus reads, and its content type.

    Args:
        snapshot: of the job.
        events: how often each proof event was told.

    Raises:
        PenstockError: prometheus-client isn't installed.
    """
    prometheus = load_prometheus("where the coordinator runs")
    registry = prometheus.CollectorRegistry()
    registry.register(_Families(prometheus.core, snapshot, events))
    return str(prometheus.CONTENT_TYPE_LATEST), bytes(prometheus.generate_latest(registry))


class _Families:
    def __init__(self, core: Any, snapshot: Snapshot, events: Mapping[str, int]) -> None:
        self._core = core
        self._snapshot = snapshot
        self._events = events

    def collect(self) -> Iterator[Any]:
        """For a registry."""
        core, snapshot = self._core, self._snapshot
        leads = snapshot["phase"] != "following"
        yield core.GaugeMetricFamily("penstock_job_leads", "Whether this coordinator leads the job", value=int(leads))
        told = core.CounterMetricFamily("penstock_job_events_total", "Proof events by name", labels=["event"])
        for event, count in sorted(self._events.items()):
            told.add_metric([event], count)
        yield told
        if leads:
            yield from self._of_job()
            yield from self._of_nodes()

    def _of_job(self) -> Iterator[Any]:
        core, snapshot = self._core, self._snapshot
        for key, meaning in _GAUGES.items():
            yield core.GaugeMetricFamily(f"penstock_job_{key}", meaning, value=snapshot[key])
        for key, (name, meaning) in _COUNTERS.items():
            yield core.CounterMetricFamily(f"penstock_job_{name}_total", meaning, value=snapshot[key])
        leases = snapshot["leases"]["count"]
        yield core.GaugeMetricFamily("penstock_job_leases", "Leases that are live", value=leases)
        phases = core.GaugeMetricFamily("penstock_job_phase", "1 for the phase that the job is in", labels=["phase"])
        for phase in get_args(Phase):
            phases.add_metric([phase], int(phase == snapshot["phase"]))
        yield phases

    def _of_nodes(self) -> Iterator[Any]:
        core, nodes = self._core, self._snapshot["nodes"]
        family = core.GaugeMetricFamily(
            "penstock_job_nodes", "Nodes that registered, by how they are", labels=["status"]
        )
        for status in ("live", "silent", "gone"):
            family.add_metric([status], nodes[status])
        yield family
        for key, meaning in _OF_NODES.items():
            yield core.GaugeMetricFamily(f"penstock_job_nodes_{key}", meaning, value=nodes[key])
