"""A small key-value server, for agents that start together and must find each other.

The protocol is JSON, one object on a line, as many lines on a connection as one likes::

    {"cmd": "SET", "key": k, "value": v}   {"status": "OK"}
    {"cmd": "GET", "key": k}               {"status": "OK", "value": v}, or ERROR "Key 'k' not found"
    {"cmd": "CLEAR"}                       {"status": "OK"}; every key is gone
    {"cmd": "DELETE", "prefix": p}         {"status": "OK"}; every key that begins so is gone

An error is ``{"status": "ERROR", "message": text}``. ``null`` as a value is the same as no value. A server with a token
answers only requests that have it in a field ``"token"``.
"""

from __future__ import annotations

import hmac
import json
from typing import Any, Final

from penstock.errors import ConfigError
from penstock.net import LOOPBACK
from penstock.transfer.exchange.net import listen, usable_token
from penstock.transfer.exchange.service import Answer, Limits, Server, Service

__all__ = ["DEFAULT_PORT", "KeyValueServer", "KeyValues", "TooMuch"]

DEFAULT_PORT: Final = 9998
MOST_LINE_BYTES: Final = 16 << 20
MOST_KEYS: Final = 65536
MOST_TOTAL_BYTES: Final = 256 << 20
_MOST_KEY_CHARACTERS: Final = 1024
_ENTRY_BYTES: Final = 200  # what an entry costs beside its key and its value
_MOST_PARTS: Final = 1 << 18  # of one line's JSON: a parsed list is a hundred times as large as its text
_OK: Final = b'{"status": "OK"}\n'

Request = dict[str, Any]


class TooMuch(Exception):
    """A key or value that there is no room for; the text says which limit it met."""


class KeyValues:
    """Keys and values inside a limit on both. Values are JSON as text, so that they weigh what they measure.

    Args:
        most_keys: that there may be.
        most_bytes: that keys and values may take together.
    """

    def __init__(self, most_keys: int, most_bytes: int) -> None:
        self.total_bytes = 0
        self._most_keys = most_keys
        self._most_bytes = most_bytes
        self._values: dict[str, bytes] = {}

    def __len__(self) -> int:
        return len(self._values)

    def get(self, key: str) -> bytes | None:
        """A key's value, None without one."""
        return self._values.get(key)

    def set(self, key: str, value: bytes) -> None:
        """Give a key a value, in place of the one it had.

        Raises:
            TooMuch: there is no room for it; the old value stays.
        """
        if len(key) > _MOST_KEY_CHARACTERS:
            raise TooMuch(f"A key has at most {_MOST_KEY_CHARACTERS} characters")
        old = self._values.get(key)
        if old is None and len(self._values) >= self._most_keys:
            raise TooMuch(f"Full: {self._most_keys} keys")
        total_bytes = self.total_bytes + _weight(key, value) - (0 if old is None else _weight(key, old))
        if total_bytes > self._most_bytes:
            raise TooMuch(f"Full: {self._most_bytes} bytes of keys and values")
        self.total_bytes = total_bytes
        self._values[key] = value

    def delete(self, prefix: str) -> None:
        """Forget every key that begins so; all of them when it is empty."""
        for key in [key for key in self._values if key.startswith(prefix)]:
            self.drop(key)

    def drop(self, key: str) -> None:
        """Forget one key; nothing happens when it isn't there."""
        value = self._values.pop(key, None)
        if value is not None:
            self.total_bytes -= _weight(key, value)


def _weight(key: str, value: bytes) -> int:
    return 4 * len(key) + len(value) + _ENTRY_BYTES  # a character of a str takes up to 4 bytes


