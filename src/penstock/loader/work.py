"""What a pipeline is given and gives: the work on a unit, a delivery, and its counters."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from penstock.budget import Charge
from penstock.loader.plan import Unit

__all__ = ["CostChanged", "Delivery", "PipelineStatistics", "Work"]

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)


class CostChanged(Exception):
    """A build found that its unit needs ``cost_bytes``; it is charged anew and built again."""

    def __init__(self, cost_bytes: int) -> None:
        super().__init__(cost_bytes)
        self.cost_bytes = cost_bytes


class Work(Protocol[T_co]):
    """What is done with a unit."""

    def cost_bytes(self, unit: Unit) -> int:
        """All bytes that building and holding the result takes: raw and decoded, charged at once."""

    def build(self, unit: Unit, charge: Charge) -> T_co:
        """Make the result out of memory of this charge alone.

        Where there is never more than one builder it may raise CostChanged.
        """


@dataclass(frozen=True, slots=True)
class Delivery(Generic[T]):
    """A result in order, ready to be handed out, with what it counts for."""

    result: T
    samples: int
    payload_bytes: int


@dataclass(slots=True)
class PipelineStatistics:
    """Counters from the consumer's side."""

    delivered_batches: int = 0
    delivered_samples: int = 0
    delivered_bytes: int = 0
