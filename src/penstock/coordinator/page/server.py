"""The shell of the page: sockets, deadlines, and how many may look at once. What is answered, ``routes`` decides."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import ssl
from dataclasses import dataclass
from http import HTTPStatus
from typing import Final

from penstock.coordinator.page.http import Answer, BadRequest, Request, answer_head, parse_request
from penstock.coordinator.page.routes import EVENTS, answer_to
from penstock.coordinator.watch import Watch
from penstock.errors import ConfigError
from penstock.net import bind, join_address

__all__ = ["Limits", "PageServer"]

_log = logging.getLogger("penstock.coordinator")
_END_OF_HEAD: Final = b"\r\n\r\n"
_SEND_BUFFER_BYTES: Final = 128 << 10
_AGAIN_MS: Final = 2000  # a browser that lost the connection tries again after so long


@dataclass(frozen=True, slots=True)
class Limits:
    """What one who looks may cost.

    Attributes:
        head_bytes: most in a request.
        request_s: until all of it is here.
        answer_s: until an answer, or one event of a stream, is taken.
        connections: at once.
        streams: of them, those that stay for events.
        event_every_s: seconds between two events of a stream.
    """

    head_bytes: int = 16 << 10
    request_s: float = 5.0
    answer_s: float = 15.0
    connections: int = 256
    streams: int = 100
    event_every_s: float = 1.0


class PageServer:
    """Serves one job until it is closed. Made by ``start``; all of it belongs to the event loop that it was made in.

    Attributes:
        host: it listens on.
        port: it listens on.
    """

    def __init__(self, watch: Watch, token: str | None, limits: Limits) -> None:
        self.host = ""
        self.port = 0
        self._watch = watch
        self._token = token
        self._limits = limits
        self._server: asyncio.Server | None = None
        self._connections: set[asyncio.Task[None]] = set()
        self._streams = 0
        self._scheme = "http"

    @classmethod
    async def start(
        cls,
        watch: Watch,
        host: str = "127.0.0.1",
        port: int = 0,
        *,
        token: str | None = None,
        tls: ssl.SSLContext | None = None,
        limits: Limits = Limits(),
    ) -> PageServer:
        """Serve it.

        Args:
            watch: what is shown; whoever made it runs it.
            host: the address to listen on; beyond loopback only with a token, or with TLS that asks for certificates.
            port: 0 takes a free one.
            token: what whoever looks must know, or None.
            tls: for https.
            limits: of what they may cost.

        Raises:
            ConfigError: the port is taken, the address isn't ours, or everybody could look without a token.
        """
        page = cls(watch, token, limits)
        if token == "":
            raise ConfigError("the token is empty; give one of 16 characters or more, or None where everybody may look")
        listener = _listener(host, port, guarded=token is not None or _asks_for_certificates(tls))
        page._scheme = "http" if tls is None else "https"
        page.host, page.port = listener.getsockname()[:2]
        page._server = await asyncio.start_server(
            page._connected,
            sock=listener,
            ssl=tls,
            limit=limits.head_bytes,
            ssl_handshake_timeout=None if tls is None else limits.request_s,
        )
        return page

    @property
    def url(self) -> str:
        """Where a browser finds it."""
        return f"{self._scheme}://{join_address(self.host, self.port)}/"

    async def close(self) -> None:
        """Serve no more; streams end. Safe twice."""
        if self._server is None:
            return
        self._server.close()
        tasks = list(self._connections)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        try:
            await self._converse(reader, writer)
        except (OSError, TimeoutError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass  # who went away, or was too slow, doesn't hear of it; nor does anybody once this is closed
        except Exception:
            _log.exception("the page failed to answer")
        finally:
            self._connections.discard(task)
            writer.transport.abort()  # what is still to be said was said, or took too long

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        answer: Answer | None
        if len(self._connections) > self._limits.connections:
            answer = Answer.text(HTTPStatus.SERVICE_UNAVAILABLE, "too many look at once; try again", Retry_After="5")
            return await self._give(answer, reader, writer)
        try:
            request = await self._request(reader)
        except BadRequest as error:
            return await self._give(Answer.text(error.status, error.reason), reader, writer)
        async with asyncio.timeout(self._limits.answer_s):
            answer = await answer_to(request, self._watch, self._token)
        if answer is not None:
            return await self._give(answer, reader, writer, bodiless=request.method == "HEAD")
        if self._streams >= self._limits.streams:
            answer = Answer.text(
                HTTPStatus.SERVICE_UNAVAILABLE,
                f"{self._limits.streams} look already, which is all that may; {EVENTS} is full",
                Retry_After="5",
            )
            return await self._give(answer, reader, writer)
        self._streams += 1
        try:
            await self._stream(writer)
        finally:
            self._streams -= 1

    async def _request(self, reader: asyncio.StreamReader) -> Request:
        try:
            async with asyncio.timeout(self._limits.request_s):
                head = await reader.readuntil(_END_OF_HEAD)
        except asyncio.LimitOverrunError:
            most = self._limits.head_bytes
            status = HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE
            raise BadRequest(status, f"a request has at most {most} bytes here") from None
        except TimeoutError:
            reason = f"no request came within {self._limits.request_s:g} s"
            raise BadRequest(HTTPStatus.REQUEST_TIMEOUT, reason) from None
        except asyncio.IncompleteReadError as error:
            if not error.partial:
                raise
            raise BadRequest(HTTPStatus.BAD_REQUEST, "the request ended before its empty line") from None
        return parse_request(head)

    async def _give(
        self, answer: Answer, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, bodiless: bool = False
    ) -> None:
        head = answer_head(answer.status, answer.content_type, len(answer.body), answer.headers)
        await self._send(writer, head if bodiless else head + answer.body)
        if writer.can_write_eof():
            writer.write_eof()
        # A connection that is closed with something unread is reset, and the answer may be lost with it.
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(min(1.0, self._limits.answer_s)):
                for _ in range(64):
                    if not await reader.read(self._limits.head_bytes):
                        break

    async def _stream(self, writer: asyncio.StreamWriter) -> None:
        """Server-sent events (the HTML standard, 9.2), one snapshot each; who is slow misses some."""
        head = answer_head(HTTPStatus.OK, "text/event-stream; charset=utf-8", None, {})
        await self._send(writer, head + b"retry: %d\n\n" % _AGAIN_MS)
        while True:
            await self._send(writer, b"data: %b\n\n" % await self._watch.text())
            await asyncio.sleep(max(self._limits.event_every_s, self._watch.cost_s))

    async def _send(self, writer: asyncio.StreamWriter, data: bytes) -> None:
        """Until the kernel has it; memory of one answer is all that somebody slow can hold."""
        writer.transport.set_write_buffer_limits(high=0)
        writer.write(data)
        async with asyncio.timeout(self._limits.answer_s):
            await writer.drain()


def _listener(host: str, port: int, *, guarded: bool) -> socket.socket:
    remedy = "give the coordinator a token, or the page an address such as 127.0.0.1:50052"
    try:
        listener = bind(host, port, what="a page", guarded=guarded, remedy=remedy)
    except (OSError, OverflowError, UnicodeError) as error:
        raise ConfigError(f"a page can't be served on {host}:{port}: {error}; choose another --page-addr") from error
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER_BYTES)  # its connections inherit it
    return listener


def _asks_for_certificates(tls: ssl.SSLContext | None) -> bool:
    return tls is not None and tls.verify_mode == ssl.CERT_REQUIRED
