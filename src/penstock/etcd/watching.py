"""Waiting until something happens to one key of etcd."""

from __future__ import annotations

from typing import Literal, TypeAlias

from penstock.errors import DeadlineExceeded
from penstock.etcd.gateway import Gateway
from penstock.net import Deadline

__all__ = ["await_change"]

_Change: TypeAlias = Literal["put", "delete"]
_UNWANTED: dict[_Change, str] = {"put": "NODELETE", "delete": "NOPUT"}


def await_change(
    gateway: Gateway, key: str, change: _Change, revision: int, deadline: Deadline, *, silent_s: float
) -> None:
    """Return when the key may have been put, or deleted, since a revision; or when nothing was heard for a while.

    Args:
        gateway: to ask.
        key: as it stands in a request.
        change: which one is waited for.
        revision: the first that counts.
        deadline: after which it returns in any case.
        silent_s: after so long another member is to be asked whether this one is right.

    Raises:
        PeerUnreachable, PeerRefused, ClosedError: it can't be watched.
    """
    request = {"create_request": {"key": key, "start_revision": str(revision), "filters": [_UNWANTED[change]]}}
    try:
        stream = gateway.stream("/v3/watch", request, deadline)
    except DeadlineExceeded:
        return
    try:
        for message in stream.messages(deadline.sooner(silent_s)):
            if message.get("events") or message.get("canceled"):
                return
    except DeadlineExceeded:
        return
    finally:
        stream.close()
