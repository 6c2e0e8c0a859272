"""Where a unit's bytes lie while it is made into something else: in memory of its own, or in windows that it shares."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from penstock.budget import Charge
from penstock.loader.fetch import Fetcher
from penstock.loader.order import Int64Array
from penstock.loader.plan import Unit

__all__ = ["OwnBytes", "Piece", "RawBytes"]


@dataclass(frozen=True, slots=True)
class Piece:
    """Samples ``[first, end)`` of a unit where they lie: ``data[offsets[i] : offsets[i] + lengths[i]]`` for each.

    The view holds the memory: let go of it when the unit is built.
    """

    data: memoryview
    offsets: Int64Array
    lengths: Int64Array
    first: int
    end: int


class RawBytes(Protocol):
    """Gives units their bytes as they lie in storage."""

    def cost_bytes(self, unit: Unit) -> int:
        """What they take of the unit's own charge."""

    def pieces(self, unit: Unit, charge: Charge) -> list[Piece]:
        """All samples of a unit, in order, in memory of this charge or of earlier ones."""

    def done(self, unit: Unit) -> None:
        """The unit is built; one that failed may be built again before."""


class OwnBytes:
    """Each unit is read by itself."""

    def __init__(self, fetcher: Fetcher) -> None:
        self._fetcher = fetcher

    def cost_bytes(self, unit: Unit) -> int:
        """See ``RawBytes``."""
        return unit.payload_bytes

    def pieces(self, unit: Unit, charge: Charge) -> list[Piece]:
        """See ``RawBytes``."""
        data = memoryview(charge.region())
        self._fetcher.fetch(unit, data)
        return [Piece(data, unit.dest_offsets()[:-1], unit.lengths, 0, len(unit.sample_ids))]

    def done(self, unit: Unit) -> None:
        """See ``RawBytes``."""
