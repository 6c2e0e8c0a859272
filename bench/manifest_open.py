"""Opening a large manifest: the first time, when its columns are made, and later, when they are only mapped.

    python bench/manifest_open.py [--rows 10000000] [--repeat 5] [--folder DIR]

Prints one JSON object for each kind of text, and keeps them in out/bench/manifest_open.json: ``packed`` (shards,
byte ranges, checksums), ``labelled`` (the same with labels) and ``unpacked`` (a location for each sample). Every
opening happens in a process of its own, which has imported all that it needs before its memory is measured:
``added_rss_bytes`` is what the opening adds for as long as the manifest is kept, ``peak_added_rss_bytes`` the most
that it added meanwhile, mapped files included.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

import _common as common
from penstock.dataset.manifest import Manifest, ManifestWriter

STEP = 100_000
_TIMEOUT_S = 900.0


def write_text(path: Path, kind: str, rows: int) -> str:
    with open(path, "wb") as file:
        writer = ManifestWriter(file)
        for start in range(0, rows, STEP):
            ids = np.arange(start, min(start + STEP, rows))
            if kind == "unpacked":
                writer.add([f"class-{i % 1000:03d}/image-{i:08d}.jpeg" for i in ids.tolist()])
                continue
            lengths = 4096 + ids * 7919 % 96_000
            offsets = 512 + np.cumsum(lengths + 1024) - lengths
            hints = [f"mx8:vision:imagefolder;label_id={i % 1000}" for i in ids.tolist()]
            writer.add(
                f"shards/shard-{start // STEP:05d}.tar",
                offsets,
                lengths,
                hints if kind == "labelled" else "",
                ids * 2654435761 % 2**32,
            )
        return writer.finish()


def memory(field: str) -> int:
    status = Path("/proc/self/status").read_text()
    found = re.search(rf"^{field}:\s+(\d+) kB", status, re.MULTILINE)
    assert found is not None, field
    return int(found[1]) * 1024


def open_once(path: Path, manifest_hash: str) -> dict[str, float]:
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    before = memory("VmRSS")
    started, cpu_started = time.perf_counter(), time.process_time()
    manifest = Manifest.open(path, expected_hash=manifest_hash)
    seconds, cpu_seconds = time.perf_counter() - started, time.process_time() - cpu_started
    added = memory("VmRSS") - before
    assert len(manifest) > 0
    return {"seconds": seconds, "cpu_seconds": cpu_seconds, "added": added, "peak": memory("VmHWM") - before}


def open_in_child(path: Path, manifest_hash: str) -> dict[str, float]:
    command = [sys.executable, __file__, "--open", str(path), manifest_hash]
    outcome = common.run_child(command, timeout_s=_TIMEOUT_S)
    if outcome.result is None:
        raise SystemExit(outcome.reason)
    return outcome.result


def measure(kind: str, rows: int, repeat: int, folder: Path) -> dict[str, object]:
    path = folder / kind
    manifest_hash = write_text(path, kind, rows)
    first = open_in_child(path, manifest_hash)
    later = [open_in_child(path, manifest_hash) for _ in range(repeat)]
    seconds = [run["seconds"] for run in later]
    result = {
        "kind": kind,
        "rows": rows,
        "text_bytes": path.stat().st_size,
        "first_use_s": round(first["seconds"], 3),
        "first_use_peak_added_rss_bytes": first["peak"],
        "open_s_median": round(statistics.median(seconds), 3),
        "open_s_min": round(min(seconds), 3),
        "open_s_max": round(max(seconds), 3),
        "open_cpu_s_median": round(statistics.median(run["cpu_seconds"] for run in later), 3),
        "added_rss_bytes": max(run["added"] for run in later),
        "peak_added_rss_bytes": max(run["peak"] for run in later),
    }
    path.unlink()
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--folder", help="where the texts and the cache go; about 4 GB for 10 million rows")
    parser.add_argument("--quick", action="store_true", help="100,000 rows, opened once")
    parser.add_argument("--open", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.open:
        print(json.dumps(open_once(Path(arguments.open[0]), arguments.open[1])))
        return
    rows, repeat = (100_000, 1) if arguments.quick else (arguments.rows, arguments.repeat)
    facts = common.environment("numpy", "pyarrow")
    print(common.environment_line(facts))
    results = []
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        os.environ["PENSTOCK_CACHE_DIR"] = f"{name}/cache"
        for kind in ("packed", "labelled", "unpacked"):
            results.append(measure(kind, rows, repeat, Path(name)))
            print(json.dumps(results[-1]), flush=True)
    common.write_report("manifest_open", {"environment": facts, "results": results})


if __name__ == "__main__":
    main()
