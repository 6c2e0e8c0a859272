"""The network plane: which UCX is loaded, where it listens, and what the core's network is told."""

from __future__ import annotations

import importlib.util
import os
import re
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import psutil

from penstock import _core
from penstock.errors import ConfigError, TransportUnavailable
from penstock.transfer.metadata import AgentMetadata

__all__ = [
    "Link",
    "NetworkPlane",
    "Ucx",
    "check_require",
    "choose_ucx",
    "devices_at",
    "find_ucx",
    "has_rdma_device",
    "uses",
]


_REQUIRED = ("shm", "tcp", "rdma")
# UCX's names for what goes through an RDMA device: reliable, dynamic and unreliable connections, EFA's, and GPU's.
_RDMA_NAMES = re.compile(r"(rc|dc|ud)(_\w+)?|srd|gga(_\w+)?")


def check_require(require: str | None, network: str | None) -> None:
    """Refuse a transport that nobody knows, or that could never be used (pure).

    Raises:
        ConfigError: says which there are, or that the network isn't open.
    """
    if require is None:
        return
    if require not in _REQUIRED:
        raise ConfigError(f"require is {require!r}; give one of {', '.join(map(repr, _REQUIRED))}, or None")
    if require != "shm" and network is None:
        raise ConfigError(
            f"require is {require!r}, which needs the network plane; open it with network=: an address, an interface, "
            "'loopback' or 'any'"
        )


def uses(require: str, transport: str) -> bool:
    """Whether a connection over these transports of UCX has the one that is required (pure).

    Args:
        require: ``"tcp"`` or ``"rdma"``.
        transport: what UCX tells of an endpoint: ``"tcp/lo"``, ``"rc_mlx5/mlx5_0:1,tcp/eth0"``.
    """
    names = [lane.partition("/")[0] for lane in transport.split(",")]
    return any(name == "tcp" if require == "tcp" else _RDMA_NAMES.fullmatch(name) is not None for name in names)


class Link(Protocol):
    """The initiator's end of a connection on either plane."""

    @property
    def alive(self) -> bool:
        """Whether the peer is there, as far as we know."""

    @property
    def lost(self) -> str:
        """Why it isn't; empty = it is."""

    def notify(self, message: bytes, timeout_s: float) -> None:
        """Send a notification."""

    def lose(self, reason: str) -> None:
        """Take the peer for gone."""

    def transfer(self, *arguments: Any) -> _core.Transfer:
        """Make a transfer: operation, local, remote, local_indices, remote_indices, merge."""


@dataclass(frozen=True)
class Ucx:
    """A UCX that could be loaded.

    Attributes:
        path: of libucp.
        source: ``"system"`` or ``"wheel"``.
        speaks_rdma: whether it was built with a transport for RDMA.
    """

    path: str
    source: str
    speaks_rdma: bool


def choose_ucx(candidates: Sequence[Ucx], *, rdma_device: bool) -> Ucx | None:
    """The one to load (pure): a system's with RDMA where there is a device for it, else the wheel's, else any."""
    for wanted in candidates:
        if rdma_device and wanted.speaks_rdma:
            return wanted
    for wanted in candidates:
        if wanted.source == "wheel":
            return wanted
    return candidates[0] if candidates else None


def find_ucx() -> list[Ucx]:
    """Every UCX on this machine that we know how to find."""
    found = []
    for folder in _system_folders():
        library = folder / "libucp.so.0"
        if library.exists():
            found.append(Ucx(str(library), "system", _speaks_rdma(folder)))
    spec = importlib.util.find_spec("libucx")
    for location in (spec.submodule_search_locations or []) if spec else []:
        library = Path(location) / "lib" / "libucp.so.0"
        if library.exists():
            found.append(Ucx(str(library), "wheel", _speaks_rdma(library.parent)))
    return found


def has_rdma_device() -> bool:
    """Whether the kernel knows an RDMA device."""
    return any(Path("/sys/class/infiniband").glob("*"))


