"""Metadata in etcd: an ``Exchange`` that outlives its agents, for as many hosts as reach it.

Keys are ``<namespace>/<agent>/<label>``. What is waited for is watched, not polled.
"""

from __future__ import annotations

import logging
import ssl
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from penstock import config
from penstock.errors import DeadlineExceeded, PeerRefused, PeerUnreachable, PenstockError
from penstock.etcd.gateway import Gateway, Message, parse_endpoints
from penstock.etcd.messages import as_text, encoded, entries, from_text, number_in, range_of, revision_of
from penstock.etcd.settings import configured_user
from penstock.etcd.watching import await_change
from penstock.net import Deadline
from penstock.transfer.exchange.base import WHOLE, agent_prefix, key_of

__all__ = ["DEFAULT_NAMESPACE", "EtcdExchange", "RemovalWatch"]

_log = logging.getLogger("penstock")

DEFAULT_NAMESPACE: Final = "/nixl/agents/"
_WATCH_S: Final = 2.0  # how long a watch may be silent before another member is asked whether it is right
_LISTEN_S: Final = 10.0  # the same where removals are watched, which miss nothing in between
_REQUEST_S: Final = 5.0
_FIRST_PAUSE_S: Final = 0.02
_LONGEST_PAUSE_S: Final = 0.5


class EtcdExchange:
    """An ``Exchange`` in etcd v3. Any thread may call.

    Args:
        endpoints: ``"http://host:port"``, several in a list or between commas.
        namespace: what all keys begin with. Agents find each other only within the same one.
        user: for an etcd that asks who one is.
        password: of the user.
        tls: for ``https``: ``ssl.create_default_context(cafile=...)``, with ``load_cert_chain`` where etcd wants a
            certificate. None = the system's authorities.
        timeout_s: the deadline of what isn't given one.

    etcd takes blobs of at most 1.5 MiB, unless it was started with a larger ``--max-request-bytes``.

    Raises:
        ConfigError: endpoints that aren't addresses.
    """

    def __init__(
        self,
        endpoints: str | Sequence[str],
        *,
        namespace: str = DEFAULT_NAMESPACE,
        user: str | None = None,
        password: str | None = None,
        tls: ssl.SSLContext | None = None,
        timeout_s: float = 5.0,
    ) -> None:
        self._gateway = Gateway(parse_endpoints(endpoints), user=user, password=password, tls=tls)
        self._namespace = f"{namespace}/"
        self._timeout_s = timeout_s

    @classmethod
    def from_environment(cls) -> EtcdExchange | None:
        """The one that ``PENSTOCK_ETCD_ENDPOINTS`` or ``NIXL_ETCD_ENDPOINTS`` names, None without either.

        Raises:
            ConfigError: what the variables say can't work.
        """
        endpoints = config.lookup("ETCD_ENDPOINTS")
        if endpoints is None:
            return None
        return cls(
            endpoints,
            namespace=config.lookup("ETCD_NAMESPACE") or DEFAULT_NAMESPACE,
            **configured_user(),
        )

    def publish(self, agent_name: str, label: str, blob: bytes, *, timeout_s: float | None = None) -> None:
        """See ``Exchange``."""
        request = {"key": self._key(agent_name, label), "value": as_text(blob)}
        self._gateway.call("/v3/kv/put", request, self._deadline(f"publishing {label!r} of {agent_name!r}", timeout_s))

    def retrieve(self, agent_name: str, label: str, timeout_s: float = 5.0) -> bytes:
        """See ``Exchange``. An etcd that isn't there, or no longer, is waited for as well."""
        key = self._key(agent_name, label)
        deadline = self._deadline(f"waiting for {label!r} of {agent_name!r} in etcd at {self._gateway}", timeout_s)
        pause_s, outage = _FIRST_PAUSE_S, None
        while True:
            try:
                blob, revision = self._look_up(key, deadline)
                if blob is not None:
                    return blob
                outage = None
                await_change(self._gateway, key, "put", revision + 1, deadline, silent_s=_WATCH_S)
            except PeerUnreachable as error:
                outage = error
            except DeadlineExceeded:
                break
            if not deadline.pause(pause_s):
                break
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
        raise outage or deadline.exceeded("nobody published it")

    def remove(self, agent_name: str, *, timeout_s: float | None = None) -> None:
        """See ``Exchange``. Whoever watches for it is told."""
        request = range_of(self._namespace + agent_prefix(agent_name))
        self._gateway.call("/v3/kv/deleterange", request, self._deadline(f"removing {agent_name!r}", timeout_s))

    def watch_removals(self, on_removed: Callable[[str], object]) -> RemovalWatch:
        """Tells when what an agent left is taken away; see ``RemovalWatch``."""
        return RemovalWatch(self._gateway.twin(), self._namespace, on_removed)

    def close(self) -> None:
        """Wake everybody who waits here, with a ``ClosedError``. Safe twice."""
        self._gateway.close()

    def __enter__(self) -> EtcdExchange:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _key(self, agent_name: str, label: str) -> str:
        return as_text(encoded(self._namespace + key_of(agent_name, label)))

    def _deadline(self, doing: str, timeout_s: float | None) -> Deadline:
        return Deadline(self._timeout_s if timeout_s is None else timeout_s, doing)

    def _look_up(self, key: str, deadline: Deadline) -> tuple[bytes | None, int]:
        answer = self._gateway.call("/v3/kv/range", {"key": key}, deadline)
        found = entries(answer, "kvs")
        return (from_text(found[0].get("value", "")) if found else None), revision_of(answer)


