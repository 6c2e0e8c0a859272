"""The ``utils`` of NIXL's examples: import it from ``penstock.compat.nixl.utils`` in place of ``utils``.

A key-value server for agents that must find each other, what they leave there, and 64-bit numbers in memory. Where
NIXL's server listens on every address, this one listens on loopback, or on ``PENSTOCK_EXCHANGE_HOST`` with the token
``PENSTOCK_EXCHANGE_TOKEN``, which the calls here give to it as well.
"""

from __future__ import annotations

import base64
import ctypes
import errno
import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

from penstock import config
from penstock.errors import ConfigError, DeadlineExceeded, PeerRefused, PeerUnreachable
from penstock.net import LOOPBACK
from penstock.transfer.exchange import KeyValueClient, KeyValueServer
from penstock.transfer.exchange.client import decoded
from penstock.transfer.exchange.server import DEFAULT_PORT

if TYPE_CHECKING:
    from penstock.compat.nixl.agent import nixl_agent

__all__ = [
    "ServerRefused",
    "clear_metadata",
    "get_metadata",
    "publish_agent_metadata",
    "publish_descriptors",
    "read_uint64",
    "retrieve_agent_metadata",
    "retrieve_descriptors",
    "set_metadata",
    "start_server",
    "write_uint64",
]

_log = logging.getLogger("penstock")
_POLL_S: Final = 0.1
_starting = threading.Lock()
_server: KeyValueServer | None = None


class ServerRefused(PeerUnreachable, ConnectionRefusedError):
    """Nobody listens where the key-value server should be; what NIXL's examples see as ConnectionRefusedError."""


def start_server(port: int = DEFAULT_PORT) -> bool:
    """Starts the key-value server of this process, on a thread that ends with the process.

    Returns:
        Whether this call started it: False where it was started before, or the port is taken, by another process's for
        one.

    Raises:
        ConfigError: ``PENSTOCK_EXCHANGE_HOST`` can't be listened on, or is open to others without a token.
    """
    global _server  # noqa: PLW0603 - one for the process, as NIXL's
    with _starting:
        if _server is not None:
            return False
        try:
            _server = KeyValueServer(config.lookup("EXCHANGE_HOST") or LOOPBACK, port, token=_token())
        except ConfigError as error:
            if isinstance(error.__cause__, OSError) and error.__cause__.errno == errno.EADDRINUSE:
                return False
            raise
        return True


def set_metadata(key: str, value: Any, server: str = LOOPBACK, port: int = DEFAULT_PORT) -> bool:
    """Gives a key a value, anything that JSON knows; False, with a line in the log, where the server doesn't take it.

    Raises:
        ServerRefused: nobody listens there.
    """
    try:
        with _connecting():
            _client(server, port).set(key, value)
    except PeerRefused as error:
        _log.error("%s", error)
        return False
    return True


def get_metadata(key: str, server: str = LOOPBACK, port: int = DEFAULT_PORT) -> Any:
    """A key's value now, None without one.

    Raises:
        ServerRefused: nobody listens there.
    """
    with _connecting():
        return _client(server, port).get(key)


def clear_metadata(server: str = LOOPBACK, port: int = DEFAULT_PORT) -> bool:
    """Takes every key away; False, with a line in the log, where the server doesn't let us.

    Raises:
        ServerRefused: nobody listens there.
    """
    try:
        with _connecting():
            _client(server, port).clear()
    except PeerRefused as error:
        _log.error("%s", error)
        return False
    return True


def publish_agent_metadata(
    agent: nixl_agent,
    key: str,
    host: str = LOOPBACK,
    port: int = DEFAULT_PORT,
    use_nixl_builtin: bool = False,
    reg_descs: Any = None,
) -> None:
    """Leaves an agent's metadata for others, under a key of the server.

    Args:
        agent: whose.
        key: under which; with ``use_nixl_builtin`` the label.
        host: of the server.
        port: of the server.
        use_nixl_builtin: to etcd, in the background, and not to the server.
        reg_descs: only this part of it, in etcd; None = all of it.

    Raises:
        ServerRefused: nobody listens there.
        PeerRefused: the server doesn't take it.
    """
    if use_nixl_builtin:
        agent.send_partial_agent_metadata(reg_descs, inc_conn_info=True, backends=["UCX"], label=key)
        return
    with _connecting():
        _client(host, port).set(key, _as_text(agent.get_agent_metadata()))


