"""``EpochDataset``: a loader as a dataset for torch's own DataLoader, with or without its worker processes."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, ParamSpec

import torch.distributed
from torch.utils.data import IterableDataset, get_worker_info

from penstock.errors import ConfigError, ResumeError, UnitTooLarge
from penstock.loader.loader import Loader
from penstock.sizes import whole_number
from penstock.torch.book import Book, Page, join
from penstock.torch.maker import Maker, Part
from penstock.torch.position import Position
from penstock.torch.ranks import Place
from penstock.torch.tensors import tensors_of

__all__ = ["EpochDataset"]

P = ParamSpec("P")


class EpochDataset(IterableDataset[Any]):
    """Batches for ``torch.utils.data.DataLoader(dataset, batch_size=None, num_workers=...)``.

    ``EpochLoader`` does the same without processes, and is what to use unless something after the loader needs them.

    Each worker makes the batches of every ``num_workers``-th step of its rank, so what the DataLoader gives is the
    same, in the same order, for any number of workers. Every loop over the DataLoader is the next epoch, with
    ``persistent_workers`` or without. Memory: each worker has its share of ``max_inflight_bytes`` and of the cores;
    the ``prefetch_factor`` batches of each worker that wait for the loop lie in shared memory and are not counted.

    A batch is what the loader gives; of ``penstock.load`` the tensors of ``Batch.to_torch_with_labels()``, or of
    ``to_torch()`` where there are no labels, since a batch itself doesn't leave its process.

    Args:
        make: what makes a loader, as for ``EpochLoader``; it is pickled where workers are spawned.
        args: what that takes: the dataset link,
        arguments: and its arguments; ``epoch``, ``resume``, ``rank`` and ``world_size`` as for ``EpochLoader``.

    Raises:
        ConfigError: there is no loader to be made of this.
    """

    def __init__(self, make: Callable[P, Loader[Any]], *args: P.args, **arguments: P.kwargs) -> None:
        self._maker = Maker.of(make, args, arguments)
        for knob in ("pin_memory", "non_blocking", "persistent_workers"):
            if self._maker.asked(knob):
                raise ConfigError(
                    f"{knob} is True, and that is a matter of what has the workers: give DataLoader(pin_memory=True, "
                    "persistent_workers=True), or copy with DeviceLoader"
                )
        self._book = Book(self._maker.start)
        self._own: Position | None = None  # of this process alone: a worker got a state
        self._loops = 0  # begun in this process
        self._here: _Here | None = None  # the loop in this process
        self._known_place: Place | None = None  # from the process that this one was started by
        self._lengths: dict[Place | None, int] = {}

    def __iter__(self) -> Iterator[Any]:
        """The batches of the next epoch; in a worker, those of its steps."""
        info = get_worker_info()
        if info is None:
            return self._batches_here()
        part = Part(info.id, info.num_workers)
        key = (info.seed - info.id, info.num_workers, self._loops)
        self._loops += 1
        start = self._change(partial(join, key=key, worker=info.id, at=self._own))
        self._own, self._here = None, _Here(start)
        return self._batches_of(start, part, key)

    def __len__(self) -> int:
        """Batches of an epoch for this rank, over all workers.

        Raises:
            TypeError: batches are cut by bytes, so that their number isn't known.
        """
        place = self._place()
        if place not in self._lengths:
            with self._maker.open(Position(), place) as loader:
                self._lengths[place] = len(loader)
        return self._lengths[place]

    @property
    def epoch(self) -> int:
        """Which epoch the next loop is of."""
        return self._page().next.epoch

    def set_epoch(self, epoch: int) -> None:
        """Have the next loop be of this epoch; workers that live already hear of it, too.

        From its beginning, unless a state in that very epoch was loaded and no loop begun since.

        Raises:
            ConfigError: that is no epoch.
        """
        position = Position(whole_number("epoch", epoch, least=0))
        if self.epoch != epoch:
            self._turn_to(position)

    def state_dict(self, batches: int | None = None) -> dict[str, Any]:
        """Where the loop is, as a small dict for JSON.

        Args:
            batches: how many the loop has taken in this epoch, since it began or went on. Needed where the DataLoader
                has workers: they read ahead, and only the loop knows how much of that it took.

        Raises:
            ResumeError: workers have read ahead, and ``batches`` isn't given; or the loop can't have taken so many.
        """
        if batches is not None:
            whole_number("batches", batches, least=0)
        page = self._page()
        if get_worker_info() is None and page.in_workers:
            return self._state_of_workers(page, batches).to_dict()
        if self._here is not None:
            return self._here.position(batches).to_dict()
        if batches:
            raise ResumeError(f"batches is {batches}, and no loop has begun; leave it out")
        return page.next.to_dict()

    def _state_of_workers(self, page: Page, batches: int | None) -> Position:
        if batches is None:
            raise ResumeError(
                "this DataLoader's workers read ahead, so the dataset can't know which batches the loop took: call "
                "state_dict(batches=n) with the number that it took in this epoch, use torchdata's StatefulDataLoader "
                "and its state_dict(), or EpochLoader, which has no workers"
            )
        loop = page.loops[-1]
        if not batches:
            return loop.start
        if loop.opened is None:
            raise ResumeError(f"batches is {batches}, and no worker has given any yet")
        return loop.start.after_steps(loop.opened, batches)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Have the next loop go on where this state was saved, with any number of workers and ranks.

        Args:
            state: what ``state_dict()`` of this class, of ``EpochLoader`` or of a loader returned.

        Raises:
            ResumeError: it is no such state.
        """
        position = Position.from_dict(state)
        if get_worker_info() is None:
            self._turn_to(position)
        else:  # torchdata gives each worker its own
            self._own, self._here = position, None

    def _batches_here(self) -> Iterator[Any]:
        """Without workers: the loop begins when its first batch is asked for."""
        start = self._change(_begun_here)
        yield from self._batches_of(start, None, None)

    def _batches_of(self, start: Position, part: Part | None, key: tuple[int, int, int] | None) -> Iterator[Any]:
        loader = self._maker.open(start, self._place(), part)
        here = self._here = _Here(start, loader)
        if key is not None:
            self._change(lambda page: (page.opened(key, loader.state_dict()), None))
        try:
            for batch in loader:
                yield tensors_of(batch)
                del batch  # its memory is the next one's
        except GeneratorExit:
            # The loop was left. That may be the garbage collector's doing, in any thread: there is no waiting here
            # for threads to end, as close() does, but a loader that nobody holds ends on its own.
            here.let_go()
            raise
        except UnitTooLarge as error:
            loader.close()
            raise (error if part is None else _share_too_small(error, part)) from error
        loader.close()
        if part is None:
            here.finish()

    def _turn_to(self, position: Position) -> None:
        self._here = None
        self._change(lambda page: (page.turned_to(position), None))

    def _place(self) -> Place | None:
        return self._known_place or self._maker.place()

    def _page(self) -> Page:
        return self._book.page(_training_process())

    def _change(self, rule: Callable[[Page], tuple[Page, Any]]) -> Any:
        return self._book.change(_training_process(), rule)

    def __getstate__(self) -> dict[str, Any]:
        initialised = torch.distributed.is_available() and torch.distributed.is_initialized()
        return self.__dict__ | {"_here": None, "_known_place": self._place() if initialised else self._known_place}