def _system_folders() -> list[Path]:
    machine = os.uname().machine
    return [Path(each) for each in (f"/usr/lib/{machine}-linux-gnu", "/usr/lib64", "/usr/lib", "/opt/ucx/lib")]


def _speaks_rdma(folder: Path) -> bool:
    return any((folder / "ucx").glob("libuct_ib*.so*"))


def devices_at(where: str, addresses: Mapping[str, Sequence[str]]) -> str:
    """UCX's ``NET_DEVICES`` for what a user calls a place (pure).

    Args:
        where: ``"loopback"``, ``"any"``, an interface, several with commas, or an address of one.
        addresses: the addresses of each interface.

    Raises:
        ConfigError: no interface has that name or address.
    """
    if where == "any":
        return "all"
    if where == "loopback":
        where = "127.0.0.1"
    for interface, its_addresses in addresses.items():
        if where in its_addresses:
            return interface
    # UCX's own names: eth0, mlx5_0:1.
    if all(each.partition(":")[0] in addresses or re.fullmatch(r"\w+:\d+", each) for each in where.split(",")):
        return where
    known = ", ".join(f"{name} ({', '.join(its) or 'no address'})" for name, its in addresses.items())
    raise ConfigError(f"network={where!r} is no interface or address of this host; it has {known}")


def _addresses() -> dict[str, list[str]]:
    families = (socket.AF_INET, socket.AF_INET6)
    return {
        name: [each.address.partition("%")[0] for each in found if each.family in families]
        for name, found in psutil.net_if_addrs().items()
    }


class NetworkPlane:
    """One agent's side of all connections over the network.

    Args:
        where: as ``Agent(network=...)``.
        name: the agent's.
        instance: 16 bytes; who connects must mean this one.
        secret: 16 bytes that who connects has to show.
        registry: the agent's registered memory.
        inbox: where notifications arrive.
        peer_timeout_s: how long a peer may be silent.

    Raises:
        ConfigError: no such place.
        TransportUnavailable: no UCX, or it can't be loaded, or has no transport there.
    """

    def __init__(
        self,
        where: str,
        *,
        name: str,
        instance: bytes,
        secret: bytes,
        registry: _core.Registry,
        inbox: _core.Inbox,
        peer_timeout_s: float,
    ) -> None:
        devices = devices_at(where, _addresses())
        ucx = choose_ucx(find_ucx(), rdma_device=has_rdma_device())
        if ucx is None or not hasattr(_core, "Network"):
            raise TransportUnavailable(
                "no UCX was found for network transfers: install it, or the package's extra: pip install penstock[ucx]"
                if ucx is None
                else "this Penstock was built without UCX's headers: install libucx-cu12 and build it again"
            )
        self.ucx = ucx
        self._core = _core.Network(
            registry,
            inbox,
            library=ucx.path,
            settings={} if devices == "all" else {"NET_DEVICES": devices},
            name=name,
            instance=instance,
            secret=secret,
            peer_timeout_s=peer_timeout_s,
        )

    @property
    def address(self) -> bytes:
        """Where peers find us, for metadata."""
        return self._core.address

    @property
    def transports(self) -> str:
        """What that address offers."""
        return self._core.transports

    @property
    def version(self) -> str:
        """UCX's."""
        return self._core.version

    @property
    def completion_fd(self) -> int:
        """Becomes readable when a transfer has ended."""
        return self._core.completion_fd

    def clear_completions(self) -> None:
        """Make ``completion_fd`` wait for the next one."""
        self._core.clear_completions()

    def connect(self, peer: AgentMetadata, timeout_s: float) -> _core.NetworkLink:
        """A connection to an agent that has a network address.

        Raises:
            TransportUnavailable: it has none.
            PeerUnreachable, PeerRefused
        """
        if not peer.network_address:
            raise TransportUnavailable(
                f"{peer.name} isn't on this host, and has no network open: Agent(..., network=...)"
            )
        return self._core.connect(peer.network_address, peer.secret, timeout_s)

    def close(self, timeout_s: float) -> None:
        """End all connections and the thread. Idempotent."""
        self._core.close(timeout_s)
