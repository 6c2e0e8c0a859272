"""NIXL's exceptions, in Penstock's tree: one for each status, with the reason behind the status' name.

``except nixlNotFoundError`` catches what it does in NIXL; the Penstock error that lies behind is the ``__cause__``.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import ClassVar

from penstock.errors import (
    ClosedError,
    ConfigError,
    DeadlineExceeded,
    MetadataError,
    NotRegistered,
    PeerLost,
    PeerRefused,
    PeerUnreachable,
    PenstockError,
    StaleDescriptor,
    TransferActive,
    TransferError,
    TransportUnavailable,
    UnknownPeer,
)

__all__ = [
    "as_nixl",
    "nixlBackendError",
    "nixlCancelledError",
    "nixlError",
    "nixlInvalidParamError",
    "nixlMismatchError",
    "nixlNoTelemetryError",
    "nixlNotAllowedError",
    "nixlNotFoundError",
    "nixlNotPostedError",
    "nixlNotSupportedError",
    "nixlRemoteDisconnectError",
    "nixlRepostActiveError",
    "nixlUnknownError",
    "translated",
]


class nixlError(TransferError):
    """What all of NIXL's exceptions have in common.

    Attributes:
        status: NIXL's name of it, with which its text begins.
        reason: what was given, what was allowed and what to do.
    """

    status: ClassVar[str] = "NIXL_ERR_UNKNOWN"

    def __init__(self, reason: str = "") -> None:
        super().__init__(reason)
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.status}: {self.reason}" if self.reason else self.status


class nixlNotPostedError(nixlError):
    """Of a transfer that was never posted."""

    status = "NIXL_ERR_NOT_POSTED"


class nixlInvalidParamError(nixlError):
    """An argument, or a combination of arguments, that can't work."""

    status = "NIXL_ERR_INVALID_PARAM"


class nixlBackendError(nixlError):
    """What moves the bytes couldn't be set up, or failed."""

    status = "NIXL_ERR_BACKEND"


class nixlNotFoundError(nixlError):
    """An agent or memory that isn't known, or not any more."""

    status = "NIXL_ERR_NOT_FOUND"


class nixlMismatchError(nixlError):
    """Metadata that doesn't parse, or contradicts itself."""

    status = "NIXL_ERR_MISMATCH"


class nixlNotAllowedError(nixlError):
    """It can't be done now, or the other side doesn't let us."""

    status = "NIXL_ERR_NOT_ALLOWED"


class nixlRepostActiveError(nixlError):
    """The transfer is still in progress."""

    status = "NIXL_ERR_REPOST_ACTIVE"
    retryable = True


class nixlUnknownError(nixlError):
    """Something that has no name of its own."""


class nixlNotSupportedError(nixlError):
    """Nothing here does this."""

    status = "NIXL_ERR_NOT_SUPPORTED"


class nixlRemoteDisconnectError(nixlError):
    """The remote agent ended, was cut off, or can't be reached."""

    status = "NIXL_ERR_REMOTE_DISCONNECT"


class nixlCancelledError(nixlError):
    """It was given up: its deadline came, or its agent was closed."""

    status = "NIXL_ERR_CANCELED"


class nixlNoTelemetryError(nixlError):
    """Telemetry is off."""

    status = "NIXL_ERR_NO_TELEMETRY"


# Read from top to bottom: the first class that fits says the status.
_STATUS: tuple[tuple[type[PenstockError], type[nixlError]], ...] = (
    (NotRegistered, nixlNotFoundError),
    (StaleDescriptor, nixlNotFoundError),
    (UnknownPeer, nixlNotFoundError),
    (TransferActive, nixlRepostActiveError),
    (PeerUnreachable, nixlRemoteDisconnectError),
    (PeerLost, nixlRemoteDisconnectError),
    (PeerRefused, nixlNotAllowedError),
    (MetadataError, nixlMismatchError),
    (TransportUnavailable, nixlBackendError),
    (ConfigError, nixlInvalidParamError),
    (DeadlineExceeded, nixlCancelledError),
    (ClosedError, nixlCancelledError),
    (TransferError, nixlBackendError),
)


def translated(error: PenstockError) -> nixlError:
    """The exception that a NIXL program expects where Penstock raises ``error``, which becomes its cause."""
    if isinstance(error, nixlError):
        return error
    kind = next((kind for base, kind in _STATUS if isinstance(error, base)), nixlUnknownError)
    found = kind(str(error))
    found.__cause__ = error
    return found


@contextmanager
def as_nixl() -> Iterator[None]:
    """Raises Penstock's errors as NIXL's exceptions."""
    try:
        yield
    except PenstockError as error:
        raise translated(error) from error
