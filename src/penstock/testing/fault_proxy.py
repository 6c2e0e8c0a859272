"""A loopback HTTP proxy that goes wrong on request: put it between a client and a real server.

    with FaultProxy("http://127.0.0.1:9000") as proxy:
        proxy.fail_next(2, Fault(status=503))
        proxy.fail_next(1, Fault(cut_after_bytes=1000, reset=True), method="GET")
        ...                                  # use proxy.url in place of the server's
        assert len(proxy.requests) == 4

Requests pass through unchanged, ``Host`` included, so that signed requests stay valid. Every fault is decided
before the request is passed on, in the order in which requests arrive.
"""

from __future__ import annotations

import contextlib
import http.client
import socket
import struct
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self, TypeAlias
from urllib.parse import urlsplit

__all__ = ["Fault", "FaultProxy", "Request", "Rule"]

_UPSTREAM_TIMEOUT_S = 60.0
_PIECE_BYTES = 1 << 16
_HOP_BY_HOP = {"connection", "keep-alive", "transfer-encoding", "content-length"}


@dataclass(frozen=True, slots=True)
class Request:
    """One request as the proxy saw it.

    Attributes:
        index: its place in the order of arrival, from 0.
        method: ``GET``, ``PUT``, …
        path: path and query.
        byte_range: the ``Range`` header, or "".
        size_bytes: length of the request's body.
    """

    index: int
    method: str
    path: str
    byte_range: str
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Fault:
    """What goes wrong with one request; several parts may go wrong at once.

    Attributes:
        status: answer with this status without asking the server.
        body: the body of that answer.
        headers: headers of that answer, beside its length.
        cut_after_bytes: close the connection after so many bytes of the answer's body; its announced length stays.
        reset: close with a TCP reset instead of an orderly end.
        ignore_range: answer a request for a range with 200 and no ``Content-Range``: with the whole object, or with
            the range's bytes where the request is signed and so can't be changed.
        hang: answer nothing until the proxy closes.
        after_bytes: with ``hang``: send so many bytes of the body first.
        bytes_per_s: send the body at about this pace.
        drop_answer: let the server do its work, then reset the connection without an answer.
        delay_s: do so much later whatever is done.
    """

    status: int | None = None
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    cut_after_bytes: int | None = None
    reset: bool = False
    ignore_range: bool = False
    hang: bool = False
    after_bytes: int | None = None
    bytes_per_s: int | None = None
    drop_answer: bool = False
    delay_s: float = 0.0


Rule: TypeAlias = Callable[[Request], Fault | None]
"""Decides what goes wrong with a request; None lets it pass."""


class FaultProxy:
    """The proxy; listens on a free loopback port from construction until ``close``.

    Args:
        upstream: root URL of the real server, ``http://`` only.
    """

    def __init__(self, upstream: str) -> None:
        parts = urlsplit(upstream)
        self._upstream = (parts.hostname or "127.0.0.1", parts.port or 80)
        self._lock = threading.Lock()
        self._rules: list[Rule] = []
        self._requests: list[Request] = []
        self._active = 0
        self._peak = 0
        self.closed = threading.Event()
        self._server = _Server(("127.0.0.1", 0), _Handler)
        self._server.proxy = self
        self._thread = threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, name="fault-proxy", daemon=True
        )
        self._thread.start()

    @property
    def url(self) -> str:
        """Root URL of the proxy."""
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    @property
    def upstream(self) -> tuple[str, int]:
        """Host and port of the real server."""
        return self._upstream

    @property
    def requests(self) -> list[Request]:
        """Every request since the start or the last ``clear``, in order of arrival."""
        with self._lock:
            return list(self._requests)

    @property
    def peak_count(self) -> int:
        """Most requests that were in work at one time since the start or the last ``clear``."""
        with self._lock:
            return self._peak

    def add_rule(self, rule: Rule) -> None:
        """Ask ``rule`` about every request from now on; the first rule that gives a fault wins."""
        with self._lock:
            self._rules.append(rule)

    def fail_next(self, count: int, fault: Fault, *, method: str = "", path_part: str = "") -> None:
        """Apply ``fault`` to the next ``count`` requests with this method whose path contains ``path_part``."""
        left = [count]

        def rule(request: Request) -> Fault | None:
            fits = method in {"", request.method} and path_part in request.path
            if not fits or left[0] == 0:
                return None
            left[0] -= 1
            return fault

        self.add_rule(rule)

    def clear(self) -> None:
        """Forget rules and requests."""
        with self._lock:
            self._rules.clear()
            self._requests.clear()
            self._peak = self._active

    def close(self) -> None:
        """Stop listening, wake everything that hangs, end every connection, and wait for all threads."""
        if not self.closed.is_set():
            self.closed.set()
            self._server.shutdown()
            self._server.server_close()
            self._thread.join(timeout=10)
            self._server.end_connections()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _begin(self, method: str, path: str, byte_range: str, size_bytes: int) -> Fault:
        with self._lock:
            request = Request(len(self._requests), method, path, byte_range, size_bytes)
            self._requests.append(request)
            self._active += 1
            self._peak = max(self._peak, self._active)
            for rule in self._rules:
                fault = rule(request)
                if fault is not None:
                    return fault
            return Fault()

    def _end(self) -> None:
        with self._lock:
            self._active -= 1


