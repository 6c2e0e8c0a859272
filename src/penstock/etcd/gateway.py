"""etcd v3 by its JSON gateway: requests to whichever member answers, inside deadlines and limits.

The gateway is part of every etcd since 3.4 and needs nothing but HTTP:
https://etcd.io/docs/v3.5/dev-guide/api_grpc_gateway/
"""

from __future__ import annotations

import contextlib
import http.client
import io
import json
import socket
import ssl
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeVar
from urllib.parse import urlsplit

from penstock.errors import ClosedError, ConfigError, MetadataError, PeerRefused, PeerUnreachable
from penstock.net import Deadline, connect

__all__ = ["Endpoint", "Gateway", "Message", "Stream", "parse_endpoints"]

Message = dict[str, Any]
T = TypeVar("T")

_MOST_BYTES: Final = 64 << 20
_DEFAULT_PORT: Final = 2379
_UNAUTHENTICATED: Final = 16  # gRPC's code


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where one member of etcd answers."""

    host: str
    port: int
    tls: bool

    def __str__(self) -> str:
        return f"{'https' if self.tls else 'http'}://{self.host}:{self.port}"


def parse_endpoints(endpoints: str | Sequence[str]) -> tuple[Endpoint, ...]:
    """``"http://10.0.0.2:2379,http://10.0.0.3:2379"``, or a list of such, or without ``http://``.

    Raises:
        ConfigError: none, or one that isn't an address.
    """
    texts = endpoints.split(",") if isinstance(endpoints, str) else endpoints
    found = tuple(_endpoint(text.strip()) for text in texts if text.strip())
    if not found:
        raise ConfigError(f"etcd's endpoints are {endpoints!r}; give one or more, such as 'http://127.0.0.1:2379'")
    return found


def _endpoint(text: str) -> Endpoint:
    try:
        parts = urlsplit(text if "://" in text else f"http://{text}")
        port = parts.port or _DEFAULT_PORT
    except ValueError as error:
        raise ConfigError(f"etcd's endpoint {text!r} isn't an address: {error}") from error
    rest = parts.path.strip("/") or parts.query or parts.fragment or parts.username
    if parts.scheme not in {"http", "https"} or not parts.hostname or rest:
        raise ConfigError(f"etcd's endpoint {text!r} isn't an address; give http://host:port or https://host:port")
    return Endpoint(parts.hostname, port, parts.scheme == "https")


class _TokenExpired(PeerRefused):
    """The token that a password was changed for isn't known any more."""


