"""The tables: each item with all contestants, and the goals."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import median

import _common as common

from .goals import OURS, USER, Figures, goals

_PACKAGES = ("numpy", "nixl-cu12", "libucx-cu12", "mooncake-transfer-engine", "pyzmq", "torch")
_COLUMNS = ["", "p50 us (low-high)", "p99 us", "GB/s", "x penstock", "x penstock, user memory"]
_WORTH_SAYING = 0.1

Outcomes = Mapping[str, Sequence[common.Outcome]]


def show(
    same_host: Outcomes,
    network: Outcomes,
    no_network: str,
    *,
    loads: tuple[float, float],
    command: Sequence[str],
    keep: Path | None,
) -> None:
    """Print everything, and keep the whole data."""
    facts = common.environment(*_PACKAGES) | {"load": f"{loads[0]:.1f} before, {loads[1]:.1f} after"}
    facts |= {"transparent huge pages": _chosen("enabled"), "of shared memory": _chosen("shmem_enabled")}
    print(f"`{shlex.join(command)}`: {common.environment_line(facts)}")
    _show_items("On one host", same_host)
    _show_items("TCP between two network namespaces", network, no_network)
    figures, apart = figures_of(same_host), figures_of(network)
    rows = []
    for goal in goals():
        wanted, found, verdict = goal.judge(apart if goal.against == "ucx_perftest" else figures)
        row = goal.item if goal.ours == OURS else f"{goal.item} ({goal.ours})"
        rows.append([row, wanted, found, verdict])
    print(f"\n## Goals\n\n{common.table(['item', 'wanted', 'median (low-high)', ''], rows)}")
    document = {
        "environment": facts,
        "command": list(command),
        "one_host": same_host,
        "network": network,
        "goals": rows,
    }
    print(f"\nThe whole data: {common.write_report('transfers', document)}")
    if keep is not None:
        keep.write_text(json.dumps(document, indent=1, default=asdict) + "\n")


def figures_of(outcomes: Outcomes) -> Figures:
    """Each contestant's figures, by item, one a round."""
    figures: Figures = {}
    for name, rounds in outcomes.items():
        items = figures.setdefault(name, {})
        for outcome in rounds:
            for item, found in (outcome.result or {"items": {}})["items"].items():
                value = found.get("p50_us", found.get("cpu_share"))
                if value is not None:
                    items.setdefault(item, []).append(value)
    return figures


def _show_items(title: str, outcomes: Outcomes, reason: str = "") -> None:
    print(f"\n## {title}")
    if reason:
        print(f"\nNot measured: {reason}")
    figures = figures_of(outcomes)
    items = dict.fromkeys(item for found in figures.values() for item in found)
    for item in items:
        rows = [_row(name, item, figures, outcomes) for name, found in figures.items() if item in found]
        print(f"\n{common.table([item, *_COLUMNS[1:]], rows)}")
    print()
    for name, rounds in outcomes.items():
        transport = next((outcome.result["transport"] for outcome in rounds if outcome.result), "")
        if transport:
            print(f"- {name}: {transport}")
        others = [outcome.result["other_cores"] for outcome in rounds if (outcome.result or {}).get("items")]
        if others and max(others) >= _WORTH_SAYING:
            print(f"- {name}: other work took {common.Spread.of(others).show('{:.2f}')} cores meanwhile")
        failed = [outcome for outcome in rounds if outcome.result is None]
        if failed:
            print(f"- {name}: {len(failed)} of {len(rounds)} rounds failed: {failed[0].reason}")
        for item, why in _skipped(rounds).items():
            print(f"- {name}, {item}: {why}")


def _row(name: str, item: str, figures: Figures, outcomes: Outcomes) -> list[str]:
    values = figures[name][item]
    found = [outcome.result["items"][item] for outcome in outcomes[name] if outcome.result]
    p99 = [one["p99_us"] for one in found if "p99_us" in one]
    nbytes = found[0].get("bytes", 0)
    rate = f"{nbytes / median(values) / 1e3:.2f}" if nbytes >= 4096 else ""
    against = [_ratio(values, figures.get(ours, {}).get(item, [])) for ours in (OURS, USER)]
    return [name, common.Spread.of(values).show("{:,.2f}"), f"{median(p99):,.2f}" if p99 else "", rate, *against]


def _ratio(theirs: list[float], ours: list[float]) -> str:
    ratios = [their / our for their, our in zip(theirs, ours, strict=False) if our]
    return f"{median(ratios):.2f}" if ratios else ""


def _skipped(rounds: Sequence[common.Outcome]) -> dict[str, str]:
    result = next((outcome.result for outcome in rounds if outcome.result), None)
    items = result["items"] if result else {}
    return {item: found["skipped"] for item, found in items.items() if "skipped" in found}


def _chosen(name: str) -> str:
    text = Path("/sys/kernel/mm/transparent_hugepage", name).read_text()
    return text.partition("[")[2].partition("]")[0]
