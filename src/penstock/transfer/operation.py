"""A transfer: prepared once, posted as often as one likes."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Generator
from typing import Any, Final, Literal, TypeAlias

from penstock import _core
from penstock.errors import ClosedError, ConfigError, DeadlineExceeded, PenstockError, TransferActive
from penstock.transfer.network_plane import NetworkPlane

__all__ = ["STATES", "Operation", "State", "Transfer"]

Operation: TypeAlias = Literal["WRITE", "READ"]
State: TypeAlias = Literal["IDLE", "ACTIVE", "DONE", "FAILED"]

STATES: Final[tuple[State, ...]] = ("IDLE", "ACTIVE", "DONE", "FAILED")
"""By the core's numbers."""

_ACTIVE: Final = 1
_DONE: Final = 2
_FAILED: Final = 3


class Transfer:
    """Bytes on their way between our memory and a peer's; made by ``Agent.transfer``, ``write`` and ``read``.

    Over shared memory a transfer is complete when ``post()`` returns. Over a network it goes on meanwhile: poll it,
    ``wait()`` for it, or ``await`` it. DONE means that every byte is where it should be. A transfer may be posted again
    once it has ended; while it runs its memory must not be changed (WRITE) or looked at (READ).

    Attributes:
        operation: ``"WRITE"`` (ours to theirs) or ``"READ"`` (theirs to ours).
        peer_name: who is at the other end.
        transport: what moves the bytes, such as ``"shm"``.
        timeout_s: how long one post may take; then it fails with ``DeadlineExceeded``.
    """

    __slots__ = ("_core", "_keep", "_network", "_notify", "operation", "peer_name", "timeout_s", "transport")

    def __init__(
        self,
        core: _core.Transfer,
        *,
        operation: Operation,
        peer_name: str,
        transport: str,
        notify: bytes | None,
        timeout_s: float,
        network: NetworkPlane | None,
        keep: object,
    ) -> None:
        self._core: _core.Transfer | None = core
        self._notify = None if notify is None else checked_message(notify)
        self._network = network
        self._keep = keep
        self.operation = operation
        self.peer_name = peer_name
        self.transport = transport
        self.timeout_s = timeout_s

    def post(self, notify: bytes | None = None) -> State:
        """Begin it, or begin it again.

        Args:
            notify: a notification that the peer gets after the data; it stays for later posts. None: that of last time.

        Returns:
            ``"DONE"``, ``"ACTIVE"`` or ``"FAILED"`` (see ``error``).

        Raises:
            TransferActive: it is still running.
            ClosedError: it was closed.
            ConfigError: a notification that isn't bytes.
        """
        if notify is not None:
            self._notify = checked_message(notify)
        return STATES[self._open().post(self._notify, self.timeout_s)]

    @property
    def state(self) -> State:
        """``"IDLE"`` (never posted), ``"ACTIVE"``, ``"DONE"`` or ``"FAILED"``."""
        return STATES[self._open().poll()]

    def poll(self) -> State:
        """The same as ``state``."""
        return self.state

    @property
    def done(self) -> bool:
        """Whether every byte is where it should be."""
        return self._open().poll() == _DONE

    @property
    def error(self) -> PenstockError | None:
        """Why it failed; None = it didn't."""
        core = self._open()
        if core.poll() != _FAILED:
            return None
        try:
            core.raise_error()
        except PenstockError as error:
            return error
        return None

    def wait(self, timeout_s: float | None = None) -> None:
        """Sleep until it is done.

        Args:
            timeout_s: how long to wait at most; the transfer itself goes on. None: until its own deadline.

        Raises:
            DeadlineExceeded: it isn't done in time.
            TransferError: it failed: ``PeerLost``, ``StaleDescriptor``, ...
        """
        core = self._open()
        state = core.wait(self.timeout_s if timeout_s is None else timeout_s)
        self._check(core, state)

    def __await__(self) -> Generator[Any, None, None]:
        """As ``wait()``, in a running event loop and without a thread."""
        return self._wait_async().__await__()

    async def _wait_async(self) -> None:
        core = self._open()
        if self._network is not None and core.poll() == _ACTIVE:
            await _until_ended(core, self._network)
        self._check(core, core.poll())

    def _check(self, core: _core.Transfer, state: int) -> None:
        if state == _DONE:
            return
        if state == _FAILED:
            core.raise_error()
        if state == _ACTIVE:
            raise DeadlineExceeded(f"the {self.operation} with {self.peer_name} goes on; wait for it again, or longer")
        raise ClosedError("the transfer was never posted; call post() first")

    @property
    def total_bytes(self) -> int:
        """Bytes that one post moves."""
        return int(self._open().total_bytes)

    @property
    def descriptor_count(self) -> int:
        """Pieces that are moved, after neighbours were merged."""
        return int(self._open().piece_count)

    def close(self) -> None:
        """Let go of it. Idempotent.

        Raises:
            TransferActive: it is still running.
        """
        if self._core is None:
            return
        if self._core.poll() == _ACTIVE:
            raise TransferActive(f"the {self.operation} with {self.peer_name} is still running; wait for it first")
        self._core = None
        self._keep = None

    def _open(self) -> _core.Transfer:
        if self._core is None:
            raise ClosedError("the transfer was closed")
        return self._core

    def __repr__(self) -> str:
        """What it moves, where, and how far it is."""
        if self._core is None:
            return f"<Transfer {self.operation} {self.peer_name} closed>"
        return (
            f"<Transfer {self.operation} {self.peer_name} {self.total_bytes} bytes over {self.transport} {self.state}>"
        )


async def _until_ended(core: _core.Transfer, network: NetworkPlane) -> None:
    """Returns when the transfer has ended; its own deadline makes it end."""
    loop = asyncio.get_running_loop()
    fd = os.dup(network.completion_fd)  # others may watch it, too
    woken = asyncio.Event()
    loop.add_reader(fd, woken.set)
    try:
        while core.poll() == _ACTIVE:
            woken.clear()
            # Once in a while even if nothing comes: a deadline is noticed when one looks.
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(woken.wait(), 0.1)
            # All who wait were woken in the same round of the loop, before the first of them comes here.
            network.clear_completions()
    finally:
        loop.remove_reader(fd)
        os.close(fd)


def checked_message(message: bytes) -> bytes:
    """A notification that can be sent.

    Raises:
        ConfigError: it isn't bytes.
    """
    if not isinstance(message, bytes):
        raise ConfigError(f"a notification of type {type(message).__name__}; give bytes: text.encode(), bytes(buffer)")
    return message