class Gateway:
    """Asks a cluster of etcd; any thread may.

    Args:
        endpoints: its members. One that doesn't answer is passed over for the next, within the same deadline.
        user: who asks, where etcd wants to know.
        password: of the user.
        tls: for endpoints that are ``https``; None = the system's certificate authorities.

    Every method raises:
        PeerUnreachable: no member answers.
        PeerRefused: etcd's own error: a wrong password, a request that is too large.
        DeadlineExceeded: the deadline passed.
        MetadataError: what answers isn't etcd's gateway.
        ClosedError: ``close()`` was called, before or meanwhile.
    """

    def __init__(
        self,
        endpoints: Sequence[Endpoint],
        *,
        user: str | None = None,
        password: str | None = None,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self._endpoints = tuple(endpoints)
        self._credentials = None if user is None else {"name": user, "password": password or ""}
        self._token: str | None = None
        needs_tls = tls is None and any(endpoint.tls for endpoint in endpoints)
        self._tls = ssl.create_default_context() if needs_tls else tls
        self._first = 0  # the member that answered last
        self._lock = threading.Lock()
        self._open: set[_Response] = set()
        self._closed = False

    def twin(self) -> Gateway:
        """Another one, to be closed by itself."""
        twin = Gateway(self._endpoints, tls=self._tls)
        twin._credentials = self._credentials
        return twin

    def close(self) -> None:
        """Cut everything that is going on, and take no more. Safe twice."""
        with self._lock:
            self._closed = True
            for response in self._open:
                response.cut()

    def call(self, path: str, request: Message, deadline: Deadline) -> Message:
        """The answer to one request."""
        return self._authorized(deadline, lambda: self._anywhere(path, request, deadline, self._whole))

    def stream(self, path: str, request: Message, deadline: Deadline) -> Stream:
        """The answers to one request that has many; close it."""

        def take(response: _Response) -> Stream:
            response.check_status()
            return Stream(response, self._finish)

        return self._authorized(deadline, lambda: self._anywhere(path, request, deadline, take))

    def _authorized(self, deadline: Deadline, ask: Callable[[], T]) -> T:
        if self._credentials is None:
            return ask()
        if self._token is not None:
            try:
                return ask()
            except _TokenExpired:
                self._token = None
        answer = self._anywhere("/v3/auth/authenticate", self._credentials, deadline, self._whole)
        self._token = str(answer.get("token", ""))
        return ask()

    def _anywhere(self, path: str, request: Message, deadline: Deadline, take: Callable[[_Response], T]) -> T:
        """What ``take`` makes of the first answer that a member gives; each has its share of the time that is left."""
        body = json.dumps(request).encode()
        failures: list[str] = []
        count = len(self._endpoints)
        for tried in range(count):
            index = (self._first + tried) % count
            endpoint = self._endpoints[index]
            share = Deadline(deadline.left_s() / (count - tried), deadline.doing)
            try:
                taken = self._ask(endpoint, path, body, share, take)
            except (OSError, http.client.HTTPException, PeerUnreachable) as error:  # a deadline's is an OSError as well
                if self._closed:
                    raise ClosedError(f"{deadline.doing}: it was closed") from error
                failures.append(f"{endpoint}: {str(error) or type(error).__name__}")
            else:
                self._first = index
                return taken
        if deadline.is_over:
            raise deadline.exceeded("; ".join(failures))
        raise PeerUnreachable(f"{deadline.doing}: no etcd answers; {'; '.join(failures)}")

    def _ask(self, endpoint: Endpoint, path: str, body: bytes, deadline: Deadline, take: Callable[[_Response], T]) -> T:
        response = _Response(endpoint, connect(endpoint.host, endpoint.port, deadline), deadline)
        try:
            with self._lock:
                self._open.add(response)
                if self._closed:
                    raise ClosedError(f"{deadline.doing}: it is closed")
            headers = {"Content-Type": "application/json", "Connection": "close"}
            if self._token and self._credentials:
                headers["Authorization"] = self._token
            response.request(path, body, headers, self._tls)
            return take(response)
        except BaseException:
            self._finish(response)
            raise

    def _whole(self, response: _Response) -> Message:
        response.check_status()
        message = _parsed(response.read(), response.endpoint)
        self._finish(response)
        return message

    def _finish(self, response: _Response) -> None:
        with self._lock:
            self._open.discard(response)
        response.close()


class Stream:
    """Answers that come one by one."""

    def __init__(self, response: _Response, finish: Callable[[_Response], None]) -> None:
        self._response = response
        self._finish = finish

    def messages(self, deadline: Deadline) -> Iterator[Message]:
        """Each ``result``, as it comes.

        Raises:
            DeadlineExceeded: it went on that long.
            PeerUnreachable: the stream ended, or was cut.
            MetadataError: something else came.
        """
        self._response.deadline = deadline
        while True:
            try:
                line = self._response.line()
            except TimeoutError as error:
                raise deadline.exceeded() from error
            except (OSError, http.client.HTTPException) as error:
                raise PeerUnreachable(f"{deadline.doing}: etcd's stream was cut: {error}") from error
            if not line:
                raise PeerUnreachable(f"{deadline.doing}: etcd ended the stream")
            result = _parsed(line, self._response.endpoint).get("result")
            if not isinstance(result, dict):
                raise PeerUnreachable(f"{deadline.doing}: etcd ended the stream: {line[:200]!r}")
            yield result

    def close(self) -> None:
        """End it. Safe twice."""
        self._finish(self._response)


class _Response:
    """One request's connection and what comes back on it, every wait inside ``deadline``."""

    def __init__(self, endpoint: Endpoint, connection: socket.socket, deadline: Deadline) -> None:
        self.endpoint = endpoint
        self.deadline = deadline
        self._connection = connection
        self._http: http.client.HTTPResponse | None = None
        self._allowed_bytes = _MOST_BYTES  # http.client can be made to read beyond what it was asked for

    def request(self, path: str, body: bytes, headers: dict[str, str], tls: ssl.SSLContext | None) -> None:
        """Send it, and read the head of the answer."""
        self._connection.settimeout(self.deadline.left_s())
        if self.endpoint.tls:
            assert tls is not None
            self._connection = tls.wrap_socket(self._connection, server_hostname=self.endpoint.host)
        writer = http.client.HTTPConnection(self.endpoint.host, self.endpoint.port)
        writer.sock = self._connection
        writer.request("POST", path, body, headers)
        self._http = http.client.HTTPResponse(_Timed(self), method="POST")  # type: ignore[arg-type]
        with self._parsing() as head:
            head.begin()

    def check_status(self) -> None:
        """Raise what a status other than 200 means."""
        assert self._http is not None
        status = self._http.status
        if status == http.client.OK:
            return
        text = self.read()
        if status >= http.client.INTERNAL_SERVER_ERROR:
            raise PeerUnreachable(f"it answers {status}: {text[:200]!r}")
        error = _parsed(text, self.endpoint)
        said = f"etcd at {self.endpoint} says: {error.get('message')}"
        if error.get("code") == _UNAUTHENTICATED or "auth store is old" in str(error.get("message")):
            raise _TokenExpired(said)
        raise PeerRefused(said)

    def read(self) -> bytes:
        """All of the body."""
        with self._parsing() as http_:
            data = http_.read(_MOST_BYTES)
            if http_.length:
                raise http.client.IncompleteRead(data, http_.length)
        return data

    def line(self) -> bytes:
        """The next line of the body, empty at its end."""
        self._allowed_bytes = _MOST_BYTES
        with self._parsing() as http_:
            return http_.readline()

    @contextlib.contextmanager
    def _parsing(self) -> Iterator[http.client.HTTPResponse]:
        assert self._http is not None
        try:
            yield self._http
        except MetadataError:
            raise
        except (ValueError, OverflowError) as error:  # of http.client, which believes every size that it is told
            raise http.client.HTTPException(str(error)) from error

    def receive_into(self, buffer: memoryview) -> int:
        """What came next on the connection."""
        self._connection.settimeout(self.deadline.left_s())
        count = self._connection.recv_into(buffer)
        self._allowed_bytes -= count
        if self._allowed_bytes < 0:
            raise MetadataError(f"etcd at {self.endpoint} answers with more than {_MOST_BYTES} bytes")
        return count

    def cut(self) -> None:
        """Wake the thread that reads; any thread."""
        with contextlib.suppress(OSError):
            socket.socket.shutdown(self._connection, socket.SHUT_RDWR)  # under TLS as well, without a farewell

    def close(self) -> None:
        """Let go of the connection. Safe twice."""
        if self._http is not None:
            self._http.close()
        self._connection.close()


class _Timed:
    """What ``http.client`` takes for a socket; reads of it end with the response's deadline."""

    def __init__(self, response: _Response) -> None:
        self._response = response

    def makefile(self, _mode: str) -> io.BufferedReader:
        """The file that is read."""
        return io.BufferedReader(_Raw(self._response))


class _Raw(io.RawIOBase):
    def __init__(self, response: _Response) -> None:
        self._response = response

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        return self._response.receive_into(memoryview(buffer))


def _parsed(text: bytes, endpoint: Endpoint) -> Message:
    try:
        message = json.loads(text.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise MetadataError(f"what answers at {endpoint} isn't etcd's JSON gateway: {text[:60]!r}") from error
    if not isinstance(message, dict):
        raise MetadataError(f"what answers at {endpoint} isn't etcd's JSON gateway: {text[:60]!r}")
    return message