class KeyValueServer(Server):
    """Serves a ``KeyValues`` over TCP, on a thread of its own, until ``close()``.

    Args:
        host: the address to listen on. Whoever reaches it can read and change everything, so beyond loopback it takes a
            token.
        port: to listen on; 0 takes a free one.
        token: a secret that every request must carry; None on loopback only. It travels as it is: on a network that
            others listen to, it protects as little as any password without encryption.
        most_line_bytes: the largest request; a value takes a little less. Larger ones are refused.
        most_keys: that are kept at once; one more is refused.
        most_total_bytes: of keys and values; more are refused.
        limits: on connections, their memory and their time.

    Attributes:
        host: that it listens on.
        port: that it listens on.

    Raises:
        ConfigError: the port is taken, or the address is open to others without a token.
    """

    def __init__(
        self,
        host: str = LOOPBACK,
        port: int = DEFAULT_PORT,
        *,
        token: str | None = None,
        most_line_bytes: int = MOST_LINE_BYTES,
        most_keys: int = MOST_KEYS,
        most_total_bytes: int = MOST_TOTAL_BYTES,
        limits: Limits | None = None,
    ) -> None:
        limits = limits or Limits()
        if most_line_bytes > limits.buffered_bytes:
            raise ConfigError(
                f"most_line_bytes={most_line_bytes} is more than all requests together may take, "
                f"{limits.buffered_bytes}; lower it, or raise Limits.buffered_bytes"
            )
        values = KeyValues(most_keys, most_total_bytes)
        expected = usable_token(token)
        listener = listen(host, port, token, "a key-value server")
        super().__init__(
            Service(listener, lambda: Lines(values, expected, most_line_bytes), limits, "penstock-key-values")
        )


class Lines:
    """The server's side of one connection.

    Args:
        values: what is read and changed.
        token: what each request must carry; empty = nothing.
        most_line_bytes: the longest line.
    """

    def __init__(self, values: KeyValues, token: bytes, most_line_bytes: int) -> None:
        self._values = values
        self._token = token
        self._most_line_bytes = most_line_bytes
        self._searched = 0  # so many bytes of what was received have no newline

    def greeting(self) -> tuple[bytes, ...]:
        """Nothing: the client begins."""
        return ()

    def overloaded(self) -> Answer:
        """What is said when there is no memory for the request."""
        return _refusal("Busy: too many requests are coming in; try again", last=True)

    def answer(self, received: bytearray) -> Answer | None:
        """Take the first line off and answer it; None while there is no whole one."""
        end = received.find(b"\n", self._searched)
        if (end if end >= 0 else len(received)) > self._most_line_bytes:
            return _refusal(f"Line longer than {self._most_line_bytes} bytes", last=True)
        if end < 0:
            self._searched = len(received)
            return None
        line = bytes(memoryview(received)[:end])
        del received[: end + 1]
        self._searched = 0
        try:
            request = _parsed(line)
            return _refusal("Invalid JSON") if request is None else self._answer(request)
        except RecursionError:
            return _refusal("Invalid JSON")

    def _answer(self, request: Request) -> Answer:
        if self._token and not _same(request.get("token"), self._token):
            return _refusal("Wrong or missing token", last=True)
        command = request.get("cmd")
        if command == "SET":
            return self._set(request.get("key"), request.get("value"))
        if command == "GET":
            return self._get(request.get("key"))
        if command == "CLEAR":
            self._values.delete("")
            return Answer((_OK,))
        if command == "DELETE":
            return self._delete(request.get("prefix"))
        return _refusal(f"Unknown command: {str(command)[:100]}")

    def _set(self, key: object, value: object) -> Answer:
        if not isinstance(key, str):
            return _refusal("A key is a string")
        if value is None:
            self._values.drop(key)
            return Answer((_OK,))
        try:
            self._values.set(key, json.dumps(value).encode())
        except TooMuch as full:
            return _refusal(str(full))
        return Answer((_OK,))

    def _get(self, key: object) -> Answer:
        value = self._values.get(key) if isinstance(key, str) else None
        if value is None:
            return _refusal(f"Key '{str(key)[:_MOST_KEY_CHARACTERS]}' not found")
        return Answer((b'{"status": "OK", "value": ', value, b"}\n"))

    def _delete(self, prefix: object) -> Answer:
        if not isinstance(prefix, str) or not prefix:
            return _refusal("A prefix is a string that isn't empty; CLEAR forgets everything")
        self._values.delete(prefix)
        return Answer((_OK,))


def _parsed(line: bytes) -> Request | None:
    """The object on a line, None when there is none."""
    if line.count(b"[") + line.count(b"{") + line.count(b",") > _MOST_PARTS:
        return None
    try:
        request = json.loads(line.decode("utf-8"))
    except ValueError:  # not JSON, not UTF-8, or a number of thousands of digits
        return None
    return request if isinstance(request, dict) else None


def _same(given: object, expected: bytes) -> bool:
    """Whether a token is right, in a time that doesn't tell how nearly it was."""
    return isinstance(given, str) and hmac.compare_digest(given.encode("utf-8", "surrogatepass"), expected)


def _refusal(message: str, *, last: bool = False) -> Answer:
    return Answer((json.dumps({"status": "ERROR", "message": message}).encode() + b"\n",), last)
