"""The plot: memory over time against the cap."""

from __future__ import annotations

from pathlib import Path

import matplotlib
from watch import Watch

from penstock.sizes import format_bytes

MIB = 1 << 20


def draw(watch: Watch, cap_bytes: int, dataset_bytes: int, target: Path) -> Path:
    """Draw what was in flight against the cap, and the process's growth below it; returns ``target``."""
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (upper, lower) = pyplot.subplots(2, 1, sharex=True, figsize=(9, 6), height_ratios=(2, 1))
    upper.fill_between(watch.times_s, [count / MIB for count in watch.inflight_bytes], step="post", color="#4a90c2")
    upper.axhline(cap_bytes / MIB, color="#c0392b", label=f"cap: {format_bytes(cap_bytes)}")
    upper.set_ylim(0, 1.15 * cap_bytes / MIB)
    upper.set_ylabel("payload in flight, MiB")
    upper.legend(loc="lower right")
    upper.set_title(f"{format_bytes(dataset_bytes)} through a cap of {format_bytes(cap_bytes)}")
    growth = [(count - watch.baseline_rss_bytes) / MIB for count in watch.rss_bytes]
    lower.plot(watch.times_s, growth, color="#555555")
    lower.axhline(cap_bytes / MIB, color="#c0392b", linestyle=":")
    lower.set_ylabel("growth of the\nprocess (RSS), MiB")
    lower.set_xlabel("seconds of training")
    figure.tight_layout()
    target.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(target, dpi=110)
    pyplot.close(figure)
    return target
