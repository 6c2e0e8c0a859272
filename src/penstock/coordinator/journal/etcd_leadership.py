"""Who leads, by etcd: a key that is there as long as its maker says that it lives."""

from __future__ import annotations

import json
import logging
import math
import threading
import time
from typing import Final

from penstock.coordinator.journal.etcd_log import get, put
from penstock.errors import ClosedError, DeadlineExceeded, MetadataError, PeerRefused, PeerUnreachable, PenstockError
from penstock.etcd import Gateway, Message
from penstock.etcd.messages import entries, from_text, number_in, revision_of
from penstock.etcd.watching import await_change
from penstock.net import Deadline, lease_clock

__all__ = ["Leadership", "leader_at"]

_log = logging.getLogger("penstock")

_REQUEST_S: Final = 5.0
_LEAST_S: Final = 1.0  # for one try
_WATCH_S: Final = 1.0  # how long a watch may be silent before another member is asked whether it is right
_RESIGN_S: Final = 1.0
_PAUSE_S: Final = 0.1


class Leadership:
    """One go at leading.

    The key is bound to a lease of etcd's, which a thread of its own renews. By our own clock the lease ends
    when etcd's clock may end it at the earliest: ``ttl_s`` after the last renewal that was answered was *sent*.

    Args:
        gateway: to ask.
        key: which one.
        address: ours.
        ttl_s: after how long without renewal it is gone; etcd may take longer, and takes whole seconds.
    """

    def __init__(self, gateway: Gateway, key: str, address: str, ttl_s: float) -> None:
        self._gateway = gateway
        self._key = key
        self._value = json.dumps({"address": address}).encode()
        self._ttl_s = math.ceil(ttl_s)
        self._lease_id: str | None = None
        self._kept_until = -math.inf
        self._ended = threading.Event()

    @property
    def lost(self) -> bool:
        """See ``Journal.lost``."""
        return self._ended.is_set() or lease_clock() >= self._kept_until

    def gain(self, timeout_s: float | None) -> int | None:
        """Lead, once nobody else does. The term, or None when somebody else still leads.

        Raises:
            PeerUnreachable, DeadlineExceeded: etcd couldn't be asked, up to the end.
            PeerRefused, MetadataError, ClosedError: as of the gateway.
        """
        until = math.inf if timeout_s is None else time.monotonic() + timeout_s
        outage: PenstockError | None = None
        while True:
            try:
                term = self._try(until)
                outage = None
                if term is not None:
                    return term
            except (PeerUnreachable, DeadlineExceeded) as error:
                if outage is None:
                    _log.warning("etcd can't be asked who leads: %s", error)
                outage = error
                self._give_back()  # the key may be ours, and nobody renews it
                self._ended.wait(_PAUSE_S)
            if time.monotonic() >= until:
                if outage is not None:
                    raise outage
                return None

    def resign(self) -> None:
        """Let somebody else lead at once, if etcd can be reached; else when the lease ends. Safe twice, any thread."""
        self._ended.set()
        self._give_back()

    def _try(self, until: float) -> int | None:
        """Take the key, or wait for a while for it to become free."""
        left_s = until - time.monotonic()
        asking = Deadline(min(max(left_s, _LEAST_S), _REQUEST_S), "asking etcd who leads")
        answer = self._gateway.call("/v3/kv/range", {"key": self._key}, asking)
        if not entries(answer, "kvs"):
            return self._take()
        left_s = until - time.monotonic()
        if left_s > 0:
            waiting = Deadline(min(left_s, _WATCH_S), "waiting to lead")
            await_change(self._gateway, self._key, "delete", revision_of(answer) + 1, waiting, silent_s=_WATCH_S)
        return None

    def _take(self) -> int | None:
        began = lease_clock()
        granted = self._gateway.call(
            "/v3/lease/grant", {"TTL": str(self._ttl_s)}, self._within_ttl("asking for a lease")
        )
        self._lease_id = lease_id = str(number_in(granted, "ID"))
        free = {"key": self._key, "target": "CREATE", "result": "EQUAL", "create_revision": "0"}
        request = {
            "compare": [free],
            "success": [put(self._key, self._value, lease_id)],
            "failure": [get(self._key)],
        }
        try:
            answer = self._gateway.call("/v3/kv/txn", request, self._within_ttl("beginning to lead"))
        except PeerRefused as error:
            if "lease not found" not in str(error):
                raise
            raise PeerUnreachable(f"etcd was slower than its lease of {self._ttl_s} s: {error}") from error
        term = revision_of(answer) if answer.get("succeeded") else _own_term(answer, lease_id)
        if term is None:
            self._give_back()
            return None
        self._kept_until = began + self._ttl_s
        threading.Thread(target=self._keep, args=(lease_id,), name="penstock-etcd-leader", daemon=True).start()
        return term

    def _give_back(self) -> None:
        lease_id, self._lease_id = self._lease_id, None
        if lease_id is None:
            return
        gateway = self._gateway.twin()  # ours may be closed
        try:
            gateway.call("/v3/lease/revoke", {"ID": lease_id}, Deadline(_RESIGN_S, "giving a lease of etcd's back"))
        except PenstockError as error:
            _log.info("the lease ends by itself: %s", error)
        finally:
            gateway.close()

    def _within_ttl(self, doing: str) -> Deadline:
        return Deadline(self._ttl_s, doing)

    def _keep(self, lease_id: str) -> None:
        pause_s = self._ttl_s / 3
        while not self._ended.wait(pause_s):
            sent = lease_clock()
            try:
                lives = self._renewed(lease_id)
            except ClosedError:
                return
            except PenstockError as error:
                _log.warning("etcd doesn't renew our lease: %s", error)
                pause_s = _PAUSE_S
                continue
            if not lives:
                self._ended.set()
                return
            self._kept_until, pause_s = sent + self._ttl_s, self._ttl_s / 3

    def _renewed(self, lease_id: str) -> bool:
        """Whether the lease goes on, and the key is there by it: who takes only that away makes somebody else lead."""
        within_ttl = self._within_ttl("staying leader")
        answer = self._gateway.call("/v3/lease/keepalive", {"ID": lease_id}, within_ttl)
        result = answer.get("result")
        if not isinstance(result, dict) or not int(result.get("TTL", 0)) > 0:
            return False
        found = entries(self._gateway.call("/v3/kv/range", {"key": self._key}, within_ttl), "kvs")
        return bool(found) and str(found[0].get("lease")) == lease_id


def leader_at(answer: Message) -> str | None:
    """The address in an answer to a look at the key.

    Raises:
        MetadataError: something else lies there.
    """
    found = entries(answer, "kvs")
    if not found:
        return None
    value = from_text(found[0].get("value", ""))
    try:
        return str(json.loads(value)["address"])
    except (ValueError, TypeError, KeyError) as error:
        raise MetadataError(f"the leader's key in etcd holds {value[:80]!r}, which no coordinator wrote") from error


def _own_term(answer: Message, lease_id: str) -> int | None:
    """The term, where the key is ours: etcd took it before, and its answer was lost."""
    found: list[Message] = []
    for response in entries(answer, "responses"):
        found += entries(response.get("response_range") or {}, "kvs")
    return number_in(found[0], "create_revision") if found and str(found[0].get("lease")) == lease_id else None
