"""A program that loads one epoch inside a cgroup; run by test_cap.py as a process of its own.

It warms up what every epoch needs, then tightens the group's limit to what it uses now + cap + overhead, so that a
single byte too many means the OOM killer. What it prints is JSON.
"""

from __future__ import annotations

import gc
import json
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
from tests.cgroup import unreclaimable_bytes

import penstock
from penstock import vision
from penstock.errors import BudgetHeld


def consume_bytes(loader, how: str) -> tuple[int, int]:
    samples = payload = 0
    kept = []
    for number, batch in enumerate(loader):
        samples += len(batch)
        payload += int(batch.array()[:: 1 << 12].size and batch.payload_bytes)
        if how == "slow":
            time.sleep(0.002)
        elif how == "bursty" and number % 16 == 0:
            time.sleep(0.05)
        elif how == "keep":
            kept.append(batch)
    return samples, payload


def consume_images(loader, how: str) -> tuple[int, int]:
    samples = payload = 0
    for images, _ in loader:
        samples += len(images)
        payload += images.numel() * images.element_size()
        if how == "slow":
            time.sleep(0.02)
    return samples, payload


def one_mebibyte(sample):
    return np.full(1 << 20, len(sample) % 256, dtype=np.uint8)


def consume_results(loader, how: str) -> tuple[int, int]:
    samples = payload = 0
    for results in loader:
        samples += len(results)
        payload += results.nbytes
        if how == "slow":
            time.sleep(0.01)
    return samples, payload


def main() -> None:
    options = json.loads(sys.argv[1])
    how, cap, overhead = options["how"], options["cap_bytes"], options["overhead_bytes"]
    arguments = options["arguments"]
    if options.get("images"):
        open_loader, consume = vision.ImageFolderLoader, consume_images
    elif options.get("transform"):
        open_loader, consume = partial(penstock.load, transform=one_mebibyte), consume_results
    else:
        open_loader, consume = penstock.load, consume_bytes
    with open_loader(options["warm_link"], max_inflight_bytes=cap, **arguments) as loader:
        consume(loader, "fast")
    gc.collect()
    baseline = unreclaimable_bytes(Path(options["stat_file"]))
    Path(options["limit_file"]).write_text(str(baseline + cap + overhead))

    outcome: dict[str, object] = {"baseline": baseline}
    loader = open_loader(options["link"], max_inflight_bytes=cap, **arguments)
    try:
        outcome["samples"], outcome["payload"] = consume(loader, how)
    except BudgetHeld as error:
        outcome["held"] = str(error)
    stats = loader.stats()
    outcome["high_water"] = stats["ram_high_water_bytes"]
    loader.close()
    print(json.dumps(outcome))


if __name__ == "__main__":
    main()