class _Server(ThreadingHTTPServer):
    proxy: FaultProxy
    daemon_threads = True
    block_on_close = False

    def __init__(self, *arguments: Any) -> None:
        self._connections: dict[threading.Thread, socket.socket] = {}
        super().__init__(*arguments)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        self._connections[threading.current_thread()] = request
        try:
            super().process_request_thread(request, client_address)
        finally:
            del self._connections[threading.current_thread()]

    def end_connections(self) -> None:
        """A client that keeps its connection for later would otherwise keep a thread of ours."""
        for thread, connection in list(self._connections.items()):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
            thread.join(timeout=10)

    def handle_error(self, request: object, client_address: object) -> None:
        """Clients that give up are what this is for; they are no news."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server
    _in_work = False

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Quiet: ``FaultProxy.requests`` is the log."""

    def _serve(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        proxy = self.server.proxy
        fault = proxy._begin(self.command, self.path, self.headers.get("Range") or "", len(body))
        self._in_work = True
        try:
            self._answer(fault, body)
        finally:
            self._end_once()

    def _end_once(self) -> None:
        """This request is in work no more."""
        if self._in_work:
            self._in_work = False
            self.server.proxy._end()

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = do_OPTIONS = _serve  # noqa: N815

    def _answer(self, fault: Fault, body: bytes) -> None:
        if fault.delay_s:
            self.server.proxy.closed.wait(fault.delay_s)
        if fault.status is not None:
            self.send_response(fault.status)
            for name, value in fault.headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(fault.body)))
            self.end_headers()
            self.wfile.write(b"" if self.command == "HEAD" else fault.body)
        elif fault.hang and fault.after_bytes is None:
            self.server.proxy.closed.wait(_UPSTREAM_TIMEOUT_S)
            self.close_connection = True
        else:
            self._relay(fault, body)

    def _relay(self, fault: Fault, body: bytes) -> None:
        host, port = self.server.proxy.upstream
        upstream = http.client.HTTPConnection(host, port, timeout=_UPSTREAM_TIMEOUT_S)
        drop_range = fault.ignore_range and "Authorization" not in self.headers
        try:
            upstream.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
            for name, value in self.headers.items():
                if not (drop_range and name.lower() == "range"):
                    upstream.putheader(name, value)
            upstream.endheaders(body or None)
            answer = upstream.getresponse()
            if fault.drop_answer:
                answer.read()
                self._hang_up(reset=True)
                return
            self._send_head(answer, fault)
            if self.command != "HEAD":
                self._send_body(answer, fault)
        finally:
            upstream.close()

    def _send_head(self, answer: http.client.HTTPResponse, fault: Fault) -> None:
        left_out = _HOP_BY_HOP | ({"content-range"} if fault.ignore_range else set())
        self.send_response_only(200 if fault.ignore_range else answer.status)
        for name, value in answer.getheaders():
            if name.lower() not in left_out:
                self.send_header(name, value)
        length = answer.getheader("Content-Length")
        if length is not None:
            self.send_header("Content-Length", length)
        elif answer.status not in {204, 304}:  # of unknown length: the end of the connection ends it
            self.send_header("Connection", "close")
            self.close_connection = True
        self.end_headers()

    def _send_body(self, answer: http.client.HTTPResponse, fault: Fault) -> None:
        stops = [at for at in (fault.cut_after_bytes, fault.after_bytes) if at is not None]
        left = min(stops, default=None)
        while left is None or left > 0:
            size = _PIECE_BYTES if left is None else min(left, _PIECE_BYTES)
            if fault.bytes_per_s is not None:
                size = max(1, min(size, fault.bytes_per_s // 10))
            piece = answer.read(size)
            if not piece:
                break
            if fault.bytes_per_s is not None:
                self.server.proxy.closed.wait(0.1)
            if answer.length == 0:
                self._end_once()  # before the client can have it all, and ask for more over another connection
            self.wfile.write(piece)
            left = None if left is None else left - len(piece)
        self.wfile.flush()
        if fault.hang:
            self.server.proxy.closed.wait(_UPSTREAM_TIMEOUT_S)
        if left is not None:
            self._hang_up(reset=fault.reset)

    def _hang_up(self, *, reset: bool) -> None:
        self.close_connection = True
        if reset:  # closing with "linger 0 s" sends RST in place of FIN
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()
