"""A coordinator inside of this process, on a thread: for jobs whose first node leads them, and for trying out."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final

from penstock import config
from penstock.coordinator.access import Access
from penstock.coordinator.blocks import BlockPlan, too_few_to_shuffle
from penstock.coordinator.server import CoordinatorServer, Settings
from penstock.coordinator.state import Job, Terms
from penstock.coordinator.token import read_checkpoint
from penstock.dataset.manifest_store import ManifestStore
from penstock.dataset.resolve import resolve
from penstock.errors import DeadlineExceeded
from penstock.store import open_store

__all__ = ["coordinator"]

_log = logging.getLogger("penstock.coordinator")

_START_S: Final = 60.0
_STOP_S: Final = 30.0
_LOOK_S: Final = 0.01


@contextmanager
def coordinator(
    dataset_link: str,
    *,
    world_size: int = 1,
    addr: str = "127.0.0.1:0",
    job_id: str = "",
    journal: str = "memory:",
    shuffle: bool = False,
    seed: int = 0,
    epoch: int = 0,
    epochs: int = 1,
    block_samples: int = 65536,
    terms: Terms | None = None,
    token: str = "",
    manifest_store_root: str | None = None,
    resume: Mapping[str, Any] | None = None,
) -> Iterator[str]:
    """Lead a job for the time of a ``with`` block; its value is the ``coord_url`` for the nodes.

    ``penstock coordinator`` does the same in a process of its own, which outlives any node; see there for the options.

    Args:
        dataset_link: what is to be shared out.
        world_size: nodes that share it.
        addr: host:port to listen on; port 0 = any free one. Beyond loopback there must be a ``token``.
        job_id: what nodes call the job; empty = whatever the first one does.
        journal: where it is kept: ``memory:``, ``file:/path``, ``etcd://host:port``.
        shuffle: deal blocks in random order.
        seed: of that order.
        epoch: the first.
        epochs: how many.
        block_samples: most in a lease.
        terms: how long things may take.
        token: secret that nodes must give.
        manifest_store_root: where manifests are kept.
        resume: what ``state_dict()`` of an earlier job's loader returned.

    Raises:
        ConfigError: it can't be led so, or the port is in use.
        ResumeError: the checkpoint is of something else.
        ResolveError, ManifestError, StoreError: the link can't be resolved.
    """
    found = resolve(dataset_link, manifest_store_root=manifest_store_root)
    job = Job(
        manifest_hash=found.hash,
        samples=found.manifest.row_count,
        block_samples=block_samples,
        shuffle=shuffle,
        seed=seed,
        epoch=epoch,
        epochs=epochs,
        world_size=world_size,
    )
    if few := too_few_to_shuffle(BlockPlan(job.samples, block_samples, shuffle, seed, epoch), "block_samples"):
        _log.warning("%s", few)
    root = manifest_store_root or config.default_manifest_store_root().value or ""
    leader = _Leader(
        Settings(addr=addr, job_id=job_id, journal=journal, access=Access(token=token)),
        job,
        terms or Terms(),
        manifests=ManifestStore(open_store(root)),
        dataset_base=found.base,
        checkpoint=None if resume is None else read_checkpoint(resume, job),
    )
    try:
        leader.start()
        yield f"http://{leader.addr}"
    finally:
        leader.stop()


class _Leader:
    """A coordinator's event loop, on a thread."""

    def __init__(self, *given: Any, **options: Any) -> None:
        self._given = given
        self._options = options
        self._ready = threading.Event()
        self._failure: BaseException | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._server: CoordinatorServer | None = None
        self._thread = threading.Thread(target=self._run, name="penstock-coordinator", daemon=True)
        self.addr = ""

    def start(self) -> None:
        """Until it leads; ``stop`` ends it, also after an error, or Ctrl-C."""
        self._thread.start()
        if not self._ready.wait(_START_S):
            raise DeadlineExceeded(f"the coordinator doesn't lead after {_START_S:g} s: somebody else has its journal")
        if self._failure is not None:
            raise self._failure

    def stop(self) -> None:
        if self._loop is not None and self._server is not None and self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._server.stop)
        self._thread.join(_STOP_S)

    def _run(self) -> None:
        try:
            asyncio.run(self._serve())
        except BaseException as error:
            self._failure = error
            if self._ready.is_set():  # whoever began it has gone on
                _log.error("the coordinator in this process ended: %s", error)
        finally:
            self._ready.set()

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._server = CoordinatorServer(*self._given, **self._options)
        self.addr = self._server.addr
        running = asyncio.ensure_future(self._server.run(grace_s=1.0))
        while not running.done() and not self._server.seat.leads:
            await asyncio.sleep(_LOOK_S)
        if self._server.seat.leads:
            self._ready.set()  # else it ended already, and why is what comes next
        await running
