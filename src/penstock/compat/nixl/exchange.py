"""Calls that carry metadata by themselves: straight to another agent's listen thread, or over etcd."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Sequence

from penstock import config as environment
from penstock.compat.nixl.config import DEFAULT_COMM_PORT
from penstock.compat.nixl.courier import Courier
from penstock.compat.nixl.descriptors import DescriptorList
from penstock.compat.nixl.errors import as_nixl, nixlInvalidParamError
from penstock.compat.nixl.messages import as_text
from penstock.compat.nixl.metadata import MetadataCalls
from penstock.errors import ClosedError, UnknownPeer
from penstock.net import LOOPBACK
from penstock.transfer import Agent
from penstock.transfer.exchange import WHOLE, EtcdExchange, RemovalWatch
from penstock.transfer.exchange.sockets import MetadataListener, fetch_metadata, send_invalidation, send_metadata

__all__ = ["ExchangeCalls", "Places"]

FETCH_TIMEOUT_S = 5.0
_OUT = "out"


class Places:
    """Where one agent's metadata goes to and comes from; made by the first call that needs it.

    Args:
        agent: whose.
    """

    def __init__(self, agent: Agent) -> None:
        self.courier = Courier()
        self.listener: MetadataListener | None = None
        self._agent = agent
        self._lock = threading.Lock()
        self._closed = False
        self._etcd: EtcdExchange | None = None
        self._removals: RemovalWatch | None = None

    def listen(self, port: int) -> None:
        """Answers others on a port of loopback, or of ``PENSTOCK_EXCHANGE_HOST``."""
        host = environment.lookup("EXCHANGE_HOST") or LOOPBACK
        self.listener = MetadataListener(self._agent, host, port, token=token())

    def etcd(self) -> EtcdExchange:
        """The etcd that the environment names.

        Raises:
            nixlInvalidParamError: it names none.
        """
        with self._lock, as_nixl():
            self._check_open()
            if self._etcd is None:
                self._etcd = EtcdExchange.from_environment()
            if self._etcd is None:
                raise nixlInvalidParamError("give ip_addr, or set NIXL_ETCD_ENDPOINTS to http://host:port of an etcd")
            return self._etcd

    def forget_when_removed(self, agent_name: str, label: str) -> None:
        """Has an agent forgotten when its metadata is taken out of etcd."""
        etcd = self.etcd()
        with self._lock:
            self._check_open()
            if self._removals is None:
                self._removals = etcd.watch_removals(self._forget)
        self._removals.follow(agent_name, label)

    def close(self) -> None:
        """Ends it all. Idempotent."""
        with self._lock:
            self._closed = True
        self.courier.close()
        for each in (self.listener, self._removals, self._etcd):
            if each is not None:
                each.close()

    def _check_open(self) -> None:
        if self._closed:
            raise ClosedError(f"the agent {self._agent.name} was closed")

    def _forget(self, agent_name: str) -> None:
        with contextlib.suppress(UnknownPeer):
            self._agent.remove_peer(agent_name)


class ExchangeCalls(MetadataCalls):
    """Metadata carried in the background: these calls return at once, and what fails is logged."""

    _places: Places | None = None

    @property
    def listen_port(self) -> int | None:
        """Where the listen thread answers; None = there is none."""
        listener = None if self._places is None else self._places.listener
        return None if listener is None else listener.port

    def send_local_metadata(self, ip_addr: str = "", port: int = DEFAULT_COMM_PORT) -> None:
        """Sends all of our metadata, as it is now, to the agent that listens there; without an address to etcd.

        Raises:
            nixlInvalidParamError: neither an address nor an etcd.
        """
        self._send(self._metadata_of(), ip_addr, port, WHOLE)

    def send_partial_agent_metadata(
        self,
        descs: DescriptorList | None,
        inc_conn_info: bool = False,
        backends: Sequence[str] = (),
        ip_addr: str = "",
        port: int = DEFAULT_COMM_PORT,
        label: str = "",
    ) -> None:
        """Sends a part of our metadata: see ``get_partial_agent_metadata``, and ``label`` is its name in etcd.

        Without descriptors and to etcd it is all of our metadata: that is how NIXL's guide publishes.

        Raises:
            nixlInvalidParamError: neither an address nor an etcd; or an etcd, but no label.
            nixlNotFoundError: a descriptor isn't registered.
        """
        if not ip_addr and not label:
            raise nixlInvalidParamError("a part of an agent's metadata needs a label in etcd; give one")
        whole = descs is None and not ip_addr
        blob = self._metadata_of() if whole else self.get_partial_agent_metadata(descs, inc_conn_info, backends)
        self._send(blob, ip_addr, port, label)

    def fetch_remote_metadata(
        self, remote_agent: str | bytes, ip_addr: str = "", port: int = DEFAULT_COMM_PORT, label: str = ""
    ) -> None:
        """Loads another agent's metadata in the background; ``check_remote_metadata`` says when it is there.

        Args:
            remote_agent: whose.
            ip_addr: where its listen thread is; empty: it comes from etcd, waited for up to five seconds.
            port: of its listen thread.
            label: of the part in etcd; empty: all of it.

        Raises:
            nixlInvalidParamError: neither an address nor an etcd.
        """
        places, name = self._need_places(ip_addr), as_text(remote_agent)
        lane = f"from {ip_addr}:{port} {label!r} {name!r}"
        if places.courier.runs(lane):  # asked for, and on its way
            return
        fetch = _fetch_from(name, ip_addr, port) if ip_addr else _fetch_of_etcd(places, name, label or WHOLE)
        load = self._mover.add_peer
        places.courier.send(lane, f"fetching the metadata of {name!r}", lambda: fetch(load))

    def invalidate_local_metadata(self, ip_addr: str = "", port: int = DEFAULT_COMM_PORT) -> None:
        """Has the agent that listens there forget us; without an address takes all that is ours out of etcd.

        Raises:
            nixlInvalidParamError: neither an address nor an etcd.
        """
        places, name = self._need_places(ip_addr), self.name
        if ip_addr:
            places.courier.send(
                _OUT, f"taking {name!r} back", lambda: send_invalidation(name, ip_addr, port, token=token())
            )
        else:
            etcd = places.etcd()
            places.courier.send(_OUT, f"taking {name!r} back", lambda: etcd.remove(name))

    def _send(self, blob: bytes, ip_addr: str, port: int, label: str) -> None:
        places, name = self._need_places(ip_addr), self.name
        doing = f"sending the metadata of {name!r}"
        if ip_addr:
            places.courier.send(_OUT, doing, lambda: send_metadata(blob, ip_addr, port, token=token()))
        else:
            etcd = places.etcd()
            places.courier.send(_OUT, doing, lambda: etcd.publish(name, label, blob))

    def _need_places(self, ip_addr: str) -> Places:
        if self._places is None:
            raise nixlInvalidParamError(f"agent {self.name!r} reaches nobody; create_backend('UCX') first")
        if not ip_addr:
            self._places.etcd()
        return self._places


Fetch = Callable[[Callable[[bytes], object]], object]


def _fetch_from(agent_name: str, ip_addr: str, port: int) -> Fetch:
    return lambda load: load(fetch_metadata(agent_name, ip_addr, port, token=token()))


def _fetch_of_etcd(places: Places, agent_name: str, label: str) -> Fetch:
    def fetch(load: Callable[[bytes], object]) -> None:
        load(places.etcd().retrieve(agent_name, label, FETCH_TIMEOUT_S))
        places.forget_when_removed(agent_name, label)

    return fetch


def token() -> str | None:
    """The secret that agents' listen threads ask for, if they do."""
    return environment.lookup("EXCHANGE_TOKEN")
