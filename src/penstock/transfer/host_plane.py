"""The host plane: how agents on one host find each other, hand over descriptors, and notice when one is gone.

An abstract Unix socket (SEQPACKET) carries the handshake; it is bound to no file, so nothing stays behind, and doesn't
cross network namespaces. After it, memory moves by the core alone; the connection stays open as a sign of life. Its
end, and that of the peer's process (pidfd), which a forked child that inherited the socket would hide, are noticed by
one thread that sleeps otherwise.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from penstock import _core
from penstock.transfer.host_connection import Attempt, HostConnection, shake_hands
from penstock.transfer.host_visitors import HostVisitors
from penstock.transfer.metadata import AgentMetadata
from penstock.transfer.watcher import Watcher

__all__ = ["HostPlane"]


class HostPlane:
    """One agent's side of all connections with agents on this host.

    Args:
        name: the agent's.
        instance: 16 bytes; who connects must mean this one.
        secret: 16 bytes that who connects has to show.
        registry: the agent's registered memory.
        inbox: where notifications arrive.
        exposes: whether a segment holds registered memory, so that peers may map it.

    Attributes:
        visitors: agents that connected to ours.

    Threads: any.
    """

    def __init__(
        self,
        name: str,
        *,
        instance: bytes,
        secret: bytes,
        registry: _core.Registry,
        inbox: _core.Inbox,
        exposes: Callable[[int], bool],
    ) -> None:
        self._name = name
        self._registry = registry
        self._watcher = Watcher(name)
        self.visitors = HostVisitors(
            self._watcher, instance=instance, secret=secret, registry=registry, inbox=inbox, exposes=exposes
        )
        self._watcher.start(self.visitors.due)

    @property
    def socket_name(self) -> str:
        """Of the abstract Unix socket that leads here, without the leading NUL."""
        return self.visitors.socket_name

    def connect(self, peer: AgentMetadata, timeout_s: float, attempt: Attempt | None = None) -> HostConnection:
        """A connection to an agent on this host; ``attempt`` lets another thread give it up.

        Raises:
            PeerUnreachable: nobody listens there (any more), or doesn't answer in time.
            PeerRefused: it doesn't want us; the message says why.
        """
        deadline = time.monotonic() + timeout_s
        attempt = attempt or Attempt()
        try:
            return shake_hands(
                attempt, peer, name=self._name, registry=self._registry, watcher=self._watcher, deadline=deadline
            )
        except BaseException:
            attempt.sock.close()
            raise

    def close(self) -> None:
        """Take no more visitors, and let go of those there are. Idempotent."""
        if self._watcher.close():
            self.visitors.close()
