"""Which epoch each loop over a dataset is of, for the training process and its DataLoader's workers alike.

torch tells a dataset nothing when a loop begins: each worker just iterates its copy. What they must agree on therefore
stands in a book that they share: a piece of anonymous memory, under a lock that the kernel lets go of when its holder
dies. The rules are pure functions of a page; the book only reads, asks them, and writes.
"""

from __future__ import annotations

import fcntl
import json
import multiprocessing.context
import os
import time
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from multiprocessing.reduction import DupFd
from typing import Any, Final, TypeVar

from penstock.errors import DeadlineExceeded
from penstock.torch.position import Position

__all__ = ["Book", "Loop", "Page", "join"]

R = TypeVar("R")

_REMEMBERED: Final = 4  # loops whose workers may still come
_LOCK_S: Final = 30.0  # it is held for microseconds
_POLL_S: Final = 0.001


@dataclass(frozen=True, slots=True)
class Loop:
    """A loop that workers have begun.

    Attributes:
        key: what its workers have in common: their seed, how many they are, and how many loops they began before.
        start: where it begins.
        workers: who joined it.
        opened: the state of a worker's loader; None before there is one.
    """

    key: tuple[int, int, int]
    start: Position
    workers: tuple[int, ...]
    opened: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class Page:
    """What one training process and its workers know.

    Attributes:
        next: where the next loop begins.
        loops: the last that workers have begun, the latest last.
        in_workers: whether the last loop was one of workers, which read ahead.
    """

    next: Position
    loops: tuple[Loop, ...] = ()
    in_workers: bool = False

    def turned_to(self, position: Position) -> Page:
        """The same, but that the next loop begins elsewhere."""
        return replace(self, next=position, in_workers=False)

    def opened(self, key: tuple[int, int, int], state: Mapping[str, Any]) -> Page:
        """The same, knowing the state of a loader of a loop."""
        return replace(
            self, loops=tuple(replace(loop, opened=state) if loop.key == key else loop for loop in self.loops)
        )

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        loops = [
            {"key": loop.key, "start": loop.start.to_dict(), "workers": loop.workers, "opened": loop.opened}
            for loop in self.loops
        ]
        return {"next": self.next.to_dict(), "loops": loops, "in_workers": self.in_workers}

    @classmethod
    def from_dict(cls, page: Mapping[str, Any]) -> Page:
        """From what ``to_dict`` gave."""
        loops = tuple(
            Loop(
                key=(loop["key"][0], loop["key"][1], loop["key"][2]),
                start=Position.from_dict(loop["start"]),
                workers=tuple(loop["workers"]),
                opened=loop["opened"],
            )
            for loop in page["loops"]
        )
        return cls(Position.from_dict(page["next"]), loops, page["in_workers"])


def join(page: Page, key: tuple[int, int, int], worker: int, at: Position | None = None) -> tuple[Page, Position]:
    """A worker begins a loop: the one that others with the same key have begun, or, as the first of them, the next.

    A worker that is in a loop with this key already begins another one: the seed was just the same again.

    Args:
        page: before.
        key: see ``Loop``.
        worker: which, from 0.
        at: where this worker begins when it knows that better, because it got a state of its own.

    Returns:
        The page afterwards, and where the worker begins.
    """
    for loop in reversed(page.loops):
        if loop.key == key and worker not in loop.workers and (at is None or at.epoch == loop.start.epoch):
            joined = replace(loop, workers=(*loop.workers, worker))
            loops = tuple(joined if other is loop else other for other in page.loops)
            return replace(page, loops=loops), at or loop.start
    start = at or page.next
    loops = (*page.loops, Loop(key, start, (worker,)))[-_REMEMBERED:]
    return Page(start.next(), loops, in_workers=True), start


class Book:
    """Pages, one for each training process that has a copy of the dataset.

    A worker process inherits the book, by fork or by spawn. Any other copy of it, by ``copy.deepcopy`` say, is another
    book with the same content.

    Args:
        start: where the first loop begins.
    """

    def __init__(self, start: Position) -> None:
        self._hold(os.memfd_create("penstock-epochs"))
        self._start = start

    def _hold(self, descriptor: int) -> None:
        self._descriptor = descriptor
        weakref.finalize(self, os.close, descriptor)

    def page(self, owner: int) -> Page:
        """The page of a training process, by its process id."""
        return self.change(owner, lambda page: (page, page))

    def change(self, owner: int, rule: Callable[[Page], tuple[Page, R]]) -> R:
        """Replace a page by what a rule makes of it, with nobody in between; returns what else the rule gave.

        Raises:
            DeadlineExceeded: another process holds the book, stopped perhaps.
        """
        # Opened anew, it is a lock of our own, against threads and forked processes as well.
        with open(f"/proc/self/fd/{self._descriptor}", "r+b", buffering=0) as file:
            _lock(file.fileno())
            content = file.read()
            pages: dict[str, Any] = json.loads(content) if content else {}
            found = pages.get(str(owner)) or next(iter(pages.values()), None)  # the first is of who made it
            page = Page(self._start) if found is None else Page.from_dict(found)
            if str(owner) not in pages:
                page = Page(page.next)
            changed, result = rule(page)
            pages[str(owner)] = changed.to_dict()
            written = json.dumps(pages).encode()
            os.pwrite(file.fileno(), written.ljust(len(content)), 0)
        return result

    def __getstate__(self) -> dict[str, Any]:
        if multiprocessing.context.get_spawning_popen() is not None:
            return {"start": self._start, "descriptor": DupFd(self._descriptor)}
        with open(f"/proc/self/fd/{self._descriptor}", "rb") as file:
            return {"start": self._start, "content": file.read()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._start = state["start"]
        if "descriptor" in state:
            self._hold(state["descriptor"].detach())
        else:
            self._hold(os.memfd_create("penstock-epochs"))
            os.pwrite(self._descriptor, state["content"], 0)


def _lock(descriptor: int) -> None:
    deadline = time.monotonic() + _LOCK_S
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise DeadlineExceeded(
                    f"another process has held this dataset's book of epochs for {_LOCK_S:g} s; is one of its workers "
                    "stopped?"
                ) from None
            time.sleep(_POLL_S)
