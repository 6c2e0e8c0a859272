"""What both ends of a channel share: their mail, their deadlines, and how they stop."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Final, TypeVar

from penstock.errors import (
    ClosedError,
    ConfigError,
    DeadlineExceeded,
    MetadataError,
    PeerLost,
    PeerRefused,
    PeerUnreachable,
    PenstockError,
    TransferError,
)
from penstock.transfer.channel.notes import Kind, Note
from penstock.transfer.mail import Box
from penstock.transfer.metadata import AgentMetadata

if TYPE_CHECKING:
    from penstock.transfer.agent import Agent
    from penstock.transfer.peer import Peer

__all__ = ["End"]

Found = TypeVar("Found")

LOOK_EVERY_S: Final = 0.1
"""How long one sleep lasts before it looks whether the peer still lives."""


class End:
    """One end of a channel.

    Subclasses open their box when nothing can fail any more, say what a note means (``_hear``), and close themselves.

    Args:
        agent: whose end it is.
        timeout_s: how long each call may take that isn't given a time of its own; None: the agent's.
    """

    _box: Box

    def __init__(self, agent: Agent, timeout_s: float | None) -> None:
        self.timeout_s = agent.timeout_s if timeout_s is None else timeout_s
        if self.timeout_s <= 0:
            raise ConfigError(f"timeout_s is {timeout_s}; give seconds above 0")
        self._agent = agent
        self._peer: Peer | None = None
        self._peer_topic = b""
        self._closed = False
        self._failure: PenstockError | None = None

    @property
    def peer_name(self) -> str | None:
        """The agent at the other end; None = nobody yet."""
        return self._peer.name if self._peer is not None else None

    @property
    def closed(self) -> bool:
        """Whether this end was closed."""
        return self._closed

    def _agent_of(self, metadata: bytes) -> Peer:
        """The agent that this is the metadata of, as a peer of ours; it may be our own."""
        own = AgentMetadata.from_bytes(metadata).instance == self._agent.instance
        return self._agent.itself if own else self._agent.add_peer(metadata)

    def _hear(self, sender: str, note: Note) -> None:
        raise NotImplementedError

    def _why_not(self) -> str:
        """What else there is to say of a wait that came to nothing."""
        return ""

    def _listen(self) -> None:
        """Deal with all notes that arrived."""
        for sender, body in self._agent.mail.take(self._box):
            try:
                self._hear(sender, Note.from_bytes(body))
            except MetadataError as error:
                self._fail(error)

    def _tell(self, kind: Kind, first: int = 0, *, tail: bytes = b"", timeout_s: float | None = None) -> None:
        assert self._peer is not None
        wait_s = self.timeout_s if timeout_s is None else timeout_s
        self._agent.notify(self._peer, self._wrapped(kind, first, tail=tail), wait_s)

    def _wrapped(self, kind: Kind, first: int = 0, second: int = 0, tail: bytes = b"") -> bytes:
        return self._peer_topic + Note(kind, first, second, tail).to_bytes()

    def _fail(self, error: PenstockError) -> None:
        """From now on this is what every call raises, once nothing is left to give."""
        if self._failure is None:
            self._failure = error

    @contextlib.contextmanager
    def _reaching(self) -> Iterator[None]:
        """Whatever of the peer or its memory can't be reached inside, the channel is at its end.

        Raises:
            PeerLost: the peer ended, or said that it stops.
            TransferError: something else went wrong.
        """
        try:
            yield
        except TransferError as error:
            self._listen()  # it may have said why
            self._fail(self._lost(error) if isinstance(error, (PeerUnreachable, PeerRefused)) else error)
            raise self._reason() from error

    def _lost(self, why: object) -> PeerLost:
        return PeerLost(f"{self.peer_name}, at the other end of the channel, is lost: {why}")

    def _reason(self) -> PenstockError:
        assert self._failure is not None
        return type(self._failure)(*self._failure.args)

    def _check(self) -> None:
        """Whether there is any sense in waiting.

        Raises:
            ClosedError, PeerLost, MetadataError
        """
        if self._closed:
            raise ClosedError(f"this end of the channel with {self.peer_name or 'nobody yet'} was closed")
        if self._failure is not None:
            raise self._reason()
        lost = self._peer.lost if self._peer is not None else None
        if lost:
            # Not raised yet: what it said before it went comes first, and the next step hears it.
            self._fail(self._lost(lost))

    def _wait_for(self, step: Callable[[], Found | None], timeout_s: float | None, what: str) -> Found:
        """Calls ``step`` until it gives something, asleep in between."""
        deadline = self._deadline(timeout_s)
        while (found := step()) is None:
            self._agent.mail.wait(self._box, self._nap(deadline, timeout_s, what))
        return found

    async def _wait_for_async(self, step: Callable[[], Found | None], timeout_s: float | None, what: str) -> Found:
        deadline = self._deadline(timeout_s)
        while (found := step()) is None:
            await self._agent.mail.arrived(self._box, self._nap(deadline, timeout_s, what))
        return found

    def _deadline(self, timeout_s: float | None) -> float:
        return time.monotonic() + (self.timeout_s if timeout_s is None else timeout_s)

    def _nap(self, deadline: float, timeout_s: float | None, what: str) -> float:
        left_s = deadline - time.monotonic()
        if left_s <= 0:
            waited_s = self.timeout_s if timeout_s is None else timeout_s
            raise DeadlineExceeded(f"{what} from {self.peer_name or 'anybody'} within {waited_s:g} s{self._why_not()}")
        return min(left_s, LOOK_EVERY_S)

    def _stop(self, why: str) -> None:
        """Tell the peer that we stop, if there is one that hears it."""
        if self._peer is not None and self._peer_topic and not isinstance(self._failure, PeerLost):
            with contextlib.suppress(PenstockError):
                self._tell(Kind.SHUT, tail=why.encode()[:255])

    def _heard_stop(self, note: Note) -> None:
        why = note.tail[:255].decode(errors="replace")
        self._fail(PeerLost(f"{self.peer_name} stopped at its end of the channel: {why}"))
