"""A journal in etcd: for coordinators that replace each other on other machines."""

from __future__ import annotations

import contextlib
import logging
import ssl
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from penstock import config
from penstock.coordinator.journal.base import apply_changes
from penstock.coordinator.journal.etcd_leadership import Leadership, leader_at
from penstock.coordinator.journal.etcd_log import (
    Head,
    Keys,
    delete_range,
    pack,
    put,
    read_head,
    unless_moved,
    unpack,
)
from penstock.errors import (
    ClosedError,
    CoordinatorError,
    DeadlineExceeded,
    JournalUnavailable,
    MetadataError,
    NotLeader,
    PeerRefused,
    PeerUnreachable,
    PenstockError,
)
from penstock.etcd import Gateway, Message, parse_endpoints
from penstock.etcd.messages import as_text, entries, from_text, revision_of
from penstock.etcd.settings import configured_user
from penstock.net import Deadline

__all__ = ["DEFAULT_PREFIX", "EtcdJournal"]

_log = logging.getLogger("penstock")

DEFAULT_PREFIX: Final = "/penstock"
_TRY_S: Final = 5.0
_FIRST_PAUSE_S: Final = 0.02
_LONGEST_PAUSE_S: Final = 0.5
_PAGE: Final = 64  # chunks in one answer: 32 MiB
_COMPACT_BYTES: Final = 4 << 20
_COMPACT_TIMES: Final = 4
_COMPACT_ENTRIES: Final = 2000


