"""Metadata straight from agent to agent: one listens, others fetch from it, send to it, and take back."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
from collections.abc import Sequence
from typing import Final, Protocol

from penstock.errors import MetadataError, PeerRefused, UnknownPeer
from penstock.net import LOOPBACK, Deadline, connect
from penstock.transfer.exchange.frames import (
    HEAD_BYTES,
    MOST_BODY_BYTES,
    NONCE_BYTES,
    Kind,
    frame,
    is_proven,
    parse_head,
)
from penstock.transfer.exchange.net import listen, receive_exactly, send_all, usable_token
from penstock.transfer.exchange.service import Answer, Limits, Server, Service

__all__ = ["Introduced", "Introductions", "MetadataListener", "fetch_metadata", "send_invalidation", "send_metadata"]

_log = logging.getLogger("penstock")

_LIMITS: Final = Limits(buffered_bytes=MOST_BODY_BYTES * 2, idle_timeout_s=5.0)
_TIMEOUT_S: Final = 5.0
_MOST_NAME_BYTES: Final = 4096
_ANSWERS: Final = {Kind.FETCH: Kind.METADATA, Kind.SEND: Kind.DONE, Kind.INVALIDATE: Kind.DONE}


class Introduced(Protocol):
    """What a listener needs of an agent. Called on the listener's thread."""

    @property
    def name(self) -> str:
        """The agent's."""

    def metadata(self) -> bytes:
        """What others may know of it, now."""

    def add_peer(self, blob: bytes, /) -> object:
        """Load what another agent sent."""

    def remove_peer(self, name: str, /) -> object:
        """Forget another agent."""


class MetadataListener(Server):
    """Answers for an agent, on a thread of its own, until ``close()``.

    It gives the agent's metadata to whoever fetches it, loads what is sent, and forgets agents that take theirs back.

    Args:
        agent: for whom. It isn't closed with the listener.
        host: the address to listen on. Metadata lets its holder read and write registered memory, so beyond loopback it
            takes a token.
        port: to listen on; 0 takes a free one.
        token: a secret that both sides know; it doesn't travel. None on loopback only.

    Attributes:
        host: that it listens on.
        port: that it listens on.

    Raises:
        ConfigError: the port is taken, or the address is open to others without a token.
    """

    def __init__(self, agent: Introduced, host: str = LOOPBACK, port: int = 0, *, token: str | None = None) -> None:
        secret = usable_token(token)
        listener = listen(host, port, token, f"the metadata listener of {agent.name!r}")
        super().__init__(Service(listener, lambda: Introductions(agent, secret), _LIMITS, "penstock-metadata"))


class Introductions:
    """The listener's side of one connection: a greeting, one question, its answer.

    Args:
        agent: who is asked.
        token: what the other side must know; empty = nothing.
    """

    def __init__(self, agent: Introduced, token: bytes) -> None:
        self._agent = agent
        self._token = token
        self._nonce = os.urandom(NONCE_BYTES)

    def greeting(self) -> Sequence[bytes]:
        """A nonce that makes every proof a new one."""
        return frame(Kind.GREETING, self._nonce, self._token, self._nonce)

    def overloaded(self) -> Answer:
        """What is said when there is no memory for a question."""
        return self._refusal("too much is being sent here now; try again")

    def answer(self, received: bytearray) -> Answer | None:
        """Take the question off and answer it; None while it isn't whole."""
        if len(received) < HEAD_BYTES:
            return None
        try:
            head = parse_head(bytes(received[:HEAD_BYTES]))
        except MetadataError as error:
            return self._refusal(str(error))
        if len(received) < HEAD_BYTES + head.size:
            return None
        body = bytes(memoryview(received)[HEAD_BYTES : HEAD_BYTES + head.size])
        received.clear()
        if not is_proven(head, body, self._token, self._nonce):
            return self._refusal("the token is wrong or missing")
        try:
            kind, reply = self._reply(head.kind, body)
            return Answer(frame(kind, reply, self._token, self._nonce), last=True)
        except Exception as error:  # of the agent's, which the other side should hear of
            _log.warning("agent %r refused what another one wanted: %s", self._agent.name, error)
            return self._refusal(str(error) or type(error).__name__)

    def _reply(self, kind: Kind, body: bytes) -> tuple[Kind, bytes]:
        if kind is Kind.FETCH:
            wanted = _name(body)
            if wanted not in {"", self._agent.name}:
                raise UnknownPeer(f"this is agent {self._agent.name!r}, not {wanted!r}")
            return Kind.METADATA, self._agent.metadata()
        if kind is Kind.SEND:
            self._agent.add_peer(body)
        elif kind is Kind.INVALIDATE:
            with contextlib.suppress(UnknownPeer):  # it is forgotten already
                self._agent.remove_peer(_name(body))
        else:
            raise MetadataError(f"{kind.name} isn't a question")
        return Kind.DONE, b""

    def _refusal(self, why: str) -> Answer:
        text = why.encode("utf-8", "replace")[:_MOST_NAME_BYTES]
        return Answer(frame(Kind.REFUSED, text, self._token, self._nonce), last=True)