class _Here:
    """A loop in this process: where it began, and how far it came."""

    def __init__(self, start: Position, loader: Loader[Any] | None = None) -> None:
        self._start, self._loader = start, loader
        self._taken, self._position = 0, start  # as far as is known without the loader

    def position(self, batches: int | None = None) -> Position:
        """Where it is; ``batches`` is what its user believes it took.

        Raises:
            ResumeError: that is wrong.
        """
        if self._loader is not None:
            self._taken = self._loader.delivered_batches
            self._position = self._start.after(self._taken, self._loader.state_dict()) if self._taken else self._start
        if batches is not None and batches != self._taken:
            raise ResumeError(
                f"batches is {batches}, and the loop has taken {self._taken}; leave it out, it is known here"
            )
        return self._position

    def let_go(self) -> None:
        """Hold the loader no longer."""
        self.position()
        self._loader = None

    def finish(self) -> None:
        """It is at its end: where it is, is the beginning of the next epoch."""
        self.let_go()
        self._position = self._start.next()


def _begun_here(page: Page) -> tuple[Page, Position]:
    return page.turned_to(page.next.next()), page.next


def _training_process() -> int:
    """The process whose loop this is for: this one, or the one that has it as a worker."""
    parent = multiprocessing.parent_process()
    if get_worker_info() is None or parent is None or parent.pid is None:
        return os.getpid()
    return parent.pid


def _share_too_small(error: UnitTooLarge, part: Part) -> UnitTooLarge:
    return UnitTooLarge(
        f"{error}. max_inflight_bytes is shared out between the {part.workers} workers of the DataLoader, and each has "
        f"{error.total_bytes} bytes of it: give {error.needed_bytes * part.workers} or more, or fewer workers",
        needed_bytes=error.needed_bytes,
        total_bytes=error.total_bytes,
    )
