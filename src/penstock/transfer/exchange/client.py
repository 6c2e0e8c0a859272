"""The key-value server's client, and the exchange that agents make of it."""

from __future__ import annotations

import base64
import binascii
import json
import random
from typing import Any, Final

from penstock.errors import (
    ConfigError,
    DeadlineExceeded,
    MetadataError,
    PeerRefused,
    PeerUnreachable,
    PenstockError,
)
from penstock.net import LOOPBACK, Deadline, connect
from penstock.transfer.exchange.base import agent_prefix, key_of
from penstock.transfer.exchange.net import receive_line, send_all, usable_token
from penstock.transfer.exchange.server import DEFAULT_PORT

__all__ = ["KeyValueClient", "KeyValueExchange", "decoded"]

_MOST_REPLY_BYTES: Final = 64 << 20
_FIRST_PAUSE_S: Final = 0.01
_LONGEST_PAUSE_S: Final = 0.5


class KeyValueClient:
    """Asks a ``KeyValueServer``; each request is a connection of its own, so any thread may ask.

    Args:
        host: where the server is.
        port: where the server is.
        token: the server's, if it has one.
        timeout_s: the deadline of a request that isn't given one, connecting included.

    Every method raises:
        PeerUnreachable: nothing answers there, or it ended before it answered.
        PeerRefused: the server's error: a wrong token, a value that is too large, no room.
        DeadlineExceeded: it didn't answer in time.
        MetadataError: what answers there isn't such a server.
    """

    def __init__(
        self, host: str = LOOPBACK, port: int = DEFAULT_PORT, *, token: str | None = None, timeout_s: float = 5.0
    ) -> None:
        usable_token(token)
        self.host = host
        self.port = port
        self.timeout_s = timeout_s
        self._token = token

    def set(self, key: str, value: Any, *, timeout_s: float | None = None) -> None:
        """Give a key a value: anything that JSON knows. None takes its value away."""
        self._ask(f"setting {key!r}", {"cmd": "SET", "key": key, "value": value}, timeout_s)

    def get(self, key: str, *, timeout_s: float | None = None) -> Any:
        """A key's value now, None without one."""
        doing = f"getting {key!r}"
        reply = self._reply(doing, {"cmd": "GET", "key": key}, timeout_s)
        if reply.get("status") == "ERROR" and reply.get("message") == f"Key '{key}' not found":
            return None
        return self._accepted(doing, reply).get("value")

    def clear(self, *, timeout_s: float | None = None) -> None:
        """Take every key away."""
        self._ask("clearing", {"cmd": "CLEAR"}, timeout_s)

    def delete(self, prefix: str, *, timeout_s: float | None = None) -> None:
        """Take every key away that begins so."""
        self._ask(f"deleting {prefix!r}", {"cmd": "DELETE", "prefix": prefix}, timeout_s)

    def wait_for(self, key: str, timeout_s: float, *, server_may_be_late: bool = True) -> Any:
        """A key's value, as soon as it has one.

        Args:
            key: whose.
            timeout_s: how long to ask again: 10 ms after the first time, then more and more rarely.
            server_may_be_late: whether to go on asking while nothing answers there.

        Raises:
            DeadlineExceeded: it had none in time.
            PeerUnreachable: nothing answered, up to the end; or once, where the server mustn't be late.
        """
        deadline = Deadline(timeout_s, f"waiting for {key!r} on {self.host}:{self.port}")
        pause_s = _FIRST_PAUSE_S
        while True:
            failure: PenstockError | None = None
            try:
                value = self.get(key, timeout_s=min(self.timeout_s, deadline.left_s()))
                if value is not None:
                    return value
            except PeerUnreachable as error:
                if not server_may_be_late:
                    raise
                failure = error
            except DeadlineExceeded as error:  # of this one request
                failure = deadline.exceeded(str(error))
            if not deadline.pause(pause_s * random.uniform(0.7, 1.3)):  # who came together doesn't stay together
                raise failure or deadline.exceeded("it has no value")
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)

    def _ask(self, doing: str, request: dict[str, Any], timeout_s: float | None) -> dict[str, Any]:
        return self._accepted(doing, self._reply(doing, request, timeout_s))

    def _reply(self, doing: str, request: dict[str, Any], timeout_s: float | None) -> dict[str, Any]:
        deadline = Deadline(self.timeout_s if timeout_s is None else timeout_s, f"{doing} on {self.host}:{self.port}")
        line = _line(doing, request if self._token is None else {**request, "token": self._token})
        with connect(self.host, self.port, deadline) as connection:
            send_all(connection, line, deadline)
            answer = receive_line(connection, _MOST_REPLY_BYTES, deadline)
        try:
            reply = json.loads(answer.decode("utf-8"))
        except (ValueError, RecursionError) as error:
            raise self._not_a_server(answer) from error
        if not isinstance(reply, dict):
            raise self._not_a_server(answer)
        return reply

    def _accepted(self, doing: str, reply: dict[str, Any]) -> dict[str, Any]:
        status = reply.get("status")
        if status == "ERROR":
            raise PeerRefused(f"{doing}: the server on {self.host}:{self.port} says: {reply.get('message')}")
        if status != "OK":
            raise self._not_a_server(str(reply).encode("utf-8", "replace"))
        return reply

    def _not_a_server(self, said: bytes) -> MetadataError:
        return MetadataError(f"what answers on {self.host}:{self.port} isn't a key-value server: {said[:60]!r}")


class KeyValueExchange:
    """An ``Exchange`` on a key-value server: blobs lie there in base64, under ``agent/label``.

    Args:
        client: of the server.
    """

    def __init__(self, client: KeyValueClient) -> None:
        self._client = client

    def publish(self, agent_name: str, label: str, blob: bytes, *, timeout_s: float | None = None) -> None:
        """See ``Exchange``."""
        self._client.set(key_of(agent_name, label), base64.b64encode(blob).decode(), timeout_s=timeout_s)

    def retrieve(self, agent_name: str, label: str, timeout_s: float) -> bytes:
        """See ``Exchange``. A server that isn't there yet is waited for."""
        return decoded(agent_name, self._client.wait_for(key_of(agent_name, label), timeout_s))

    def remove(self, agent_name: str, *, timeout_s: float | None = None) -> None:
        """See ``Exchange``."""
        self._client.delete(agent_prefix(agent_name), timeout_s=timeout_s)


def decoded(name: str, value: object) -> bytes:
    """A blob that travelled in base64.

    Raises:
        MetadataError: it isn't any.
    """
    try:
        if isinstance(value, str):
            return base64.b64decode(value, validate=True)
    except (binascii.Error, ValueError) as error:
        raise MetadataError(f"what was published for {name!r} isn't base64: {error}") from error
    raise MetadataError(f"what was published for {name!r} is {type(value).__name__}, not base64 in a string")


def _line(doing: str, request: dict[str, Any]) -> bytes:
    try:
        return json.dumps(request).encode() + b"\n"
    except (TypeError, ValueError, RecursionError) as error:
        raise ConfigError(f"{doing}: the value isn't JSON ({error}); bytes go as base64 in a string") from error