def retrieve_agent_metadata(
    agent: nixl_agent,
    key: str,
    host: str = LOOPBACK,
    port: int = DEFAULT_PORT,
    timeout: float = 10.0,
    role_name: str = "process",
    use_nixl_builtin: bool = False,
    remote_agent_name: str | None = None,
) -> str | None:
    """Loads the metadata that another agent left, waiting for it as long as there is none.

    Args:
        agent: that loads it.
        key: under which it lies; with ``use_nixl_builtin`` the label.
        host: of the server.
        port: of the server.
        timeout: seconds to wait.
        role_name: who says so in the log.
        use_nixl_builtin: from etcd, and not from the server.
        remote_agent_name: whose, which etcd must be told.

    Returns:
        The other agent's name; None where it left nothing in time, or etcd wasn't told whose.

    Raises:
        ServerRefused: nobody listens there.
    """
    if not use_nixl_builtin:
        found = _retrieved(agent, key, _client(host, port), timeout)
    elif remote_agent_name is None:
        _log.error("%s: remote_agent_name says whose metadata etcd is asked for; give it", role_name)
        return None
    else:
        found = _retrieved_builtin(agent, key, timeout, remote_agent_name)
    if found is None:
        _log.error("%s: no metadata under %r within %g s", role_name, key, timeout)
    return found


def publish_descriptors(
    agent: nixl_agent, descs: Any, key: str, host: str = LOOPBACK, port: int = DEFAULT_PORT
) -> None:
    """Leaves a descriptor list, or its ``get_serialized_descs``, for others.

    Raises:
        ServerRefused: nobody listens there.
        PeerRefused: the server doesn't take it.
    """
    blob = descs if isinstance(descs, bytes) else agent.get_serialized_descs(descs)
    with _connecting():
        _client(host, port).set(key, _as_text(blob))


def retrieve_descriptors(agent: nixl_agent, key: str, host: str = LOOPBACK, port: int = DEFAULT_PORT) -> Any:
    """The descriptor list that is there now; None without one.

    Raises:
        ServerRefused: nobody listens there.
    """
    value = get_metadata(key, host, port)
    return None if value is None else agent.deserialize_descs(decoded(key, value))


def read_uint64(addr: int) -> int:
    """The 64-bit number at an address of this process, in the machine's order of bytes."""
    return ctypes.c_uint64.from_address(addr).value


def write_uint64(addr: int, value: int) -> None:
    """Puts a 64-bit number to an address of this process, in the machine's order of bytes."""
    ctypes.c_uint64.from_address(addr).value = value


def _retrieved(agent: nixl_agent, key: str, client: KeyValueClient, timeout_s: float) -> str | None:
    try:
        with _connecting():
            value = client.wait_for(key, timeout_s, server_may_be_late=False)
    except DeadlineExceeded:
        return None
    return agent.add_remote_agent(decoded(key, value)).decode()


def _retrieved_builtin(agent: nixl_agent, label: str, timeout_s: float, name: str) -> str | None:
    end_at = time.monotonic() + timeout_s
    while not agent.check_remote_metadata(name):
        if time.monotonic() >= end_at:
            return None
        agent.fetch_remote_metadata(name, label=label)  # does nothing while it is on its way
        time.sleep(_POLL_S)
    return name


def _client(host: str, port: int) -> KeyValueClient:
    return KeyValueClient(host, port, token=_token())


def _token() -> str | None:
    return config.lookup("EXCHANGE_TOKEN")


def _as_text(blob: bytes) -> str:
    return base64.b64encode(blob).decode()


@contextmanager
def _connecting() -> Iterator[None]:
    try:
        yield
    except PeerUnreachable as error:
        if isinstance(error.__cause__, ConnectionRefusedError):
            raise ServerRefused(str(error)) from error
        raise
