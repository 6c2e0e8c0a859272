"""What ``make_prepped_xfer`` and ``prep_xfer_dlist`` return."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from functools import partial
from typing import Never

from penstock.compat.nixl.errors import (
    as_nixl,
    nixlError,
    nixlInvalidParamError,
    nixlNoTelemetryError,
    nixlNotPostedError,
    translated,
)
from penstock.compat.nixl.telemetry import Stopwatch, XferTelemetry
from penstock.transfer import Peer, Prepared, Transfer
from penstock.transfer.operation import State

__all__ = ["nixl_prepped_dlist_handle", "nixl_xfer_handle"]

_numbers = itertools.count(1)


class nixl_xfer_handle:
    """A transfer that can be posted any number of times, one post at a time.

    Attributes:
        peer: with whom.
        descriptor_count: on each side, before neighbours are merged.
    """

    __slots__ = ("__weakref__", "_number", "_stopwatch", "_transfer", "descriptor_count", "peer", "poll", "post")

    def __init__(self, transfer: Transfer, peer: Peer, descriptor_count: int, *, timed: bool) -> None:
        self._transfer: Transfer | None = transfer
        self._stopwatch = Stopwatch(transfer) if timed else None
        self._number = next(_numbers)
        self.peer = peer
        self.descriptor_count = descriptor_count
        # Bound here, so that nothing of ours stands between an agent's `transfer` and the transfer itself.
        self.post: Callable[[bytes | None], State] = (self._stopwatch or transfer).post
        self.poll: Callable[[], State] = (self._stopwatch or transfer).poll

    @property
    def transfer(self) -> Transfer:
        """Penstock's transfer.

        Raises:
            nixlInvalidParamError: it was released.
        """
        return _released(repr(self)) if self._transfer is None else self._transfer

    @property
    def error(self) -> nixlError | None:
        """Why the last post failed, with Penstock's own error as its ``__cause__``; None = it didn't fail."""
        error = None if self._transfer is None else self._transfer.error
        return None if error is None else translated(error)

    def telemetry(self) -> XferTelemetry:
        """What the last post took.

        Raises:
            nixlNoTelemetryError: nobody asked for that when the agent was made.
            nixlNotPostedError: it wasn't posted, or is still in progress.
        """
        transfer = self.transfer
        if self._stopwatch is None:
            raise nixlNoTelemetryError("telemetry is off; give capture_telemetry=True, or NIXL_TELEMETRY_ENABLE=on")
        self._stopwatch.poll()
        found = self._stopwatch.read(transfer.total_bytes, self.descriptor_count)
        if found is None:
            raise nixlNotPostedError(f"{self!r} hasn't been posted, or is still in progress")
        return found

    def release(self) -> None:
        """Lets go of the transfer; again without effect.

        Raises:
            nixlRepostActiveError: it is in progress and can't be stopped; the handle stays valid.
        """
        if self._transfer is not None:
            with as_nixl():
                self._transfer.close()
            self._transfer = self._stopwatch = None
            self.post = self.poll = partial(_released, repr(self))

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._number}{', released' if self._transfer is None else ''}>"


class nixl_prepped_dlist_handle:
    """Descriptors that were checked, to make transfers from."""

    __slots__ = ("__weakref__", "_number", "_prepared")

    def __init__(self, prepared: Prepared) -> None:
        self._prepared: Prepared | None = prepared
        self._number = next(_numbers)

    @property
    def prepared(self) -> Prepared:
        """Penstock's list.

        Raises:
            nixlInvalidParamError: it was released.
        """
        return _released(repr(self)) if self._prepared is None else self._prepared

    def release(self) -> None:
        """Lets go of the list; again without effect. Transfers that were made from it stay."""
        self._prepared = None

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._number}{', released' if self._prepared is None else ''}>"


def _released(handle: str, _notif: bytes | None = None) -> Never:
    raise nixlInvalidParamError(f"{handle} can't be used any more; make another")
