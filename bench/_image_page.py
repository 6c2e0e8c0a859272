"""The page of bench/images.py: tables and plots, from its JSON alone.

python bench/_image_page.py     makes out/bench/images.md again
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from _common import OUT, environment_line, table
from _image_work import TASKS

_COLOURS = {"ours": "#1f77b4", "peer": "#9aa5b1", "floor": "#d95f02"}
_HEADERS = ["images/s", "x fastest peer", "x floor", "first batch s", "CPU s/1,000", "MB, fast", "MB, slow consumer"]


def tables(document: dict[str, Any]) -> str:
    """All figures, as Markdown."""
    parts = [
        f"{document['dataset']['images']:,} photographs of {document['dataset']['mean_bytes'] / 1e3:.0f} KB, "
        f"median (lowest-highest) of {document['rounds']}: `{document['command']}`"
    ]
    for task, report in document["reports"].items():
        parts += [f"### {TASKS[task][0].upper()}{TASKS[task][1:]}", _task_table(document, report)]
        reasons = [f"- {_title(document, name)}: {entry['reason']}" for name, entry in report.items() if _lost(entry)]
        parts += ["Not run:\n" + "\n".join(reasons)] if reasons else []
    return "\n\n".join([*parts, _scaling_table(document)])


def write_page(document: dict[str, Any], stem: str = "images") -> Path:
    """out/bench/<stem>.md, and its plots where matplotlib is installed."""
    parts = ["# Images", tables(document), environment_line(document["environment"])]
    parts += [f"![{name}]({name})" for name in _plots(document, stem)]
    path = OUT / f"{stem}.md"
    path.write_text("\n\n".join(parts) + "\n")
    return path


def _lost(entry: dict[str, Any]) -> bool:
    return "reason" in entry


def _title(document: dict[str, Any], name: str) -> str:
    return str(document["readers"][name]["title"])


def _kind(document: dict[str, Any], name: str) -> str:
    return str(document["readers"][name]["kind"])


def _rate(entry: dict[str, Any]) -> float:
    return _median(entry, "images_per_s")


def _median(entry: dict[str, Any], measured: str) -> float:
    """0 where it wasn't measured."""
    return float(entry[measured]["median"]) if measured in entry else 0.0


def _task_table(document: dict[str, Any], report: dict[str, Any]) -> str:
    ran = {name: entry for name, entry in report.items() if not _lost(entry)}
    peer = max((_rate(entry) for name, entry in ran.items() if _kind(document, name) == "peer"), default=None)
    floor = next((_rate(entry) for name, entry in _floors(document)), None)
    rows = []
    for name, entry in sorted(ran.items(), key=lambda item: -_rate(item[1])):
        is_floor = _kind(document, name) == "floor"
        rows.append(
            [
                _title(document, name),
                _spread(entry.get("images_per_s")),
                _times(_rate(entry), peer),
                _times(_rate(entry), floor),
                "-" if is_floor else f"{_median(entry, 'first_batch_s'):.3f}",
                f"{_median(entry, 'cpu_s_per_1000'):.2f}",
                *("-" if is_floor else _megabytes(entry, mode) for mode in ("fast consumer", "slow consumer")),
            ]
        )
    return table(["", *_HEADERS], rows)


def _spread(rate: dict[str, float] | None) -> str:
    return f"{rate['median']:,.0f} ({rate['low']:,.0f}-{rate['high']:,.0f})" if rate else "-"


def _floors(document: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    entries = [item for report in document["reports"].values() for item in report.items()]
    return [(name, entry) for name, entry in entries if _kind(document, name) == "floor" and not _lost(entry)]


def _megabytes(entry: dict[str, Any], mode: str) -> str:
    grown = entry.get(f"{mode} grown bytes")
    return "-" if grown is None else f"{grown / 1e6:,.0f}"


def _times(value: float, other: float | None) -> str:
    return f"{value / other:.2f}" if other else "-"


def _scaling_table(document: dict[str, Any]) -> str:
    found = document["scaling"]
    rows = []
    for name in dict.fromkeys(key.rsplit(" ", 1)[0] for key in found):
        one, two = found.get(f"{name} 1"), found.get(f"{name} 2")
        if not one or not two:
            continue
        slow, fast = _rate(one), _rate(two)
        share = "-" if _kind(document, name) == "floor" else f"{two['python_share']['median']:.1%}"
        rows.append([_title(document, name), f"{slow:,.0f}", f"{fast:,.0f}", f"{fast / slow:.2f}", share])
    headers = ["", "images/s, 1 thread", "2 threads", "ratio", "CPU in Python's threads"]
    return "### One thread and two\n\n" + table(headers, rows) if rows else ""


def _plots(document: dict[str, Any], stem: str) -> list[str]:
    try:
        import matplotlib as mpl
    except ImportError:
        return []
    mpl.use("Agg")
    from matplotlib import pyplot

    made = []
    for task, report in document["reports"].items():
        ran = {name: entry for name, entry in report.items() if not _lost(entry)}
        if not ran:
            continue
        figure, axes = pyplot.subplots(1, 4, figsize=(15, 0.6 + 0.36 * len(ran)), layout="constrained", sharey=True)
        names = sorted(ran, key=lambda name: _rate(ran[name]))
        for axis, (title, values) in zip(axes, _panels(ran, names), strict=True):
            axis.barh(range(len(names)), values, color=[_COLOURS[_kind(document, name)] for name in names])
            axis.set_title(title, fontsize=10)
            axis.spines[["top", "right"]].set_visible(False)
        axes[0].set_yticks(range(len(names)), [_title(document, name) for name in names])
        figure.suptitle(TASKS[task], fontsize=11)
        figure.savefig(OUT / f"{stem}-{task}.png", dpi=110)
        pyplot.close(figure)
        made.append(f"{stem}-{task}.png")
    return made


def _panels(ran: dict[str, Any], names: list[str]) -> list[tuple[str, list[float]]]:
    entries = [ran[name] for name in names]
    return [
        ("images/s", [_rate(entry) for entry in entries]),
        ("first batch, s", [_median(entry, "first_batch_s") for entry in entries]),
        ("peak memory above imports, MB", [entry.get("fast consumer grown bytes", 0) / 1e6 for entry in entries]),
        ("CPU s per 1,000 images", [_median(entry, "cpu_s_per_1000") for entry in entries]),
    ]


if __name__ == "__main__":
    print(write_page(json.loads((OUT / "images.json").read_text())))
    sys.exit(0)
