r"""A journal's file as bytes: what is written and what is read again.

A file begins with who leads, then comes all that was known when it was begun, then one line for each commit::

    <crc32c, 8 hex digits> <number of the line> <bytes of the JSON> <JSON>\n

The checksum is of what follows it up to the newline. JSON holds no newline, so a line can't look like two.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from penstock._core import crc32c
from penstock.coordinator.journal.base import apply_changes
from penstock.errors import CoordinatorError

__all__ = ["Head", "Read", "read_head", "read_journal", "write_line"]

FORMAT: Final = 1


@dataclass(frozen=True, slots=True)
class Head:
    """The first line.

    Attributes:
        job_id: whose records follow.
        term: of the leader that began the file.
        leader: its address.
    """

    job_id: str
    term: int
    leader: str

    def as_json(self) -> dict[str, Any]:
        """What is written."""
        return {"format": FORMAT, "job": self.job_id, "term": self.term, "leader": self.leader}


@dataclass(frozen=True, slots=True)
class Read:
    """What a file holds.

    Attributes:
        head: None = the file is empty.
        records: after all commits.
        commits: how many lines were whole.
        dropped_bytes: at the end, of a commit that was cut off.
    """

    head: Head | None
    records: dict[str, str]
    commits: int
    dropped_bytes: int


def write_line(number: int, content: Mapping[str, Any]) -> bytes:
    """One line of a file."""
    text = json.dumps(content, separators=(",", ":")).encode("ascii")
    body = b"%d %d %s" % (number, len(text), text)
    return b"%08x %s\n" % (crc32c(body), body)


def read_journal(data: bytes) -> Read:
    """All that is in a file.

    A last line that was cut off is a commit that nobody was told of, and dropped. Anything else that isn't whole was
    damaged later, and what was lost may matter.

    Raises:
        CoordinatorError: it is damaged, or not a journal.
    """
    if not data:
        return Read(None, {}, 0, 0)
    records: dict[str, str] = {}
    head: Head | None = None
    number, begin = 0, 0
    while begin < len(data):
        end = data.find(b"\n", begin)
        content = None if end < 0 else _content(data[begin:end], number)
        if content is None:
            break
        if number == 0:
            head = _head_of(content)
        else:
            apply_changes(records, content)
        number, begin = number + 1, end + 1
    if number < 2 or not _is_cut(data[begin:]):  # the first two came into place together, by a rename
        raise CoordinatorError(
            f"line {number + 1} of the journal, at byte {begin} of {len(data)}, is damaged, or it isn't one: "
            f"{data[begin : begin + 60]!r}; put a copy in its place, or begin with an empty journal from a checkpoint"
        )
    return Read(head, records, number - 2, len(data) - begin)


def read_head(data: bytes) -> Head | None:
    """The first line of a file, from its first bytes; None = there is none."""
    line, newline, _ = data.partition(b"\n")
    content = _content(line, 0) if newline else None
    return None if content is None else _head_of(content)


def _content(line: bytes, number: int) -> dict[str, Any] | None:
    """What a line says, None if it isn't whole or not this one."""
    found = _parts(line)
    if found is None or found[0] != number:
        return None
    content = json.loads(found[1])
    return content if isinstance(content, dict) else None


def _parts(line: bytes) -> tuple[int, bytes] | None:
    """Number and JSON of a whole line."""
    crc, _, body = line.partition(b" ")
    number, _, rest = body.partition(b" ")
    size, _, text = rest.partition(b" ")
    if crc != b"%08x" % crc32c(body) or size != b"%d" % len(text):
        return None
    return int(number), text


def _is_cut(rest: bytes) -> bool:
    """Whether this may be what is left of one line that didn't get to the disk in whole, or nothing."""
    if b"\n" in rest[:-1]:
        return False  # there were two lines
    parts = rest.split(b" ", 3)
    if len(parts) < 4 or not parts[2].isdigit():
        return True
    behind = parts[3][int(parts[2]) :]
    is_whole = bool(behind.strip(b"\0")) and _parts(rest[: -len(behind)]) is not None
    return not is_whole  # a whole line has lost its newline to something else


def _head_of(content: dict[str, Any]) -> Head:
    if content.get("format") != FORMAT:
        raise CoordinatorError(
            f"the journal is of format {content.get('format')!r}, this version of Penstock reads {FORMAT}; "
            "go on with the version that wrote it"
        )
    return Head(str(content["job"]), int(content["term"]), str(content["leader"]))
