"""How two ends of a line meet: who is there, and whether both know the token.

::

    dialer                                  answerer
    HELLO(hello)                ->
                                <-          CHALLENGE(nonce)                 only where a token is set
    PROOF(own nonce, proof)     ->
                                <-          WELCOME or CROSSED (welcome, proof)   or   REFUSED(text)

CROSSED says: you are welcome, and we have another line with you, or are making one; use that. A proof is an HMAC of the
token over both nonces and who says it, so the token itself never travels. Without a token HELLO is answered at once. A
HELLO without the flag ``ANSWER`` (HMC's own) is taken and not answered.
"""

from __future__ import annotations

import hmac
import secrets
from collections.abc import Callable

from penstock.compat.hmc.line import STRUCT, Frame, Line
from penstock.errors import MetadataError, PeerRefused

__all__ = ["HELLO_LIMIT", "answer", "dial", "hello", "refuse"]

HELLO = 0x8000
ANSWER = 0x4000
CHALLENGE = 0x2000
PROOF = 0x1000
WELCOME = 0x0800
REFUSED = 0x0400
CROSSED = 0x0200

HELLO_LIMIT = 64
_NONCE_BYTES = 16
_TEXT_LIMIT = 1024


def dial(line: Line, introduction: bytes, token: str, deadline: float) -> tuple[bytes, bool]:
    """Introduces the dialer; returns how the other end introduces itself, and whether this line is to be used.

    Raises:
        PeerRefused: the other end doesn't want us, or doesn't know the token.
        MetadataError: it answers with something else.
        DeadlineExceeded: it doesn't answer in time.
        PeerLost: it closed the line.
    """
    line.send(Frame(STRUCT, HELLO | ANSWER, introduction), deadline)
    reply = _receive(line, deadline)
    proof = b""
    if reply.flags == CHALLENGE:
        if not token:
            raise PeerRefused(f"{line.name} asks for a token; give both sessions the same one")
        nonces = reply.payload + secrets.token_bytes(_NONCE_BYTES)
        line.send(Frame(STRUCT, PROOF, nonces[len(reply.payload) :] + _proof(token, b"dialer", nonces)), deadline)
        reply = _receive(line, deadline)
        proof = _proof(token, b"answerer", nonces)
    elif token and reply.flags in (WELCOME, CROSSED):
        raise PeerRefused(f"{line.name} has no token, and this session has one; give both the same")
    if reply.flags not in (WELCOME, CROSSED):
        raise MetadataError(f"{line.name} answered with flags {reply.flags:#06x}; is it a session's port?")
    welcome, shown = (reply.payload[: -len(proof)], reply.payload[-len(proof) :]) if proof else (reply.payload, b"")
    if not hmac.compare_digest(shown, proof):
        raise PeerRefused(f"{line.name} doesn't know this session's token; give both the same")
    return welcome, reply.flags == WELCOME


def hello(line: Line, deadline: float) -> tuple[bytes, bool]:
    """What a dialer says of itself, and whether it wants an answer."""
    frame = line.receive(deadline, limit=HELLO_LIMIT)
    if frame.kind != STRUCT or not frame.flags & HELLO:
        raise MetadataError(f"{line.name} began with kind {frame.kind}, flags {frame.flags:#06x}, not with HELLO")
    return frame.payload, bool(frame.flags & ANSWER)


def answer(
    line: Line, introduction: bytes, token: str, deadline: float, *, admit: Callable[[], bool], wanted: bool = True
) -> bool:
    """Answers a HELLO, after a look whether the dialer knows the token.

    Args:
        line: where HELLO came from.
        introduction: who we are.
        token: what the dialer has to know; empty = nothing.
        deadline: for all of it.
        admit: called before the dialer is told that it is welcome, so that what it does next finds it; False = we have
            another line with it.
        wanted: whether the dialer reads answers.

    Returns:
        What ``admit`` returned.

    Raises:
        PeerRefused: it doesn't know the token; it has been told so.
    """
    proof = _checked(line, token, deadline, wanted) if token else b""
    admitted = admit()
    if wanted:
        line.send(Frame(STRUCT, WELCOME if admitted else CROSSED, introduction + proof), deadline)
    return admitted


def refuse(line: Line, text: str, deadline: float) -> None:
    """Tells a dialer why it isn't wanted."""
    line.send(Frame(STRUCT, REFUSED, text.encode()[:_TEXT_LIMIT]), deadline)


def _checked(line: Line, token: str, deadline: float, wanted: bool) -> bytes:
    """Our own proof, once the dialer has given its."""
    if wanted:
        nonce = secrets.token_bytes(_NONCE_BYTES)
        line.send(Frame(STRUCT, CHALLENGE, nonce), deadline)
        reply = line.receive(deadline, limit=HELLO_LIMIT)
        nonces, shown = nonce + reply.payload[:_NONCE_BYTES], reply.payload[_NONCE_BYTES:]
        if reply.flags == PROOF and hmac.compare_digest(shown, _proof(token, b"dialer", nonces)):
            return _proof(token, b"answerer", nonces)
    refuse(line, "it doesn't know the token; give both sessions the same one", deadline)
    raise PeerRefused(f"{line.name} doesn't know the token")


def _receive(line: Line, deadline: float) -> Frame:
    frame = line.receive(deadline, limit=_TEXT_LIMIT)
    if frame.kind == STRUCT and frame.flags == REFUSED:
        raise PeerRefused(f"{line.name} refused: {frame.payload.decode(errors='replace')}")
    if frame.kind != STRUCT:
        raise MetadataError(f"{line.name} answered with kind {frame.kind}; is it a session's port?")
    return frame


def _proof(token: str, who: bytes, nonces: bytes) -> bytes:
    return hmac.digest(token.encode(), who + nonces, "sha256")
