"""Where a run of epochs is: pure, and small enough for a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from penstock.errors import ResumeError
from penstock.order.state import LoaderState
from penstock.sizes import whole_number

__all__ = ["Position"]


@dataclass(frozen=True, slots=True)
class Position:
    """Where to go on.

    Attributes:
        epoch: of which epoch,
        batches: after how many of its batches; those of all runs before, however they were split,
        loader: and after what, as its loader's ``state_dict()``; None is its beginning.
    """

    epoch: int = 0
    batches: int = 0
    loader: Mapping[str, Any] | None = None

    def next(self) -> Position:
        """The beginning of the next epoch."""
        return Position(self.epoch + 1)

    def after(self, batches: int, loader: Mapping[str, Any]) -> Position:
        """After so many more batches, which is what this state says."""
        return Position(self.epoch, self.batches + batches, loader)

    def after_steps(self, opened: Mapping[str, Any], steps: int) -> Position:
        """After the first steps of a loader that isn't here; after all of them, the next epoch.

        Args:
            opened: the state of that loader, or of one of its workers, at any step.
            steps: how many of the rank's steps were taken since it began.

        Raises:
            ResumeError: it has fewer steps, or its batches are cut by bytes.
        """
        state = LoaderState.from_dict(opened)
        if state.split is None:
            raise ResumeError(
                "batches that are cut by bytes can't be counted; use EpochLoader, which knows where it is"
            )
        left = state.step_count()
        if not 0 <= steps <= left:
            raise ResumeError(f"batches is {steps}; this loop has {left}, so give 0 to {left}")
        if steps == left:
            return self.next()
        whole = replace(state, split=replace(state.split, worker=0, workers=1), taken=steps)
        return self.after(steps, whole.to_dict())

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, state: Mapping[str, Any]) -> Position:
        """From what ``to_dict`` gave, or from the state of a loader alone.

        Raises:
            ResumeError: it is neither.
        """
        try:
            if "loader" not in state:
                return cls(whole_number("epoch", state["epoch"]["epoch"], least=0), 0, dict(state))
            loader = state["loader"]
            return cls(
                whole_number("epoch", state["epoch"], least=0),
                whole_number("batches", state["batches"], least=0),
                None if loader is None else dict(loader),
            )
        except (LookupError, TypeError, ValueError) as error:
            raise ResumeError(f"this is no state of a loader: {error!r}; give what state_dict() returned") from error
