"""What is answered to a request."""

from __future__ import annotations

import base64
import hashlib
from functools import cache
from http import HTTPStatus
from importlib.resources import files
from typing import Final

from penstock.coordinator.metrics import metrics_text
from penstock.coordinator.page.access import refused
from penstock.coordinator.page.http import Answer, Request
from penstock.coordinator.watch import Watch
from penstock.errors import PenstockError

__all__ = ["EVENTS", "answer_to", "page"]

EVENTS: Final = "/events"
_METHODS: Final = ("GET", "HEAD")


async def answer_to(request: Request, watch: Watch, token: str | None) -> Answer | None:
    """The answer, or None where a stream of events is asked for, and may be had."""
    if request.path == "/health":  # says nothing that a port that can be connected to doesn't say
        return Answer.text(HTTPStatus.OK, "ok")
    refusal = refused(request, token)
    if refusal is not None:
        return refusal
    if request.method not in _METHODS:
        return Answer.text(HTTPStatus.METHOD_NOT_ALLOWED, "the page can only be looked at", Allow=", ".join(_METHODS))
    match request.path:
        case "/":
            return page()
        case "/snapshot":
            return Answer(HTTPStatus.OK, "application/json", await watch.text())
        case "/metrics":
            return await _metrics(watch)
        case "/events" if request.method == "GET":
            return None
    return Answer.text(
        HTTPStatus.NOT_FOUND, f"there is / (the page), /snapshot, {EVENTS}, /metrics and /health, and nothing else"
    )


async def _metrics(watch: Watch) -> Answer:
    try:
        content_type, body = metrics_text(await watch.snapshot(), watch.event_counts)
    except PenstockError as error:
        return Answer.text(HTTPStatus.NOT_IMPLEMENTED, str(error))
    return Answer(HTTPStatus.OK, content_type, body)


@cache
def page() -> Answer:
    """One document with its style and script in it, which are the only ones that a browser may run in it."""
    text, style, script = (files(__package__).joinpath(f"page.{kind}").read_text() for kind in ("html", "css", "js"))
    for name, part in (("style", style), ("script", script)):
        text = text.replace(f"<{name}></{name}>", f"<{name}>{part}</{name}>")
    policy = (
        f"default-src 'none'; connect-src 'self'; img-src data:; style-src {_hash(style)}; script-src {_hash(script)}; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    return Answer(HTTPStatus.OK, "text/html; charset=utf-8", text.encode(), {"Content-Security-Policy": policy})


def _hash(part: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(part.encode()).digest()).decode()}'"
