"""One node of a shared job in a process of its own: prints a JSON line for each batch that it was given.

``python shared_node.py URL NODE_ID STORE_ROOT [name=value ...]``: arguments of the loader; ``hold=n`` keeps the n-th
batch in hand for ever, ``pause_ms=n`` takes so long for each.
"""

from __future__ import annotations

import json
import sys
import threading
import time

import penstock


def say(**fields: object) -> None:
    print(json.dumps(fields), flush=True)


def main() -> None:
    url, node_id, root, *rest = sys.argv[1:]
    given = {name: json.loads(value) for name, _, value in (each.partition("=") for each in rest)}
    hold, pause_ms = given.pop("hold", 0), given.pop("pause_ms", 0)
    with penstock.DistributedDataLoader(
        coord_url=url,
        job_id="job",
        node_id=node_id,
        manifest_store_root=root,
        **{"batch_size_samples": 16, "progress_interval_ms": 20} | given,
    ) as loader:
        say(event="joined", rank=loader.assigned_rank, world=loader.world_size)
        for number, batch in enumerate(loader, start=1):
            say(event="batch", ids=batch.sample_ids, length=len(batch.payload))
            if number == hold:
                say(event="holding")
                threading.Event().wait()
            time.sleep(pause_ms / 1000)
        say(event="done", state=loader.state_dict())


if __name__ == "__main__":
    try:
        main()
    except penstock.PenstockError as error:
        say(event="failed", kind=type(error).__name__, text=str(error))
        sys.exit(3)
