"""The windows of a block shuffle in memory: read ahead on a thread of their own, shared by units, let go by the last.

Threads: the producer begins a window when its charge is granted; one thread reads windows, in that order; builders wait
until theirs are read, and say when a unit is done with them. None of these waits for memory.
"""

from __future__ import annotations

import threading
from functools import partial
from typing import Final

import numpy as np

from penstock import _core
from penstock.budget import Charge, Region
from penstock.errors import ClosedError
from penstock.loader.crew import Crew
from penstock.loader.faults import STRICT, Faults
from penstock.loader.fetch import Fetcher
from penstock.loader.plan import Share, Unit, Window
from penstock.loader.raw import Piece
from penstock.store.base import Buffer

__all__ = ["Windows"]

_SLICE_S: Final = 1.0  # how long one wait lasts before it looks again whether it is still wanted
_JOIN_S: Final = 10.0


class _Held:
    """A window that is charged: its memory, whether it has been read, and how many units still need it."""

    def __init__(self, window: Window, region: Region) -> None:
        self.samples = window.samples
        self.region = region
        self.users = window.users
        self.is_read = False
        self.faults = Faults()  # each is the matter of the unit that takes the sample
        self.error: BaseException | None = None
        self._offsets = window.samples.dest_offsets()

    def piece(self, share: Share) -> Piece:
        lengths = self.samples.lengths[share.places]
        return Piece(memoryview(self.region), self._offsets[share.places], lengths, share.first, share.end)


class Windows:
    """The windows that are held at the moment. Thread-safe; closed by its owner.

    Args:
        fetcher: reads them, as it reads units.
    """

    def __init__(self, fetcher: Fetcher) -> None:
        self._fetcher = fetcher
        self._changed = threading.Condition()
        self._held: dict[int, _Held] = {}  # by number
        self._crew = Crew(1, "penstock-window")
        self._cancelled = False

    @property
    def held_bytes(self) -> int:
        """Charged for windows now, by the loader itself and not by whoever has its batches."""
        with self._changed:
            return sum(held.region.size_bytes for held in self._held.values())

    def begin(self, unit: Unit, charge: Charge) -> None:
        """Take the windows that begin with a unit out of its charge, and have them read."""
        for window in unit.begins:
            held = _Held(window, charge.split(window.charge_bytes).region())
            with self._changed:
                if self._cancelled:
                    return
                self._held[window.number] = held
            self._crew.submit(partial(self._read, window.number))

    def fetch(self, unit: Unit, dest: Buffer, faults: Faults = STRICT) -> None:
        """Copy all samples of a unit out of their windows, in delivery order, when these are read.

        Args:
            unit: with its shares.
            dest: where to: writable, ``unit.payload_bytes`` bytes.
            faults: as in ``Fetcher.fetch``, which raises the same.

        Raises:
            ClosedError: the loader was closed meanwhile.
        """
        dest_offsets = unit.dest_offsets()
        for piece in self._pieces(unit, faults):
            rows = np.argsort(piece.offsets, kind="stable")  # the core copies out of ascending ranges
            places = dest_offsets[piece.first : piece.end][rows]
            _core.scatter(piece.data, 0, piece.offsets[rows], piece.lengths[rows], dest, places)

    def cost_bytes(self, unit: Unit) -> int:
        """Nothing: windows have charges of their own."""
        del unit
        return 0

    def pieces(self, unit: Unit, charge: Charge, faults: Faults) -> list[Piece]:
        """Show a unit its samples where they lie, when they are read; see ``fetch``."""
        del charge
        return self._pieces(unit, faults)

    def name(self, unit: Unit, faults: Faults) -> None:
        """See ``Fetcher``."""
        self._fetcher.name(unit, faults)

    def done(self, unit: Unit) -> None:
        """A unit is built and needs its windows no more; with the last one a window goes."""
        with self._changed:
            for share in unit.shares:
                held = self._held.get(share.window.number)
                if held is not None:
                    held.users -= 1
                    if not held.users:
                        del self._held[share.window.number]

    def cancel(self) -> None:
        """End all waits and reads with ClosedError, and let go of everything."""
        with self._changed:
            self._cancelled = True
            self._held.clear()
            self._changed.notify_all()
        self._crew.stop()
        self._fetcher.cancel()

    def close(self) -> None:
        """Cancel, and wait for the thread."""
        self.cancel()
        self._crew.join(_JOIN_S)

    def _pieces(self, unit: Unit, faults: Faults) -> list[Piece]:
        held = [self._wait_for(share.window.number) for share in unit.shares]
        for window, share in zip(held, unit.shares, strict=True):
            for row, place in enumerate(share.places.tolist() if len(window.faults) else ()):
                if place in window.faults:
                    faults.add(share.first + row, window.faults.errors[place])
        return [window.piece(share) for window, share in zip(held, unit.shares, strict=True)]

    def _wait_for(self, number: int) -> _Held:
        with self._changed:
            while not self._cancelled:
                held = self._held[number]
                if held.error is not None:
                    raise held.error
                if held.is_read:
                    return held
                self._changed.wait(_SLICE_S)
        raise ClosedError("the loader was closed while it was reading")

    def _read(self, number: int) -> None:
        with self._changed:
            held = self._held.get(number)
        if held is None:
            return  # cancelled
        try:
            self._fetcher.fetch(held.samples, memoryview(held.region), held.faults)
        except BaseException as error:
            held.error = error
        with self._changed:
            held.is_read = True
            del held  # whoever is woken may be the last to need it: then it goes when they say so
            self._changed.notify_all()