class EtcdJournal:
    """A ``Journal`` in etcd v3; see ``etcd_log`` for how it lies there.

    While etcd has no majority nothing is committed; a leader waits for it for ``timeout_s``, and still leads if it is
    back before the leader's lease ended.

    When the log was written anew, etcd is asked to forget what it held before the time before: a history that nobody
    compacts fills etcd. It needs leave to do so only where etcd has users. All of etcd forgets: where others look back
    in it, give ``forget=False`` and have etcd compact by itself.

    Args:
        endpoints: ``"http://host:port"``, several in a list or between commas.
        job_id: whose records they are.
        address: of this coordinator, for those that follow it.
        prefix: what all keys begin with.
        ttl_s: how long after a leader stood still another one may lead; etcd takes whole seconds, and by default no
            fewer than 2.
        timeout_s: how long etcd is waited for.
        compact_bytes: how long the log may become before it is written anew, where that is more than four times what
            it began with.
        user: for an etcd that asks who one is.
        password: of the user.
        tls: for ``https``; None = the system's authorities.
        forget: whether etcd is asked to forget its history.

    Raises:
        ConfigError: endpoints that aren't addresses.
    """

    def __init__(
        self,
        endpoints: str | Sequence[str],
        *,
        job_id: str,
        address: str,
        prefix: str = DEFAULT_PREFIX,
        ttl_s: float = 3.0,
        timeout_s: float = 30.0,
        compact_bytes: int = _COMPACT_BYTES,
        user: str | None = None,
        password: str | None = None,
        tls: ssl.SSLContext | None = None,
        forget: bool = True,
    ) -> None:
        self._gateway = Gateway(parse_endpoints(endpoints), user=user, password=password, tls=tls)
        self._keys = Keys(prefix, job_id)
        self._address = address
        self._ttl_s = ttl_s
        self._timeout_s = timeout_s
        self._compact_bytes = compact_bytes
        self._closed = threading.Event()
        self._busy = threading.Lock()
        self._leadership: Leadership | None = None
        self._term = 0
        self._head: Head | None = None
        self._records: dict[str, str] = {}
        self._log_bytes = self._whole_bytes = 0
        self._revision = 0  # of etcd, when we wrote last
        self._forgets = forget
        self._forgettable: int | None = None

    @classmethod
    def from_environment(cls, endpoints: str, *, job_id: str, address: str, prefix: str, ttl_s: float) -> EtcdJournal:
        """With the user and certificates of ``PENSTOCK_ETCD_USER`` and the like, and as ``PENSTOCK_ETCD_COMPACT`` says.

        Raises:
            ConfigError: they, or the endpoints, can't be used.
        """
        return cls(
            endpoints,
            job_id=job_id,
            address=address,
            prefix=prefix,
            ttl_s=ttl_s,
            **configured_user(),
            forget=config.flag("ETCD_COMPACT") is not False,
        )

    def lead(self, timeout_s: float | None) -> int | None:
        """See ``Journal``. An etcd that can't be reached is waited for, too."""
        with self._busy, self._failing("beginning to lead"):
            self._end()
            self._leadership = leadership = Leadership(self._gateway, self._keys.leader, self._address, self._ttl_s)
            self._check_open()  # now whoever closes us ends this one
            term = leadership.gain(timeout_s)
            if term is None:
                self._leadership = None
                return None
            self._term = term
            self._take_over()
            return term

    def load(self) -> dict[str, str]:
        """See ``Journal``."""
        with self._busy:
            self._check_leads()
            return dict(self._records)

    def commit(self, changes: Mapping[str, str | None]) -> None:
        """See ``Journal``."""
        with self._busy, self._failing("committing"):
            self._check_leads()
            head = self._head
            number = head.last + 1 if head else 1
            self._log_bytes += self._append(changes, Head(head.first if head else number, number, self._term))
            apply_changes(self._records, changes)
            if self._is_long():
                self._compact()

    def leader(self) -> str | None:
        """See ``Journal``."""
        self._check_open()
        with self._failing("asking who leads", ends=False):
            return leader_at(self._call("/v3/kv/range", {"key": self._keys.leader}, self._deadline("asking who leads")))

    @property
    def lost(self) -> bool:
        """See ``Journal``."""
        leadership = self._leadership
        return leadership is None or leadership.lost

    def close(self) -> None:
        """See ``Journal``."""
        self._closed.set()
        self._gateway.close()  # first: nobody of ours takes the lead after we gave it up
        self._end()

    # Reading.

    def _take_over(self) -> None:
        """Read what counts, and take away what an earlier leader had begun to write."""
        deadline = self._deadline("reading the journal")
        found = entries(self._call("/v3/kv/range", {"key": self._keys.head}, deadline), "kvs")
        self._head = head = read_head(from_text(found[0].get("value", ""))) if found else None
        self._records, self._log_bytes, self._whole_bytes = {}, 0, 0
        begun = delete_range(self._keys.entry(head.last + 1 if head else 0), self._keys.entries_end())
        self._write([begun], head, head, deadline)
        if head is not None:
            self._replay(head, deadline)

    def _replay(self, head: Head, deadline: Deadline) -> None:
        chunks: list[bytes] = []
        number = head.first
        for each, chunk in self._chunks(head, deadline):
            if each != number:
                self._replay_entry(number, chunks, head)
                number, chunks = number + 1, []
            if each != number:
                break
            chunks.append(chunk)
        if number != head.last or not chunks:
            raise CoordinatorError(
                f"the journal {self._keys} in etcd lacks its entry {number} of {head.first} to {head.last}; somebody "
                "took it away. Begin with an empty journal, from a checkpoint if there is one"
            )
        self._replay_entry(number, chunks, head)

    def _replay_entry(self, number: int, chunks: list[bytes], head: Head) -> None:
        apply_changes(self._records, unpack(chunks))
        self._log_bytes += sum(map(len, chunks))
        if number == head.first:
            self._whole_bytes = self._log_bytes

    def _chunks(self, head: Head, deadline: Deadline) -> Iterator[tuple[int, bytes]]:
        """All of the entries, each chunk with its entry's number."""
        begin, end = self._keys.entry(head.first), self._keys.entry(head.last + 1)
        while True:
            request = {"key": begin, "range_end": end, "limit": str(_PAGE)}
            answer = self._call("/v3/kv/range", request, deadline)
            found = entries(answer, "kvs")
            for each in found:
                yield self._keys.number_of(from_text(each.get("key", ""))), from_text(each.get("value", ""))
            if not found or not answer.get("more"):
                return
            begin = as_text(from_text(found[-1].get("key", "")) + b"\0")

    # Writing.

    def _append(self, changes: Mapping[str, str | None], head: Head, *also: Message) -> int:
        """Write an entry, and then, with the last of it, the head that makes it count; how many bytes it has."""
        chunks = pack(changes)
        puts = [put(self._keys.entry(head.last, number), chunk) for number, chunk in enumerate(chunks)]
        deadline = self._deadline("committing")
        for each in puts[:-1]:
            self._write([each], self._head, self._head, deadline)
        self._write([puts[-1], put(self._keys.head, head.as_bytes()), *also], self._head, head, deadline)
        self._head = head
        return sum(map(len, chunks))

    def _write(self, changes: list[Message], before: Head | None, after: Head | None, deadline: Deadline) -> None:
        """One transaction, after which the head is ``after``."""
        answer = self._call("/v3/kv/txn", unless_moved(self._keys, self._term, before, changes), deadline)
        if not answer.get("succeeded") and not (after != before and self._is_head(answer, after)):
            raise NotLeader(f"{self._address} doesn't lead {self._keys} any more: its lease ended, by etcd's clock")
        self._revision = revision_of(answer)

    def _is_head(self, answer: Message, head: Head | None) -> bool:
        """Whether a transaction failed only because it had been done before, and its answer was lost."""
        looks = entries(answer, "responses")
        found = entries(looks[-1].get("response_range") or {}, "kvs") if looks else []
        return head is not None and bool(found) and from_text(found[0].get("value", "")) == head.as_bytes()

    def _is_long(self) -> bool:
        assert self._head is not None
        count = self._head.last - self._head.first
        return count > _COMPACT_ENTRIES or self._log_bytes > max(
            self._compact_bytes, _COMPACT_TIMES * self._whole_bytes
        )

    def _compact(self) -> None:
        """Begin the log anew. It is done beside what was committed, so its failure isn't that of a commit."""
        assert self._head is not None
        number = self._head.last + 1
        earlier = delete_range(self._keys.entry(0), self._keys.entry(number))
        try:
            self._whole_bytes = self._log_bytes = self._append(self._records, Head(number, number, self._term), earlier)
            self._forget()
        except ClosedError:
            raise
        except PenstockError as error:
            _log.error("the journal %s can't be written anew, so this coordinator steps down: %s", self._keys, error)
            self._end()

    def _forget(self) -> None:
        """Let etcd forget the history before the last time that we were here."""
        before, self._forgettable = self._forgettable, self._revision
        if before is None or not self._forgets:
            return
        try:
            self._gateway.call("/v3/kv/compaction", {"revision": str(before)}, Deadline(_TRY_S, "compacting etcd"))
        except ClosedError:
            raise
        except PenstockError as error:
            _log.info("etcd isn't compacted by us: %s", error)

    # What all have in common.

    def _call(self, path: str, request: Message, deadline: Deadline) -> Message:
        """The answer, with as many tries as the deadline allows: what we ask for may be done twice."""
        pause_s = _FIRST_PAUSE_S
        while True:
            try:
                return self._gateway.call(path, request, deadline.sooner(_TRY_S))
            except (PeerUnreachable, DeadlineExceeded):
                if not deadline.pause(pause_s):
                    raise
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)

    def _deadline(self, doing: str) -> Deadline:
        return Deadline(self._timeout_s, f"{doing}: job {self._keys} in etcd")

    def _check_open(self) -> None:
        if self._closed.is_set():
            raise ClosedError(f"the journal {self._keys} is closed")

    def _check_leads(self) -> None:
        self._check_open()
        if self._leadership is None:
            raise NotLeader(f"{self._address} doesn't lead {self._keys}")

    @contextlib.contextmanager
    def _failing(self, doing: str, *, ends: bool = True) -> Iterator[None]:
        """Etcd's errors as a journal's; after them we don't lead any more."""
        try:
            yield
        except BaseException as error:
            if ends:
                self._end()
            if isinstance(error, MetadataError):
                raise CoordinatorError(f"{doing}: {error}") from error
            if isinstance(error, PeerUnreachable | PeerRefused | DeadlineExceeded):
                raise JournalUnavailable(f"{doing}: {error}") from error
            raise

    def _end(self) -> None:
        leadership, self._leadership = self._leadership, None
        if leadership is not None:
            leadership.resign()
