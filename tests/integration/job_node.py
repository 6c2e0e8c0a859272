"""One node of a job with output, as a process of its own.

    python job_node.py COORDINATOR NODE STORE OUT [DIE_AT]

With ``DIE_AT`` it kills itself after it wrote that part, from 1, and before it says so.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from typing import Any

import penstock


class Mortal(penstock.DistributedDataLoader):
    """Dies between writing a part and counting it."""

    die_at = 0

    def done(self) -> None:
        self.die_at -= 1
        if self.die_at == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        super().done()


def work(batch: penstock.Batch) -> list[Any]:
    return [[sample_id, bytes(sample).decode()] for sample_id, sample in zip(batch.sample_ids, batch, strict=True)]


def main() -> None:
    coordinator, node, root, out, *rest = sys.argv[1:]
    with Mortal(
        coord_url=coordinator,
        job_id="job",
        node_id=node,
        manifest_store_root=root,
        batch_size_samples=7,
        max_inflight_bytes=1 << 20,
        progress_interval_ms=50,
        want=2,
    ) as loader:
        loader.die_at = int(rest[0]) if rest else 0
        output = penstock.run_job(loader, work, out=out)
    print(json.dumps({"written": output.written, "parts": len(output.parts)}))


if __name__ == "__main__":
    main()
