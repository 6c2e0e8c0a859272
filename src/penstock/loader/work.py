"""What a pipeline is given and gives: the work on a unit, a delivery, and its counters."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

from penstock.budget import Charge
from penstock.loader.faults import Fault, Mended, Tally
from penstock.loader.plan import Unit

__all__ = ["CostChanged", "Delivery", "PipelineStatistics", "Shared", "Work"]

T = TypeVar("T")


class CostChanged(Exception):
    """A build found that its unit needs ``cost_bytes``; it is charged anew and built again."""

    def __init__(self, cost_bytes: int) -> None:
        super().__init__(cost_bytes)
        self.cost_bytes = cost_bytes


@dataclass(frozen=True, slots=True)
class Delivery(Generic[T]):
    """A result, ready to be handed out, with what it counts for.

    Attributes:
        result: what a loader's caller gets.
        positions: of the epoch's order that are done with it.
        samples: that are in it: fewer, where some were left out.
        payload_bytes: of these, as they lie in storage.
        faults: samples that aren't in it though they were planned.
    """

    result: T
    positions: int
    samples: int
    payload_bytes: int
    faults: tuple[Fault, ...] = ()

    @classmethod
    def of(cls, unit: Unit, result: T, mended: Mended | None = None) -> Delivery[T]:
        """A unit as it was planned, or as it was mended."""
        if mended is None:
            return cls(result, len(unit.sample_ids), len(unit.sample_ids), unit.payload_bytes)
        payload_bytes = int(unit.lengths[mended.rows].sum())
        return cls(result, len(unit.sample_ids), len(mended.rows), payload_bytes, mended.faults)


class Work(Protocol[T]):
    """What is done with a unit."""

    def cost_bytes(self, unit: Unit) -> int:
        """All bytes that building and holding the result takes: raw and decoded, charged at once."""

    def build(self, unit: Unit, charge: Charge) -> Delivery[T]:
        """Make the result out of memory of this charge alone, and say what it counts for.

        Where there is never more than one builder it may raise CostChanged.
        """


class Shared(Protocol):
    """Memory that units share, charged with the unit that it begins with, beside what the unit itself costs."""

    @property
    def held_bytes(self) -> int:
        """Charged for it now, by the loader itself and not by whoever has its results."""

    def begin(self, unit: Unit, charge: Charge) -> None:
        """Take what begins with a unit, ``unit.begun_bytes``, out of its charge."""

    def done(self, unit: Unit) -> None:
        """A unit is built, and needs it no more."""


@dataclass(slots=True)
class PipelineStatistics:
    """Counters from the consumer's side."""

    delivered_batches: int = 0
    delivered_samples: int = 0
    delivered_bytes: int = 0
    delivered_positions: int = 0
    faults: Tally = field(default_factory=Tally)
