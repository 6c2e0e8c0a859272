"""The planes of an agent: the ways in which it is reached, and reaches others."""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Callable, Iterable

from penstock import _core
from penstock.errors import PenstockError, TransportUnavailable
from penstock.transfer.host import this_host
from penstock.transfer.host_plane import HostPlane
from penstock.transfer.metadata import ID_BYTES, AgentMetadata, RegistrationRecord
from penstock.transfer.network_plane import NetworkPlane, check_require, uses

__all__ = ["Planes"]


class Planes:
    """The host plane, and the network plane where there is one.

    Args:
        name: the agent's.
        instance: 16 random bytes that tell the agent from others of its name.
        network: where the network plane listens; None: there is none.
        require: a transport without which no connection is made; None: any will do.
        registry: the agent's registered memory.
        inbox: where notifications arrive.
        exposes: whether a segment holds registered memory, so that peers on this host may map it.
        peer_timeout_s: how long a peer on the network may be silent until it is taken for lost.

    Attributes:
        host: the host plane.
        network: the network plane, or None.

    Raises:
        TransportUnavailable: there is no UCX for ``network``.
    """

    def __init__(
        self,
        name: str,
        *,
        instance: bytes,
        network: str | None,
        require: str | None,
        registry: _core.Registry,
        inbox: _core.Inbox,
        exposes: Callable[[int], bool],
        peer_timeout_s: float,
    ) -> None:
        check_require(require, network)
        self._name = name
        self._require = require
        self._secret = secrets.token_bytes(ID_BYTES)
        self._instance = instance
        self._inbox = inbox
        self.host = HostPlane(
            name, instance=self._instance, secret=self._secret, registry=registry, inbox=inbox, exposes=exposes
        )
        self.network: NetworkPlane | None = None
        if network is None:
            return
        try:
            self.network = NetworkPlane(
                network,
                name=name,
                instance=self._instance,
                secret=self._secret,
                registry=registry,
                inbox=inbox,
                peer_timeout_s=peer_timeout_s,
            )
        except BaseException:
            self.host.close()
            raise

    def metadata(self, records: Iterable[RegistrationRecord], *, complete: bool) -> AgentMetadata:
        """Who the agent is and how it is reached, with these of its registrations, or all (``complete``)."""
        host = this_host()
        return AgentMetadata(
            name=self._name,
            instance=self._instance,
            secret=self._secret,
            boot_id=host.boot_id,
            netns=host.netns,
            socket_name=self.host.socket_name,
            network_address=self.network.address if self.network is not None else b"",
            network_transports=self.network.transports if self.network is not None else "",
            registrations=tuple(records),
            complete=complete,
        )

    def shares_host(self, metadata: AgentMetadata) -> bool:
        """Whether shared memory leads to that agent, by what its metadata says.

        Raises:
            TransportUnavailable: another transport is required.
        """
        shared = bool(metadata.socket_name) and this_host().same_as(metadata.host)
        if self._require is None:
            return shared
        if self._require == "shm" and not shared:
            raise TransportUnavailable(f"{metadata.name} is on another host, but require='shm'")
        return self._require == "shm"

    def connect_network(self, metadata: AgentMetadata, timeout_s: float) -> _core.NetworkLink:
        """A connection over the network.

        Raises:
            TransportUnavailable: none leads there, or not by the transport that is required.
            PeerUnreachable, PeerRefused
        """
        if self._require == "shm":
            raise TransportUnavailable(f"this needs the network plane to {metadata.name}, but require='shm'")
        if self.network is None:
            raise TransportUnavailable(
                f"{metadata.name} can't be reached by shared memory, and this agent has no network open; "
                "make it with Agent(..., network='loopback'), or an address of this host"
            )
        link = self.network.connect(metadata, timeout_s)
        if self._require is None or uses(self._require, link.transport):
            return link
        found = link.transport
        link.close()
        raise TransportUnavailable(
            f"{metadata.name} is reached over {found or 'nothing that UCX tells'}, but require={self._require!r}; see "
            "`penstock doctor` for what there is here, and ask the same at the other end, or leave require out"
        )

    def close_network(self, timeout_s: float) -> None:
        """End the network plane, where there is one."""
        if self.network is not None:
            self.network.close(timeout_s)

    def abandon(self) -> None:
        """End both at once, and wake whoever waits for notifications: for an agent that nobody has any more."""
        with contextlib.suppress(PenstockError, OSError):
            self._inbox.close()
            self.close_network(0.0)
            self.host.close()
