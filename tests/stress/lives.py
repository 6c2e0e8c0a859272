"""One epoch in many lives: ranks that are killed at random and go on as other ranks, until the epoch is over.

    python lives.py LINK STORE LIVES SEED

Prints JSON: how many lives there were, and every sample id that a rank took together with the state that counts it.
This process never makes a loader itself, so that forking it is clean.
"""

from __future__ import annotations

import json
import os
import random
import select
import signal
import sys
from typing import Any

import penstock

WAIT_S = 60


def live(link: str, how: dict[str, Any], out: int, go: int) -> None:
    """A rank: takes a batch for each token, and says what it took, with the state that counts it, in one line."""
    with penstock.load(link, **how) as loader:
        os.write(out, (json.dumps({"ids": [], "state": loader.state_dict()}) + "\n").encode())
        while os.read(go, 1):
            batch = next(loader, None)
            if batch is None:
                return
            os.write(out, (json.dumps({"ids": batch.sample_ids, "state": loader.state_dict()}) + "\n").encode())


class Rank:
    """A child process and its two pipes."""

    def __init__(self, link: str, how: dict[str, Any]) -> None:
        self.lines: list[bytes] = []
        self._rest = b""
        self.read, out = os.pipe()
        go, self._go = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            os.close(self._go)
            os.close(self.read)
            try:
                live(link, how, out, go)
            finally:
                os._exit(0)
        os.close(out)
        os.close(go)

    def allow(self, batches: int) -> None:
        os.write(self._go, b"." * batches)

    def end(self) -> None:
        """Kill it, and read what it had said."""
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)
        while self.hear():
            pass
        os.close(self.read)
        os.close(self._go)

    def hear(self) -> bool:
        """Read what there is; False at the end."""
        data = os.read(self.read, 1 << 16)
        *lines, self._rest = (self._rest + data).split(b"\n")  # a torn line was never said
        self.lines += lines
        return bool(data)


def hear_until(ranks: list[Rank], lines: int) -> None:
    """Wait until all ranks live, and together have said so much, or until they end."""
    open_ends = {rank.read: rank for rank in ranks}
    while open_ends and (sum(len(rank.lines) for rank in ranks) < lines or not all(rank.lines for rank in ranks)):
        ready, _, _ = select.select(list(open_ends), [], [], WAIT_S)
        if not ready:
            raise SystemExit("a rank says nothing")
        for end in ready:
            if not open_ends[end].hear():
                del open_ends[end]


def main() -> None:
    link, store, most_lives, seed = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
    chance = random.Random(seed)
    common = {"manifest_store_root": store, "shuffle": True, "seed": 4, "epoch": 2}
    state, taken, life = None, [], 0
    while True:
        world, batch = chance.randint(1, 3), chance.randint(2, 40)
        last = life == most_lives
        split = {"world_size": world, "batch_size": batch, "prefetch": chance.randint(0, 3), "resume": state}
        ranks = [Rank(link, {**common, **split, "rank": rank}) for rank in range(world)]
        for rank in ranks:
            rank.allow(60_000 if last else chance.randint(1, 6))
        hear_until(ranks, 1 << 60 if last else world + chance.randint(1, world))
        for rank in ranks:
            rank.end()
        said = [[json.loads(line) for line in rank.lines] for rank in ranks]
        taken += [sample for rank in said for each in rank for sample in each["ids"]]
        if last:
            print(json.dumps({"lives": life, "in_the_last": sum(map(len, said)), "taken": taken}))
            return
        state = penstock.merge_states([rank[-1]["state"] for rank in said])
        life += 1


if __name__ == "__main__":
    main()
