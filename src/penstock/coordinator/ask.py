"""Asks a coordinator how its job is: over its page, or over gRPC, whichever the address is of."""

from __future__ import annotations

import http.client
import json
import ssl
from urllib.parse import urlsplit

from penstock.coordinator.credentials import Credentials
from penstock.coordinator.snapshot import FORMAT, Snapshot
from penstock.errors import ConfigError, CoordinatorRefused, CoordinatorUnreachable
from penstock.net import join_address, split_address

__all__ = ["ask_for_snapshot"]

_MOST_BYTES = 4 << 20


def ask_for_snapshot(
    url: str, *, credentials: Credentials | None = None, job_id: str = "top", timeout_s: float = 5.0
) -> Snapshot:
    """The job as it is now.

    Args:
        url: ``http://host:port``, ``https://host:port`` or ``host:port`` of the coordinator or of its page; of
            several coordinators all, with commas between them.
        credentials: who we are, and how we know that it is ours.
        job_id: as gRPC wants one; any will do.
        timeout_s: until it answers.

    Raises:
        ConfigError: it isn't a URL of that kind, or its TLS and ours don't fit.
        CoordinatorUnreachable: nobody answers there.
        CoordinatorRefused: somebody does, and doesn't tell.
    """
    ours = credentials or Credentials()
    if "," in url:  # several coordinators have no page in common
        return _read(_from_grpc(url, ours, job_id, timeout_s), url)
    host, port, encrypted = _parts(url)
    try:
        text = _from_page(host, port, ours, timeout_s, encrypted=encrypted)
    except (http.client.HTTPException, ConnectionResetError, ssl.SSLError):  # that isn't HTTP/1.1, so it may be gRPC
        text = _from_grpc(url, ours, job_id, timeout_s)
    except OSError as error:
        raise CoordinatorUnreachable(f"no coordinator answers at {url}: {error}; is it running there?") from None
    return _read(text, url)


def _parts(url: str) -> tuple[str, int, bool]:
    try:
        parts = urlsplit(url if "://" in url else f"http://{url}")
        if parts.scheme in ("http", "https") and parts.hostname and parts.port:
            return *split_address(join_address(parts.hostname, parts.port)), parts.scheme == "https"
    except ValueError:  # ConfigError is one
        pass
    raise ConfigError(f"the coordinator's URL is {url!r}; give http://host:port, or https:// with TLS")


def _from_page(host: str, port: int, ours: Credentials, timeout_s: float, *, encrypted: bool) -> str:
    connection = (
        http.client.HTTPSConnection(host, port, timeout=timeout_s, context=ours.context())
        if encrypted
        else http.client.HTTPConnection(host, port, timeout=timeout_s)
    )
    headers = {} if ours.token is None else {"authorization": f"Bearer {ours.token}"}
    try:
        connection.request("GET", "/snapshot", headers=headers)
        answer = connection.getresponse()
        body = answer.read(_MOST_BYTES).decode("utf-8", "replace")
    finally:
        connection.close()
    if answer.status != http.client.OK:
        raise CoordinatorRefused(f"{host}:{port} says: {body.strip()[:300]}", code=_code(answer.status))
    return body


def _code(status: int) -> str:
    return {401: "UNAUTHENTICATED", 404: "NOT_FOUND", 503: "UNAVAILABLE"}.get(status, "INVALID_ARGUMENT")


def _from_grpc(url: str, ours: Credentials, job_id: str, timeout_s: float) -> str:
    from penstock.coordinator.client import Client

    client = Client(url, job_id, timeout_s=timeout_s, credentials=ours)
    try:
        return client.snapshot()
    finally:
        client.close()


def _read(text: str, url: str) -> Snapshot:
    try:
        snapshot = json.loads(text)
        form = snapshot["format"]
    except (ValueError, TypeError, KeyError):
        raise CoordinatorUnreachable(f"what answers at {url} isn't a coordinator") from None
    if form != FORMAT:
        raise CoordinatorUnreachable(f"the coordinator at {url} tells in format {form!r}; this version reads {FORMAT}")
    assert isinstance(snapshot, dict)
    return snapshot
