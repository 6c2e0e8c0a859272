"""How the positions of an epoch are cut into steps, and each step into one batch for every rank: pure.

All ranks take the same number of steps, and each sample is in one batch of one rank. A step is ``batch x world``
neighbouring positions, of which rank r takes the r-th ``batch``: what a step holds as a whole doesn't depend on how
many ranks share it. Only the end is cut finer, where there is less than a step left.
"""

from __future__ import annotations

from dataclasses import dataclass

from penstock.errors import ConfigError

__all__ = ["Split", "Steps"]


@dataclass(frozen=True, slots=True)
class Split:
    """How positions are shared.

    Attributes:
        batch: samples in a batch, at least 1.
        rank: whose batches, from 0.
        world_size: how many ranks there are.
        drop_last: leave out what doesn't fill a step.
        worker: which of the rank's steps, from 0: those s with s % ``workers`` == ``worker``, so that taking them from
            the workers in turn gives them in order.
        workers: how many share the rank's steps.
    """

    batch: int
    rank: int = 0
    world_size: int = 1
    drop_last: bool = False
    worker: int = 0
    workers: int = 1

    @property
    def step(self) -> int:
        """Positions of a whole step."""
        return self.batch * self.world_size


class Steps:
    """The steps of ``count`` positions.

    The rest that fills no step is shared evenly. Where it has fewer samples than there are ranks, the last step has one
    sample for each rank, and the one before it shares what is left then.

    Raises:
        ConfigError: there are so few samples, or batches of one, that ranks would take different numbers of steps.
    """

    def __init__(self, count: int, split: Split) -> None:
        self._split = split
        self._whole, rest = divmod(count, split.step)
        self._tail: list[tuple[int, int]] = []  # first position and positions of the steps that aren't whole
        if split.drop_last or rest == 0:
            pass
        elif rest >= split.world_size:
            self._tail = [(self._whole * split.step, rest)]
        elif self._whole and split.batch > 1:
            self._whole -= 1
            first, left = self._whole * split.step, split.step + rest - split.world_size
            self._tail = [(first, left), (first + left, split.world_size)]
        else:
            raise ConfigError(
                f"{count} samples can't be shared by {split.world_size} ranks in batches of at most {split.batch} so "
                "that all take the same number of steps and each sample once; give drop_last=True, larger batches, or "
                "fewer ranks"
            )

    @property
    def batch_size(self) -> int:
        """The most samples in a batch."""
        return self._split.batch

    @property
    def whole_count(self) -> int:
        """All steps, the same for every rank."""
        return self._whole + len(self._tail)

    @property
    def count(self) -> int:
        """Those of this worker; where it has no others to share with, all."""
        return len(range(self._split.worker, self.whole_count, self._split.workers))

    def whole_step(self, step: int) -> int:
        """Which of all steps this worker's ``step``-th is."""
        return self._split.worker + step * self._split.workers

    def end(self, step: int) -> int:
        """The position up to which everything is done when all ranks have taken the first ``step`` of all steps."""
        if step <= self._whole:
            return step * self._split.step
        first, length = self._tail[step - self._whole - 1]
        return first + length

    def batch(self, step: int) -> tuple[int, int]:
        """This rank's positions in its worker's ``step``-th step, half-open; never empty."""
        rank, size, step = self._split.rank, self._split.batch, self.whole_step(step)
        if step < self._whole:
            start = step * self._split.step + rank * size
            return start, start + size
        first, length = self._tail[step - self._whole]
        share, more = divmod(length, self._split.world_size)
        start = first + rank * share + min(rank, more)
        return start, start + share + (rank < more)