def fetch_metadata(
    agent_name: str | None, host: str, port: int, timeout_s: float = _TIMEOUT_S, *, token: str | None = None
) -> bytes:
    """The metadata of the agent that listens there, for ``Agent.add_peer``.

    Args:
        agent_name: whose it must be; None = whoever it is.
        host: where it listens.
        port: where it listens.
        timeout_s: in all. Connecting has three seconds of it for each address of the host.
        token: the listener's.

    Raises:
        PeerUnreachable: nothing listens there, or it ended before it answered.
        PeerRefused: the token is wrong, or another agent listens there.
        DeadlineExceeded: it didn't answer in time.
        MetadataError: something else listens there.
    """
    name = agent_name or ""
    deadline = Deadline(timeout_s, f"fetching the metadata of {name or 'the agent'!r} at {host}:{port}")
    with connect(host, port, deadline) as connection:
        return _asked(connection, Kind.FETCH, _encoded(name), token, deadline)


def send_metadata(
    blob: bytes, host: str, port: int, timeout_s: float = _TIMEOUT_S, *, token: str | None = None
) -> None:
    """Have the agent that listens there load metadata; when this returns, it has.

    Raises:
        PeerRefused: the token is wrong, or the agent doesn't take this blob.
        PeerUnreachable, DeadlineExceeded, MetadataError: as ``fetch_metadata``.
    """
    deadline = Deadline(timeout_s, f"sending metadata to {host}:{port}")
    with connect(host, port, deadline) as connection:
        _asked(connection, Kind.SEND, bytes(blob), token, deadline)


def send_invalidation(
    name: str, host: str, port: int, timeout_s: float = _TIMEOUT_S, *, token: str | None = None
) -> None:
    """Have the agent that listens there forget an agent; nothing happens if it doesn't know it.

    Raises:
        PeerUnreachable, PeerRefused, DeadlineExceeded, MetadataError: as ``fetch_metadata``.
    """
    deadline = Deadline(timeout_s, f"taking {name!r} back from {host}:{port}")
    with connect(host, port, deadline) as connection:
        _asked(connection, Kind.INVALIDATE, _encoded(name), token, deadline)


def _asked(connection: socket.socket, kind: Kind, body: bytes, token: str | None, deadline: Deadline) -> bytes:
    secret = usable_token(token)
    greeting = parse_head(receive_exactly(connection, HEAD_BYTES, deadline))
    if greeting.kind is not Kind.GREETING or greeting.size != NONCE_BYTES:
        raise MetadataError(f"{deadline.doing}: {greeting.kind.name} where a greeting should be")
    nonce = receive_exactly(connection, NONCE_BYTES, deadline)
    send_all(connection, b"".join(frame(kind, body, secret, nonce)), deadline)
    head = parse_head(receive_exactly(connection, HEAD_BYTES, deadline))
    answer = receive_exactly(connection, head.size, deadline)
    if head.kind is Kind.REFUSED:
        raise PeerRefused(f"{deadline.doing}: it refuses: {answer[:_MOST_NAME_BYTES].decode('utf-8', 'replace')}")
    if not is_proven(head, answer, secret, nonce):
        raise PeerRefused(f"{deadline.doing}: the answer came from somebody who doesn't know the token")
    if head.kind is not _ANSWERS[kind]:
        raise MetadataError(f"{deadline.doing}: {head.kind.name} where {_ANSWERS[kind].name} should be")
    return answer


def _encoded(name: str) -> bytes:
    try:
        data = name.encode()
    except UnicodeEncodeError as error:
        raise MetadataError(f"{name!r} isn't an agent's name: {error.reason}") from error
    if len(data) > _MOST_NAME_BYTES:
        raise MetadataError(f"a name of {len(data)} bytes; at most {_MOST_NAME_BYTES}")
    return data


def _name(body: bytes) -> str:
    if len(body) > _MOST_NAME_BYTES:
        raise MetadataError(f"a name of {len(body)} bytes; at most {_MOST_NAME_BYTES}")
    try:
        return body.decode()
    except UnicodeDecodeError as error:
        raise MetadataError(f"{body[:40]!r} isn't an agent's name") from error
