"""Where a unit's bytes come from, and lie while it is built: in memory of its own, or in windows that units share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from penstock.budget import Charge
from penstock.loader.faults import Faults
from penstock.loader.fetch import Fetcher
from penstock.loader.plan import Unit
from penstock.order.order import Int64Array
from penstock.store.base import Buffer

__all__ = ["OwnBytes", "Piece", "RawBytes", "Reader"]


class Reader(Protocol):
    """Reads units."""

    def fetch(self, unit: Unit, dest: Buffer, faults: Faults) -> None:
        """Bring all samples of a unit into ``dest``, back to back; as ``Fetcher.fetch``."""

    def name(self, unit: Unit, faults: Faults) -> None:
        """Say of each faulty sample what it is called and where it lies, as far as that can be found out."""


@dataclass(frozen=True, slots=True)
class Piece:
    """Samples ``[first, end)`` of a unit where they lie: ``data[offsets[i] : offsets[i] + lengths[i]]`` for each.

    The view holds the memory: let go of it with the end of the build.
    """

    data: memoryview
    offsets: Int64Array
    lengths: Int64Array
    first: int
    end: int


class RawBytes(Protocol):
    """Shows units their bytes as they lie in storage."""

    def cost_bytes(self, unit: Unit) -> int:
        """What they take of the unit's own charge."""

    def pieces(self, unit: Unit, charge: Charge, faults: Faults) -> list[Piece]:
        """All samples of a unit, in order, in memory of this charge or of earlier ones."""

    def name(self, unit: Unit, faults: Faults) -> None:
        """As a ``Reader`` does."""


class OwnBytes:
    """Each unit is read by itself."""

    def __init__(self, fetcher: Fetcher) -> None:
        self._fetcher = fetcher
        self.name = fetcher.name

    def cost_bytes(self, unit: Unit) -> int:
        """See ``RawBytes``."""
        return unit.payload_bytes

    def pieces(self, unit: Unit, charge: Charge, faults: Faults) -> list[Piece]:
        """See ``RawBytes``."""
        data = memoryview(charge.region())
        self._fetcher.fetch(unit, data, faults)
        return [Piece(data, unit.dest_offsets()[:-1], unit.lengths, 0, len(unit.sample_ids))]
