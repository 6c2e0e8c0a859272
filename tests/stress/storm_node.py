"""A node of the coordinator storm, in a process of its own: ``python -m tests.stress.storm_node OPTIONS`` (JSON).

It runs a job whose output says what each sample held. SIGUSR1 has it write all its threads' stacks to stderr.
"""

from __future__ import annotations

import faulthandler
import json
import logging
import signal
import sys
import time
from pathlib import Path

import penstock

SLOW_S = 2.0  # a batch takes so long, longer than a lease's ttl, while the file ``slow`` is there


def main(options: str) -> None:
    faulthandler.register(signal.SIGUSR1)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(message)s")
    asked = json.loads(options)
    slow = Path(asked["slow"])

    def work(batch):
        time.sleep(SLOW_S if slow.exists() else asked["batch_s"])
        return [[int(sample), bytes(data).decode()] for sample, data in zip(batch.sample_ids, batch, strict=True)]

    with penstock.DistributedDataLoader(**asked["loader"]) as loader:
        output = penstock.run_job(loader, work, out=asked["out"])
        print(json.dumps({"written": output.written, "lost": loader.stats()["leases_lost_total"]}))


if __name__ == "__main__":
    main(sys.argv[1])
