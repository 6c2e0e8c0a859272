"""Two processes: one has a cache of pages, the other writes into it and reads back what it wrote.

    python examples/transfer/pages.py decode       # in one terminal
    python examples/transfer/pages.py prefill      # in another one, before or after

The owner of the cache does nothing while bytes move; a notification, which comes after them, says which pages are
there.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import handed_over
import numpy as np

from penstock.errors import PenstockError
from penstock.transfer import Agent, Descriptors

PAGE_BYTES = 64 << 10
PAGES = 256
WRITTEN = [200, 3, 77]
WAIT_S = 60.0


def decode(folder: Path) -> None:
    """Own the cache, and use the pages that come."""
    with Agent("decode", timeout_s=WAIT_S) as agent:
        cache = np.asarray(agent.allocate(PAGES * PAGE_BYTES)).view(np.uint8).reshape(PAGES, PAGE_BYTES)
        registration = agent.register(list(cache))  # one registration, with a descriptor for each page
        handed_over.put(folder / "descriptors", registration.descriptors.to_bytes())
        handed_over.put(folder / "metadata", agent.metadata())

        (arrived,) = agent.wait_notification()
        pages = [int(word) for word in arrived.message.split()]
        print(f"{arrived.sender} wrote pages {pages}, which begin with {[int(cache[page, 0]) for page in pages]}")
        assert np.flatnonzero(cache.any(axis=1)).tolist() == sorted(pages), "other pages are as they were"
        agent.notify(agent.add_peer(handed_over.get(folder / "prefill")), b"thank you")


def prefill(folder: Path) -> None:
    """Write some pages, and tell which."""
    with Agent("prefill", timeout_s=WAIT_S) as agent:
        peer = agent.add_peer(handed_over.get(folder / "metadata"))
        descriptors = Descriptors.from_bytes(handed_over.get(folder / "descriptors"))
        handed_over.put(folder / "prefill", agent.metadata())

        ours = np.empty((len(WRITTEN), PAGE_BYTES), np.uint8)
        ours[:] = np.array(WRITTEN, np.uint8)[:, None]
        with agent.register(ours):
            local, remote = agent.prepare(list(ours)), peer.prepare(descriptors)  # checked once, used twice
            which = {"remote_indices": WRITTEN}
            agent.write(local, remote, notify=" ".join(map(str, WRITTEN)).encode(), **which).wait()
            ours[:] = 0
            transfer = agent.read(local, remote, **which)
            transfer.wait()
            print(f"read back over {transfer.transport}: {ours[:, 0].tolist()}")
        agent.wait_notification()  # until then the other side may need us


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("role", choices=["decode", "prefill"])
    parser.add_argument(
        "--folder", type=Path, default=Path(tempfile.gettempdir()), help="where the two find each other"
    )
    arguments = parser.parse_args()
    try:
        {"decode": decode, "prefill": prefill}[arguments.role](arguments.folder)
    except (PenstockError, TimeoutError) as error:  # as when it found what a run that was killed had left behind
        sys.exit(f"{error}; start both again")
