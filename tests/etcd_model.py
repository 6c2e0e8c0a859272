"""An etcd of one dictionary, as far as journals use it, on a line that loses requests and answers when it is told to.

It answers as etcd's gateway does, so that thousands of courses of events take seconds. That it is like etcd in what
matters is for the tests with a real one to show, which ask for the same things.
"""

from __future__ import annotations

import base64
import itertools
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from penstock.errors import ClosedError, PeerRefused, PeerUnreachable

Message = dict[str, Any]


class Fate(Enum):
    """What becomes of a request; the caller tries again, or gives up."""

    FINE = "it is answered"
    LOST = "it doesn't arrive"
    UNANSWERED = "it arrives, its answer doesn't"
    LATE = "it arrives some time later"
    LOST_AND_OVER = "it doesn't arrive, and the caller gives up"
    UNANSWERED_AND_OVER = "it arrives, its answer doesn't, and the caller gives up"
    LATE_AND_OVER = "it arrives some time later, and the caller gives up"


@dataclass
class Entry:
    value: str
    created: int
    lease: str


@dataclass
class EtcdModel:
    revision: int = 1
    entries: dict[bytes, Entry] = field(default_factory=dict)
    leases: set[str] = field(default_factory=set)
    fates: list[Fate] = field(default_factory=list)  # of the next requests
    late: list[tuple[str, Message]] = field(default_factory=list)
    astray: int = 0  # requests that met another fate than being answered
    ids: Any = field(default_factory=lambda: itertools.count(100))

    def answer(self, path: str, request: Message) -> Message:
        method = path.removeprefix("/v3/").removeprefix("kv/").replace("/", "_")
        answer = getattr(self, f"_{method}")(request)
        return {"header": {"revision": str(self.revision)}, **answer}

    def term(self) -> int:
        """Of who leads; 0 = nobody does."""
        return next((each.created for key, each in self.entries.items() if key.endswith(b"/leader")), 0)

    def expire(self) -> None:
        """Every lease ends."""
        for lease in list(self.leases):
            self._lease_revoke({"ID": lease})

    def _lease_grant(self, request: Message) -> Message:
        lease = str(next(self.ids))
        self.leases.add(lease)
        return {"ID": lease, "TTL": request["TTL"]}

    def _lease_revoke(self, request: Message) -> Message:
        self.leases.discard(request["ID"])
        self.entries = {key: each for key, each in self.entries.items() if each.lease in self.leases | {"0"}}
        self.revision += 1
        return {}

    def _compaction(self, _request: Message) -> Message:
        return {}

    def _range(self, request: Message) -> Message:
        found = sorted(self._keys(request))
        limit = int(request.get("limit", "0")) or len(found)
        kvs = [
            {
                "key": base64.b64encode(key).decode(),
                "value": self.entries[key].value,
                "create_revision": str(self.entries[key].created),
                "lease": self.entries[key].lease,
            }
            for key in found[:limit]
        ]
        return {"kvs": kvs, "more": len(found) > limit}

    def _keys(self, request: Message) -> list[bytes]:
        first = base64.b64decode(request["key"])
        if "range_end" not in request:
            return [first] if first in self.entries else []
        return [key for key in self.entries if first <= key < base64.b64decode(request["range_end"])]

    def _txn(self, request: Message) -> Message:
        succeeded = all(self._holds(each) for each in request["compare"])
        for each in request["success"] if succeeded else []:
            if (put := each.get("request_put")) and put["lease"] not in self.leases | {"0"}:
                raise PeerUnreachable("etcdserver: requested lease not found")
        self.revision += succeeded
        responses = [self._do(each) for each in request["success" if succeeded else "failure"]]
        return {"succeeded": succeeded, "responses": responses}

    def _holds(self, compare: Message) -> bool:
        entry = self.entries.get(base64.b64decode(compare["key"]))
        if compare["target"] == "CREATE":
            return (entry.created if entry else 0) == int(compare["create_revision"])
        return entry is not None and entry.value == compare["value"]

    def _do(self, change: Message) -> Message:
        if put := change.get("request_put"):
            key = base64.b64decode(put["key"])
            created = self.entries[key].created if key in self.entries else self.revision
            self.entries[key] = Entry(put["value"], created, put["lease"])
            return {"response_put": {}}
        if delete := change.get("request_delete_range"):
            for key in self._keys(delete):
                del self.entries[key]
            return {"response_delete_range": {}}
        return {"response_range": self._range(change["request_range"])}


@dataclass
class GatewayModel:
    """Stands in for a ``Gateway``."""

    etcd: EtcdModel
    closed: bool = False

    def call(self, path: str, request: Message, _deadline: object) -> Message:
        if self.closed:
            raise ClosedError("closed")
        fate = self.etcd.fates.pop(0) if self.etcd.fates else Fate.FINE
        if fate is Fate.FINE:
            return self.etcd.answer(path, request)
        self.etcd.astray += 1
        if fate in {Fate.UNANSWERED, Fate.UNANSWERED_AND_OVER}:
            self.etcd.answer(path, request)
        if fate in {Fate.LATE, Fate.LATE_AND_OVER}:
            self.etcd.late.append((path, request))
        raise (PeerRefused if fate.name.endswith("OVER") else PeerUnreachable)(fate.value)

    def twin(self) -> GatewayModel:
        return GatewayModel(self.etcd)

    def close(self) -> None:
        self.closed = True
