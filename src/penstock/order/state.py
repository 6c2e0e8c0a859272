"""Where a loader is in its epoch, as a dict that JSON can hold: what is done, and of what. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Final, TypeAlias

from penstock.errors import ResumeError
from penstock.order.order import Remaining, Sequential
from penstock.order.split import Split, Steps

__all__ = ["Begun", "Epoch", "Intervals", "LoaderState", "merge_states"]

Intervals: TypeAlias = tuple[tuple[int, int], ...]

_VERSION: Final = 2  # of the form, and of the order that positions are of: another permutation is another version


@dataclass(frozen=True, slots=True)
class Epoch:
    """What is visited, and in which order.

    Attributes:
        manifest_hash: of the dataset.
        start_id: first sample.
        end_id: end of the samples, exclusive.
        order: which order they are visited in, as its sampler calls it,
        seed: of which seed
        epoch: and epoch.
    """

    manifest_hash: str
    start_id: int
    end_id: int
    order: str
    seed: int
    epoch: int

    @property
    def count(self) -> int:
        """Positions."""
        return self.end_id - self.start_id


@dataclass(frozen=True, slots=True)
class Begun:
    """Where a loader begins.

    Attributes:
        done: positions that are done, as half-open intervals, ascending and apart.
        steps: of its own, in what is left, that were taken before.
    """

    done: Intervals = ()
    steps: int = 0


@dataclass(frozen=True, slots=True)
class LoaderState:
    """What is done of an epoch.

    Attributes:
        epoch: which.
        begun_with: positions that were done when the loader began, as half-open intervals, ascending and apart.
        split: how the loader cuts the others into steps; None where batches are cut by bytes.
        taken: steps that were handed out since; samples, where batches are cut by bytes.
    """

    epoch: Epoch
    begun_with: Intervals
    split: Split | None
    taken: int

    def done(self) -> Intervals:
        """Positions that are done when all ranks have taken as many steps.

        Raises:
            ResumeError: it is the state of one of several workers of a rank, who take steps in turn.
        """
        if self.split is not None and self.split.workers > 1:
            raise ResumeError(
                f"the state is of worker {self.split.worker} of {self.split.workers} alone; give it to the same worker "
                "of the same split, or merge the states of all workers of all ranks"
            )
        if self.split is None:
            return united([*self.begun_with, *self._left().intervals(0, self.taken)])
        return self.done_together(self.taken)

    def begun(self, split: Split | None) -> Begun:
        """Where a loader that goes on from here begins.

        Raises:
            ResumeError: it is the state of one of several workers, and the loader isn't that worker.
        """
        if self.split is not None and self.split.workers > 1 and split == self.split:
            return Begun(self.begun_with, self.taken)
        return Begun(self.done())

    def reached(self) -> int:
        """How many of all steps were taken before the next one of this loader."""
        assert self.split is not None
        return min(self._steps().whole_step(self.taken), self._steps().whole_count)

    def done_by_all(self) -> Intervals:
        """Positions that are done when all have come as far as this loader: all ranks, and all workers in turn."""
        if self.split is not None and self.split.workers > 1:
            return self.done_together(self.reached())
        return self.done()

    def step_count(self) -> int:
        """All steps of what was left when the loader began."""
        return self._steps().whole_count

    def done_together(self, step: int) -> Intervals:
        """Positions that are done when all ranks have taken the first ``step`` of all steps."""
        return united([*self.begun_with, *self._left().intervals(0, self._steps().end(step))])

    def own(self, first: int) -> list[tuple[int, int]]:
        """Positions that this loader alone took in steps from ``first`` of all on."""
        assert self.split is not None
        left, steps = self._left(), self._steps()
        begin = max(0, -(-(first - self.split.worker) // self.split.workers))
        return [piece for step in range(begin, self.taken) for piece in left.intervals(*steps.batch(step))]

    def _steps(self) -> Steps:
        assert self.split is not None
        return Steps(self._left().count, self.split)

    def _left(self) -> Remaining:
        return Remaining(Sequential(0, self.epoch.count), self.begun_with)

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "version": _VERSION,
            "epoch": asdict(self.epoch),
            "done": self._shown(),
            "begun_with": [list(piece) for piece in self.begun_with],
            "split": None if self.split is None else asdict(self.split),
            "taken": self.taken,
        }

    def _shown(self) -> list[list[int]] | None:
        """What is done; None where only all workers together can say."""
        if self.split is not None and self.split.workers > 1:
            return None
        return [list(piece) for piece in self.done()]

    @classmethod
    def from_dict(cls, state: Mapping[str, Any]) -> LoaderState:
        """From what ``to_dict`` gave.

        Raises:
            ResumeError: it isn't such a dict.
        """
        if "loader" in state and "version" not in state:
            raise ResumeError(
                "this is the state of an EpochLoader or EpochDataset; give it to one, or give what stands in it as "
                "'loader'"
            )
        if "format" in state and "version" not in state:
            raise ResumeError(
                "this is the state of a shared job: give it to its distributed loaders as resume=, or to `penstock "
                "coordinator --resume`; a loader by itself can't go on from it"
            )
        try:
            if state["version"] != _VERSION:
                raise ResumeError(
                    f"the state has version {state['version']!r}, this release reads version {_VERSION}: end the epoch "
                    "with the release that saved it, or begin it anew without the state"
                )
            epoch, split = Epoch(**state["epoch"]), state["split"]
            found = cls(
                epoch=epoch,
                begun_with=_checked(state["begun_with"], epoch.count),
                split=None if split is None else Split(**split),
                taken=int(state["taken"]),
            )
            beyond = split is not None and not 0 <= found.taken <= found._steps().count
            if beyond or found._shown() != state["done"]:
                raise ResumeError("the state contradicts itself: what is done isn't what its steps come to")
        except ResumeError:
            raise
        except (LookupError, TypeError, ValueError, ArithmeticError) as error:
            raise ResumeError(f"this is no state of a loader: {error!r}; give what state_dict() returned") from error
        return found

    def require(self, epoch: Epoch) -> None:
        """Refuse to go on with anything but the same samples in the same order.

        Raises:
            ResumeError: naming what differs.
        """
        ours, theirs = asdict(self.epoch), asdict(epoch)
        differing = [name for name in ours if ours[name] != theirs[name]]
        if differing:
            of_dataset = "manifest_hash" in differing and "order" not in differing  # a mixture's hash is no link's
            link = f" (its dataset's link with @sha256:{self.epoch.manifest_hash})" if of_dataset else ""
            raise ResumeError(
                "the state is of other samples or another order: "
                + ", ".join(f"{name} was {ours[name]!r} and is {theirs[name]!r} now" for name in differing)
                + f". Going on would lose or repeat samples: make the loader as it was{link}, or begin anew without "
                "the state"
            )


def merge_states(states: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """One state out of those of all ranks, and of all their workers, which may have come differently far.

    Where ranks step together every rank's own state says the same, and any of them will do.

    Args:
        states: what ``state_dict()`` returned on each rank, and there in each worker, in any order.

    Returns:
        A state that any number of ranks can go on from: what any rank took is done, nothing else.

    Raises:
        ResumeError: a rank is missing or there twice, or the states are of different runs.
    """
    found = [LoaderState.from_dict(state) for state in states]
    if not found:
        raise ResumeError("there are no states to merge; give one of each rank")
    first = found[0]
    if first.split is None:
        raise ResumeError(
            "the first state is of no rank: it is merged already, or its batches are cut by bytes, by one loader. "
            "Resume from it as it is"
        )
    for state in found:
        if state.split is None or replace(state.split, rank=0, worker=0) != replace(first.split, rank=0, worker=0):
            raise ResumeError(f"the states are of different splits: {first.split} and {state.split}")
        if (state.epoch, state.begun_with) != (first.epoch, first.begun_with):
            raise ResumeError("the states are of different runs: they began with other samples, or another epoch")
    there = sorted((state.split.rank, state.split.worker) for state in found if state.split is not None)
    ranks, workers = range(first.split.world_size), range(first.split.workers)
    if there != [(rank, worker) for rank in ranks for worker in workers]:
        raise ResumeError(
            f"there are states of ranks {[rank for rank, _ in there]}, workers {[worker for _, worker in there]}; give "
            f"one of each rank from 0 to {ranks[-1]}, and there of each worker from 0 to {workers[-1]}"
        )
    together = min(state.reached() for state in found)  # up to here a step is an interval, not one for each rank
    done = united([*first.done_together(together), *(piece for state in found for piece in state.own(together))])
    return LoaderState(first.epoch, done, None, 0).to_dict()


def united(intervals: Sequence[tuple[int, int]]) -> Intervals:
    """The same positions in as few intervals as can be, ascending."""
    found: list[tuple[int, int]] = []
    for start, end in sorted(intervals):
        if found and start <= found[-1][1]:
            found[-1] = (found[-1][0], max(end, found[-1][1]))
        elif start < end:
            found.append((start, end))
    return tuple(found)


def _checked(pieces: Sequence[Sequence[int]], count: int) -> Intervals:
    found = tuple((int(start), int(end)) for start, end in pieces)
    if united(found) != found or any(not 0 <= start < end <= count for start, end in found):
        raise ResumeError(f"the state names positions that don't exist: {list(pieces)[:4]} of {count}")
    return found
