"""As much of HTTP/1.1 as a page needs that is only read (RFC 9110, RFC 9112). Pure.

Requests have no body, and each answer ends its connection. What isn't understood is refused, never guessed.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Final

__all__ = ["Answer", "BadRequest", "Request", "answer_head", "parse_request"]

_MAX_LINES: Final = 100
_TOKEN: Final = rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_REQUEST_LINE: Final = re.compile(rb"(%s) ([!-~]+) HTTP/(\d)\.(\d)" % _TOKEN)
_HEADER: Final = re.compile(rb"(%s):([^\x00-\x08\x0a-\x1f\x7f]*)" % _TOKEN)
_ABSOLUTE: Final = re.compile(r"https?://[^/?]*", re.IGNORECASE)
_ONCE: Final = frozenset({"host", "authorization", "content-length", "transfer-encoding"})


class BadRequest(Exception):
    """What came isn't a request that is answered. Never leaves this package.

    Attributes:
        status: of the answer.
        reason: a sentence for whoever sent it.
    """

    def __init__(self, status: HTTPStatus, reason: str) -> None:
        super().__init__(reason)
        self.status = status
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Request:
    """What is asked for.

    Attributes:
        method: as it came.
        path: without the query, which nothing here has a use for.
        headers: by their names in lower case.
    """

    method: str
    path: str
    headers: dict[str, str]


@dataclass(frozen=True, slots=True)
class Answer:
    """A whole answer.

    Attributes:
        status: 200 and so on.
        content_type: of the body.
        body: all of it.
        headers: others than those that every answer has.
    """

    status: HTTPStatus
    content_type: str
    body: bytes
    headers: dict[str, str] = field(default_factory=dict)

    @classmethod
    def text(cls, status: HTTPStatus, text: str, **headers: str) -> Answer:
        """A sentence. Header names are written with ``_`` for ``-``."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return cls(status, "text/plain; charset=utf-8", f"{text}\n".encode(), named)


def parse_request(head: bytes) -> Request:
    """A request's head, with the empty line that ends it.

    Raises:
        BadRequest: it isn't one.
    """
    lines = head.removesuffix(b"\r\n\r\n").split(b"\r\n")
    if len(lines) > _MAX_LINES:
        raise BadRequest(
            HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, f"{len(lines) - 1} headers; at most {_MAX_LINES - 1} are read"
        )
    method, target, version = _request_line(lines[0])
    headers = _headers(lines[1:])
    if version == (1, 1) and "host" not in headers:
        raise BadRequest(HTTPStatus.BAD_REQUEST, "the header Host is missing")
    if headers.get("content-length", "0") != "0" or "transfer-encoding" in headers:
        raise BadRequest(HTTPStatus.BAD_REQUEST, "requests have no body here")
    return Request(method, _path(target), headers)


def _request_line(line: bytes) -> tuple[str, str, tuple[int, int]]:
    match = _REQUEST_LINE.fullmatch(line)
    if match is None:
        raise BadRequest(
            HTTPStatus.BAD_REQUEST, "that isn't an HTTP request; this port serves a page, gRPC has another"
        )
    version = int(match[3]), int(match[4])
    if version not in ((1, 0), (1, 1)):
        raise BadRequest(HTTPStatus.HTTP_VERSION_NOT_SUPPORTED, "HTTP/1.1 is spoken here; gRPC has another port")
    return match[1].decode(), match[2].decode(), version


def _headers(lines: list[bytes]) -> dict[str, str]:
    headers: dict[str, str] = {}
    for line in lines:
        match = _HEADER.fullmatch(line)
        if match is None:
            raise BadRequest(HTTPStatus.BAD_REQUEST, "a header isn't `name: value`")
        name = match[1].decode().lower()
        if name in headers and name in _ONCE:
            raise BadRequest(HTTPStatus.BAD_REQUEST, f"the header {name} came twice")
        headers[name] = match[2].decode("latin-1").strip(" \t")
    return headers


def _path(target: str) -> str:
    absolute = _ABSOLUTE.match(target)
    if absolute is not None:
        target = target[absolute.end() :] or "/"
    elif not target.startswith("/"):
        raise BadRequest(HTTPStatus.BAD_REQUEST, "the target isn't a path; it begins with /")
    return target.partition("?")[0] or "/"


def answer_head(status: HTTPStatus, content_type: str, length: int | None, headers: dict[str, str]) -> bytes:
    """The head of an answer.

    Args:
        status: of it.
        content_type: of its body.
        length: of its body, in bytes; None where it ends when the connection does.
        headers: others.
    """
    lines = {
        "Content-Type": content_type,
        **({} if length is None else {"Content-Length": str(length)}),
        "Cache-Control": "no-store",
        "Connection": "close",
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
        **headers,
    }
    first = f"HTTP/1.1 {status.value} {status.phrase}\r\n"
    return (first + "".join(f"{name}: {value}\r\n" for name, value in lines.items()) + "\r\n").encode("latin-1")