@dataclass(slots=True)
class _Followed:
    """A key that is followed. A removal counts only if it is later than the moment at which the key was seen there."""

    agent_name: str
    seen_at: int | None = None  # a revision of etcd
    removed_at: int = 0  # the newest one that we know of


class RemovalWatch:
    """Notices, on a thread of its own, when agents' metadata is removed from etcd.

    It holds through outages: what was removed while etcd couldn't be reached is told afterwards.

    Args:
        gateway: to ask; closed with this.
        namespace: of the keys.
        on_removed: called with the agent's name, on that thread, once for each time that it is followed.
    """

    def __init__(self, gateway: Gateway, namespace: str, on_removed: Callable[[str], object]) -> None:
        self._gateway = gateway
        self._namespace = namespace
        self._on_removed = on_removed
        self._lock = threading.Lock()
        self._followed: dict[str, _Followed] = {}  # by key
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="penstock-etcd-removals", daemon=True)
        self._thread.start()

    def follow(self, agent_name: str, label: str = WHOLE, *, timeout_s: float = 5.0) -> None:
        """Tell when this blob is removed; at once, on this thread, when it already is.

        Raises:
            PeerUnreachable, PeerRefused, DeadlineExceeded, ClosedError: etcd couldn't be asked; it isn't followed.
        """
        key = self._namespace + key_of(agent_name, label)
        followed = _Followed(agent_name)
        with self._lock:
            self._followed[key] = followed
        deadline = Deadline(timeout_s, f"following {label!r} of {agent_name!r}")
        try:
            answer = self._gateway.call("/v3/kv/range", {"key": as_text(encoded(key)), "keys_only": True}, deadline)
            revision, there = revision_of(answer), bool(entries(answer, "kvs"))
        except BaseException:
            self._let_go(key, followed)
            raise
        with self._lock:
            followed.seen_at = revision
        self._found_removed(key, followed, 0 if there else revision + 1)

    def forget(self, agent_name: str) -> None:
        """Don't tell about this agent any more."""
        with self._lock:
            self._followed = {key: each for key, each in self._followed.items() if each.agent_name != agent_name}

    def close(self) -> None:
        """End the thread. Safe twice, and from ``on_removed``."""
        self._closed.set()
        self._gateway.close()
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def __enter__(self) -> RemovalWatch:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _run(self) -> None:
        revision: int | None = None  # what happened before it is known
        pause_s = _FIRST_PAUSE_S
        while not self._closed.is_set():
            try:
                revision = self._survey() if revision is None else self._watch(revision)
                pause_s = _FIRST_PAUSE_S
            except PenstockError as error:
                _log.info("removals in etcd can't be seen now: %s", error)
                pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
            self._closed.wait(pause_s)

    def _survey(self) -> int:
        """Look which of the followed keys are there at all; the revision to go on from."""
        request = {**range_of(self._namespace), "keys_only": True}
        answer = self._gateway.call("/v3/kv/range", request, Deadline(_REQUEST_S, "surveying etcd"))
        revision = revision_of(answer)
        there = {from_text(entry.get("key", "")) for entry in entries(answer, "kvs")}
        with self._lock:
            followed = list(self._followed.items())
        for key, each in followed:
            if encoded(key) not in there:
                self._found_removed(key, each, revision)
        return revision + 1

    def _watch(self, revision: int) -> int | None:
        """Listen for a while; the revision to go on from, None where etcd has forgotten what happened since."""
        # One revision earlier than needed: an etcd that has forgotten up to a removal, and no further, doesn't say so
        # to those who ask from there on, but leaves the removal out (etcd-io/etcd issue 18089).
        create = {**range_of(self._namespace), "start_revision": str(revision - 1), "filters": ["NOPUT"]}
        opening = Deadline(_REQUEST_S, "watching etcd for removals")
        stream = self._gateway.stream("/v3/watch", {"create_request": create}, opening)
        try:
            for message in stream.messages(Deadline(_LISTEN_S, "watching etcd for removals")):
                for event in entries(message, "events"):
                    revision = max(revision, self._take(event) + 1)
                if message.get("canceled"):
                    if message.get("compact_revision"):
                        return None
                    raise PeerRefused(f"etcd ends the watch: {message.get('cancel_reason')}")
        except DeadlineExceeded:
            pass
        finally:
            stream.close()
        return revision

    def _take(self, event: Message) -> int:
        """Note what was removed; the revision at which it was."""
        (entry,) = entries({"kv": [event.get("kv")]}, "kv")
        revision = number_in(entry, "mod_revision")
        if event.get("type") == "DELETE":
            key = from_text(entry.get("key", "")).decode("utf-8", "replace")
            with self._lock:
                followed = self._followed.get(key)
            if followed is not None:
                self._found_removed(key, followed, revision)
        return revision

    def _found_removed(self, key: str, followed: _Followed, revision: int) -> None:
        with self._lock:
            followed.removed_at = max(followed.removed_at, revision)
            counts = followed.seen_at is not None and followed.removed_at > followed.seen_at
        if counts and self._let_go(key, followed):
            try:
                self._on_removed(followed.agent_name)
            except Exception:
                _log.exception("what is to happen when %r is removed failed", followed.agent_name)

    def _let_go(self, key: str, followed: _Followed) -> bool:
        with self._lock:
            ours = self._followed.get(key) is followed
            if ours:
                del self._followed[key]
            return ours
