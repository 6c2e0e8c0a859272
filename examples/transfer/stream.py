"""A stream of batches from one process into another's memory, where the slower one sets the pace.

    python examples/transfer/stream.py train       # in one terminal
    python examples/transfer/stream.py load        # in another one, before or after

The trainer has room for eight batches. The loader waits while all of them are taken; the trainer computes on each where
it lies, and gives its room back. Kill either with ``kill -9``: the other one says so and ends.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

import handed_over
import numpy as np

from penstock.errors import PeerLost, PenstockError
from penstock.transfer import Agent, channel

BATCH = (64, 3, 64, 64)
SLOTS = 8
WAIT_S = 60.0


def train(folder: Path) -> None:
    """Take batches until there are no more."""
    with Agent("train", timeout_s=WAIT_S) as agent:
        batch_bytes = int(np.prod(BATCH)) * 4
        with channel.Receiver(agent, slots=SLOTS, slot_bytes=batch_bytes) as receiver:
            handed_over.put(folder / "offer", receiver.offer())
            total, started = 0.0, None
            for message in receiver:
                if started is None:
                    started = time.monotonic()
                    print(f"batches of {BATCH} come from {receiver.peer_name}", flush=True)
                with message:
                    batch = message.array(np.float32).reshape(BATCH)  # in the ring: no copy was made
                    total += float(batch.mean())
                    del batch  # the room is free when nobody looks at it any more
                count = message.sequence + 1
    seconds = time.monotonic() - started
    print(
        f"{count} batches of {batch_bytes >> 20} MiB, {count * batch_bytes / seconds / 1e9:.1f} GB/s, sum {total:.0f}"
    )


def load(folder: Path, batches: int) -> None:
    """Make batches in the room from which they are sent."""
    with (
        Agent("load", timeout_s=WAIT_S) as agent,
        channel.Sender(agent, handed_over.get(folder / "offer")) as sender,
    ):
        for number in range(batches):
            slot = sender.reserve()  # waits for a slot of the trainer's that is free
            np.asarray(slot.data).view(np.float32)[:] = number
            slot.send()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("role", choices=["train", "load"])
    parser.add_argument(
        "--folder", type=Path, default=Path(tempfile.gettempdir()), help="where the two find each other"
    )
    parser.add_argument("--batches", type=int, default=200)
    arguments = parser.parse_args()
    try:
        if arguments.role == "train":
            train(arguments.folder)
        else:
            load(arguments.folder, arguments.batches)
    except PeerLost as error:
        sys.exit(f"the other one is gone: {error}")
    except (PenstockError, TimeoutError) as error:  # as when it found what a run that was killed had left behind
        sys.exit(f"{error}; start both again")
