"""HMC's errors, in Penstock's tree, and which status each of Penstock's own errors is."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

from penstock.compat.hmc.enums import Status
from penstock.errors import (
    ClosedError,
    ConfigError,
    DeadlineExceeded,
    TransferError,
    TransportUnavailable,
    UnknownPeer,
)

__all__ = ["HMCError", "HMCStatusError"]


class HMCError(TransferError):
    """What HMC's calls raise: bounds of buffers as itself, everything between peers as ``HMCStatusError``."""


class HMCStatusError(HMCError):
    """An operation between sessions failed; its cause, where there is one, is Penstock's own error.

    Attributes:
        status: how it ended, one of ``Status``.
    """

    def __init__(self, operation: str, status: Status, reason: str = "") -> None:
        text = f"{operation} failed (status={status.name})"
        super().__init__(f"{text}: {reason}" if reason else text)
        self.operation = operation
        self.status = status
        self.reason = reason


_STATUS: tuple[tuple[type[BaseException], Status], ...] = (
    (DeadlineExceeded, Status.TIMEOUT),
    (TransportUnavailable, Status.UNSUPPORT),
    (ConfigError, Status.INVALID_CONFIG),
    (UnknownPeer, Status.NOT_FOUND),
    (TimeoutError, Status.TIMEOUT),
    (TransferError, Status.ERROR),
    (ClosedError, Status.ERROR),
    (OSError, Status.ERROR),
)


def status_of(error: BaseException) -> Status | None:
    """The status that an error is; None = none, it is somebody's bug and goes up as it is."""
    if isinstance(error, HMCStatusError):
        return error.status
    return next((status for kind, status in _STATUS if isinstance(error, kind)), None)


_Arguments = ParamSpec("_Arguments")
_Result = TypeVar("_Result")


def operation(name: str) -> Callable[[Callable[_Arguments, _Result]], Callable[_Arguments, _Result]]:
    """Decorates what acts between sessions: its failures come out as ``HMCStatusError`` of this name.

    What is wrong with an argument (``ConfigError``, ``TypeError``) and the bounds of our own buffer (``HMCError``)
    are raised as they are.
    """

    def decorate(function: Callable[_Arguments, _Result]) -> Callable[_Arguments, _Result]:
        @functools.wraps(function)
        def wrapped(*args: _Arguments.args, **kwargs: _Arguments.kwargs) -> _Result:
            try:
                return function(*args, **kwargs)
            except (HMCError, ConfigError):
                raise
            except Exception as error:
                status = status_of(error)
                if status is None:
                    raise
                raise HMCStatusError(name, status, str(error)) from error

        return wrapped

    return decorate
