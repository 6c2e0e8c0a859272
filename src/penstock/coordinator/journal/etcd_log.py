"""How a journal lies in etcd: keys, entries and transactions. Values only.

Commits are a log, as in a file, for etcd takes at most 128 changes and 1.5 MiB at once::

    <prefix>/<job>/leader                    the leader's address; its create revision is the term; gone with its lease
    <prefix>/<job>/head                      which entries count: {"first": 7, "last": 12, ...}
    <prefix>/<job>/entry/<number>/<chunk>    the changes of one commit, packed; the first one has all records

Every write is a transaction on two conditions: that we still lead, and that the head is as we left it. So neither a
leader that was replaced nor a request that was long on its way changes anything. An entry counts from when the head
says so; that, and its last chunk, are written in one transaction.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final
from urllib.parse import quote

from penstock.errors import CoordinatorError
from penstock.etcd import Message
from penstock.etcd.messages import as_text, encoded

__all__ = ["Head", "Keys", "delete_range", "get", "pack", "put", "read_head", "unless_moved", "unpack"]

CHUNK_BYTES: Final = 1 << 19
FORMAT: Final = 1
_LEVEL: Final = 1


@dataclass(frozen=True, slots=True)
class Head:
    """Which entries count.

    Attributes:
        first: the one that has all records.
        last: the newest.
        term: of who wrote it, so that no two leaders write the same head.
    """

    first: int
    last: int
    term: int

    def as_bytes(self) -> bytes:
        """What is written; no other head's."""
        return json.dumps({"format": FORMAT, **asdict(self)}, separators=(",", ":")).encode()


def read_head(data: bytes) -> Head:
    """What ``as_bytes`` gave.

    Raises:
        CoordinatorError: it is something else's, or a later version's.
    """
    try:
        fields = json.loads(data)
        if fields.pop("format") != FORMAT:
            raise ValueError("another version of Penstock wrote it; go on with that")
        return Head(**{name: int(value) for name, value in fields.items()})
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise CoordinatorError(f"the journal's head in etcd can't be read ({error}): {data[:80]!r}") from None


class Keys:
    """The keys of one job, as etcd's requests have them."""

    def __init__(self, prefix: str, job_id: str) -> None:
        self._root = f"{prefix.rstrip('/')}/{quote(job_id, safe='')}"
        self.leader = as_text(encoded(f"{self._root}/leader"))
        self.head = as_text(encoded(f"{self._root}/head"))

    def __str__(self) -> str:
        return self._root

    def entry(self, number: int, chunk: int = 0) -> str:
        """A part of an entry; also where entries from ``number`` on begin."""
        return as_text(encoded(f"{self._root}/entry/{number:016d}/{chunk:06d}"))

    def entries_end(self) -> str:
        """Behind all entries."""
        return as_text(encoded(f"{self._root}/entry0"))

    def number_of(self, key: bytes) -> int:
        """Whose part a key is.

        Raises:
            CoordinatorError: somebody else put it there.
        """
        try:
            return int(key.rsplit(b"/", 2)[1])
        except ValueError:
            raise CoordinatorError(
                f"the journal {self} in etcd is damaged: {key!r} lies in it, which no coordinator wrote; remove that"
            ) from None


def pack(changes: Mapping[str, str | None]) -> list[bytes]:
    """Changes as chunks that etcd takes."""
    data = zlib.compress(json.dumps(changes, separators=(",", ":")).encode("ascii"), _LEVEL)
    return [data[begin : begin + CHUNK_BYTES] for begin in range(0, len(data), CHUNK_BYTES)]


def unpack(chunks: Iterable[bytes]) -> dict[str, str | None]:
    """What ``pack`` took.

    Raises:
        CoordinatorError: it can't be that.
    """
    unpacking = zlib.decompressobj()
    try:
        changes = json.loads(unpacking.decompress(b"".join(chunks)))
        if not unpacking.eof or unpacking.unused_data:
            raise ValueError("it has a chunk too few, or too many")
    except (zlib.error, ValueError) as error:
        raise CoordinatorError(f"an entry of the journal in etcd is damaged: {error}") from None
    if not isinstance(changes, dict):
        raise CoordinatorError(f"an entry of the journal in etcd is damaged: it holds {changes!r:.60}")
    return changes


def unless_moved(keys: Keys, term: int, head: Head | None, changes: list[Message]) -> Message:
    """A transaction for who leads with this term, and found this head or left it; it answers with both if it fails."""
    seen: dict[str, Any]
    if head is None:
        seen = {"target": "CREATE", "create_revision": "0"}
    else:
        seen = {"target": "VALUE", "value": as_text(head.as_bytes())}
    leads = {"key": keys.leader, "result": "EQUAL", "target": "CREATE", "create_revision": str(term)}
    return {
        "compare": [leads, {"key": keys.head, "result": "EQUAL", **seen}],
        "success": changes,
        "failure": [get(keys.leader), get(keys.head)],
    }


def put(key: str, value: bytes, lease_id: str = "0") -> Message:
    """A change in a transaction."""
    return {"request_put": {"key": key, "value": as_text(value), "lease": lease_id}}


def get(key: str) -> Message:
    """A look in a transaction."""
    return {"request_range": {"key": key}}


def delete_range(first: str, end: str) -> Message:
    """A change in a transaction; ``end`` stays."""
    return {"request_delete_range": {"key": first, "range_end": end}}
