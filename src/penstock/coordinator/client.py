"""A node's line to the coordinator: whoever leads of several, retries within a deadline, typed errors."""

from __future__ import annotations

import hashlib
import json
import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import IO, Any, Final

import grpc

from penstock.coordinator import events
from penstock.coordinator.access import check_token
from penstock.coordinator.credentials import Credentials, fault_of
from penstock.coordinator.line import Line
from penstock.coordinator.wire import convert
from penstock.coordinator.wire import coordinator_pb2 as wire
from penstock.errors import (
    ClosedError,
    ConfigError,
    CoordinatorRefused,
    CoordinatorUnreachable,
    LeaseLost,
    ManifestError,
    ResumeError,
)
from penstock.net import split_address

__all__ = ["Client", "addresses_of"]

_log = logging.getLogger(__name__)

_TRANSIENT: Final = (
    *(grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.ABORTED),
    grpc.StatusCode.CANCELLED,  # not by us: gRPC's word for a server that has too many calls waiting
)
_LOST: Final = ("NOT_FOUND", "FAILED_PRECONDITION")
_CLOSED: Final = "the line to the coordinator is closed; make another one"
_ATTEMPT_S: Final = 5.0  # a host that is gone doesn't even say so
_CONNECT_MS: Final = 2000  # how long a connection may take to be made, whatever gRPC calls it: TLS over a long way
_KEEPALIVE_MS: Final = 6000  # a server of ours takes pings each 5 s
_PING_TIMEOUT_MS: Final = 4000  # after a cut TCP by itself would try again ever more seldom, for minutes
_FIRST_PAUSE_S: Final = 0.05
_MOST_PAUSE_S: Final = 1.0
_TELL_S: Final = 5.0  # who waits for longer wants to know for what
_LOOK_S: Final = 1.0  # for finding out why there is no line
_SURE: Final = 3  # so often at each address; a coordinator that ends looks like one that doesn't want us


def addresses_of(coord_url: str) -> tuple[tuple[str, ...], bool]:
    """The ``host:port`` of each coordinator in a URL, and whether the line is encrypted.

    Args:
        coord_url: ``http://host:port``, ``https://host:port`` or ``host:port``; several with commas between them.

    Raises:
        ConfigError: it isn't that.
    """
    if not isinstance(coord_url, str):
        raise ConfigError(f"coord_url is {coord_url!r}; give a str such as http://127.0.0.1:50051")
    found, schemes = [], set()
    for one in coord_url.split(","):
        scheme, _, rest = one.strip().rpartition("://")
        address = rest.rstrip("/")
        if scheme not in {"", "http", "https"} or not _can_be_reached(address):
            raise ConfigError(
                f"coord_url is {coord_url!r}; give http://host:port, or https:// with TLS, and of several coordinators "
                "all, with commas between them"
            )
        found.append(address)
        schemes.add(scheme == "https")
    if len(schemes) > 1:
        raise ConfigError(f"coord_url is {coord_url!r}; all coordinators of a job have TLS, or none has")
    return tuple(found), schemes.pop()


def _can_be_reached(address: str) -> bool:
    try:
        return split_address(address)[1] > 0
    except ConfigError:
        return False


class Client:
    """Talks to the coordinator that leads. Safe from several threads.

    Args:
        coord_url: see ``addresses_of``.
        job_id: of the job.
        timeout_s: how long a call is retried while nobody who leads answers.
        credentials: who we are.
        max_message_bytes: the largest message that is taken or sent.
    """

    def __init__(
        self,
        coord_url: str,
        job_id: str,
        *,
        timeout_s: float = 60.0,
        credentials: Credentials | None = None,
        max_message_bytes: int = 64 << 20,
    ) -> None:
        self._addresses, encrypted = addresses_of(coord_url)
        self._credentials = credentials or Credentials()
        check_token(self._credentials.token or "")
        encrypted = encrypted or self._credentials.of_tls
        self._channel_credentials = self._credentials.channel() if encrypted else None
        self._job_id = job_id
        self.timeout_s = timeout_s
        self.attempt_s = min(_ATTEMPT_S, timeout_s)  # how long one attempt may take
        self._max_message_bytes = max_message_bytes
        self._lock = threading.Lock()
        self._lines: dict[str, Line] = {}
        self._at = self._addresses[0]
        self._closed = threading.Event()
        self._hung_up = False
        self._last = ""
        self._answered = False  # by anybody
        self._faults: Counter[str] = Counter()  # how often a line couldn't be agreed on, by address

    # What a node says. Each takes ``within_s``: how long it is retried; 0 = one attempt.

    def register(self, event: events.Register, within_s: float | None = None) -> events.Registered:
        """Take part in the job, or ask whether all are there.

        Raises:
            CoordinatorRefused: the job doesn't want this node, or failed.
            CoordinatorUnreachable: nobody who leads answers.
        """
        return convert.read_registered(self._call("RegisterNode", convert.write_register(event), within_s))

    def heartbeat(self, event: events.Heartbeat, within_s: float | None = None) -> None:
        """Say that the node lives. Raises as ``register``."""
        message = convert.write_heartbeat(event, unix_time_ms=_unix_ms())
        self._say("Heartbeat", wire.Saying(heartbeat=message), within_s)

    def request(
        self, event: events.RequestLease, *, lease_ttl_s: float, within_s: float | None = None
    ) -> events.Granted:
        """Ask for leases. Raises as ``register``."""
        answer = self._say("RequestLease", wire.Saying(request=convert.write_request(event)), within_s)
        return convert.read_granted(answer.granted, lease_ttl_s=lease_ttl_s)

    def progress(self, event: events.Progress, within_s: float | None = None) -> None:
        """Report a cursor.

        Raises:
            LeaseLost: the lease has ended, or is another node's.
            CoordinatorRefused, CoordinatorUnreachable: as ``register``.
        """
        message = convert.write_progress(event, unix_time_ms=_unix_ms())
        try:
            self._say("ReportProgress", wire.Saying(progress=message), within_s)
        except CoordinatorRefused as error:
            if error.code in _LOST:
                raise LeaseLost(str(error)) from error
            raise

    def leave(self, event: events.Leave, within_s: float | None = None) -> None:
        """Say that the node ends. Raises as ``register``."""
        self._call("LeaveNode", convert.write_leave(event), within_s)

    def checkpoint(self, within_s: float | None = None) -> dict[str, Any]:
        """What of the job is done. Raises as ``register``."""
        token = self._call("Checkpoint", wire.CheckpointRequest(job_id=self._job_id), within_s).token
        fields: dict[str, Any] = json.loads(token)
        return fields

    def restore(self, checkpoint: Mapping[str, Any], within_s: float | None = None) -> None:
        """Begin the job where a checkpoint says. Raises as ``register``, and ResumeError: it isn't plain JSON."""
        try:
            token = json.dumps(dict(checkpoint))
        except (TypeError, ValueError, RecursionError) as error:
            raise ResumeError(
                f"the state is no plain JSON any more ({error}); give what state_dict() returned"
            ) from None
        self._call("Restore", wire.RestoreRequest(job_id=self._job_id, token=token), within_s)

    def snapshot(self, within_s: float | None = None) -> str:
        """The job as people are shown it: JSON (``snapshot.snapshot_of``). Raises as ``register``."""
        return str(self._call("Snapshot", wire.SnapshotRequest(job_id=self._job_id), within_s).snapshot)

    def manifest(self, manifest_hash: str, out: IO[bytes]) -> int:
        """Write a manifest's text to a file, and hash it.

        Args:
            manifest_hash: which.
            out: where it goes; written from its beginning.

        Returns:
            The version of its format.

        Raises:
            ManifestError: what came has another hash.
            CoordinatorRefused, CoordinatorUnreachable: as ``register``.
        """
        request = wire.GetManifestRequest(job_id=self._job_id, manifest_hash=manifest_hash)

        def streamed(line: Line, timeout_s: float) -> tuple[str, int]:
            return _written(line.call("GetManifestStream", request, timeout_s), "data", out)

        got: str
        version: int
        try:
            got, version = self._retried(streamed, "GetManifestStream", None, attempt_s=self.timeout_s)
        except CoordinatorRefused as error:
            if error.code != "UNIMPLEMENTED":
                raise
            got, version = _written([self._call("GetManifest", request, None)], "manifest_bytes", out)
        if got != manifest_hash:
            raise ManifestError(
                f"the coordinator sent a manifest that hashes to {got}, not to {manifest_hash}; see its store"
            )
        return version

    @property
    def woken(self) -> bool:
        """Whether ``wake`` was called."""
        return self._closed.is_set()

    def wake(self) -> None:
        """End all waits between attempts, and begin none any more."""
        self._closed.set()

    def close(self) -> None:
        """Hang up: who waits for an answer gets ClosedError, and so does whoever asks later. Safe twice."""
        self.wake()
        with self._lock:
            self._hung_up = True
            lines, self._lines = self._lines, {}
        for line in lines.values():
            line.close()

    # How.

    def _call(self, name: str, request: Any, within_s: float | None) -> Any:
        return self._retried(lambda line, timeout_s: line.call(name, request, timeout_s), name, within_s)

    def _say(self, name: str, saying: wire.Saying, within_s: float | None) -> wire.Answer:
        answer: wire.Answer = self._retried(lambda line, timeout_s: line.say(saying, timeout_s), name, within_s)
        if answer.refused:
            raise _refusal(self._at, name, answer.reason, answer.refused)
        return answer

    def _retried(
        self,
        attempt: Callable[[Line, float], Any],
        name: str,
        within_s: float | None,
        *,
        attempt_s: float | None = None,
    ) -> Any:
        within_s = self.timeout_s if within_s is None else within_s
        deadline, pause_s = time.monotonic() + within_s, _FIRST_PAUSE_S
        tell_at = time.monotonic() + _TELL_S
        while True:
            address = self._at
            try:
                answer = attempt(self._line(address), attempt_s or self.attempt_s)
                self._answered = True
                return answer
            except (grpc.RpcError, ValueError) as error:  # the latter of gRPC's, of a channel that is closed
                if self._hung_up:
                    raise ClosedError(_CLOSED) from error
                if not isinstance(error, grpc.RpcError):
                    raise
                leader = self._read(error, name, address)
            left_s = deadline - time.monotonic()
            if left_s <= 0 or self._closed.wait(_FIRST_PAUSE_S if leader else min(pause_s, left_s)):
                raise CoordinatorUnreachable(
                    f"no coordinator that leads answered {name} within {within_s:g} s; the last was {address}: "
                    f"{self._last}. See whether it runs, at {', '.join(self._addresses)}, and allow more time with "
                    "coord_timeout_s"
                )
            if time.monotonic() >= tell_at:
                tell_at = float("inf")  # once is enough
                _log.warning(
                    "no coordinator answers at %s yet (%s); trying for %.0f s more", address, self._last, left_s
                )
            pause_s = min(2 * pause_s, _MOST_PAUSE_S)

    def _read(self, error: grpc.RpcError, name: str, address: str) -> bool:
        """Raise what lasts; else turn to whom to ask next, True when that is said to lead."""
        code, details = error.code(), error.details()
        if code not in _TRANSIENT:
            raise _refusal(address, name, details, code.name) from error
        self._last = f"{code.name}, {details}"
        told = dict(error.trailing_metadata() or ()).get(convert.LEADER_METADATA, "")
        leader = told if isinstance(told, str) else told.decode()
        self._answered = self._answered or bool(leader)
        if not self._answered and code is grpc.StatusCode.UNAVAILABLE:
            self._look_closer(address)
        with self._lock:
            if self._at == address:
                self._at = leader or self._after(address)
        return bool(leader) and leader != address

    def _look_closer(self, address: str) -> None:
        """Raise why there can't be a line to any of them, once that is sure: asking again wouldn't help."""
        encrypted = self._channel_credentials is not None
        fault = fault_of(address, self._credentials, encrypted=encrypted, timeout_s=min(_LOOK_S, self.attempt_s))
        if fault is None:
            self._faults[address] = 0
            return
        self._faults[address] += 1
        self._last = str(fault)
        if all(self._faults[each] >= _SURE for each in self._addresses):
            raise fault

    def _after(self, address: str) -> str:
        known = self._addresses
        return known[(known.index(address) + 1) % len(known)] if address in known else known[0]

    def _line(self, address: str) -> Line:
        with self._lock:
            if self._hung_up:
                raise ClosedError(_CLOSED)
            if address not in self._lines:
                token = self._credentials.token
                metadata = () if token is None else (("authorization", f"Bearer {token}"),)
                self._lines[address] = Line(self._dial(address), metadata)
            return self._lines[address]

    def _dial(self, address: str) -> grpc.Channel:
        options: Sequence[tuple[str, int]] = (
            ("grpc.max_receive_message_length", self._max_message_bytes),
            ("grpc.max_send_message_length", self._max_message_bytes),
            ("grpc.initial_reconnect_backoff_ms", 100),
            ("grpc.min_reconnect_backoff_ms", _CONNECT_MS),
            ("grpc.max_reconnect_backoff_ms", 1000),
            ("grpc.keepalive_time_ms", _KEEPALIVE_MS),
            ("grpc.keepalive_timeout_ms", _PING_TIMEOUT_MS),
            ("grpc.http2.ping_timeout_ms", _PING_TIMEOUT_MS),
            ("grpc.keepalive_permit_without_calls", 1),
            ("grpc.http2.max_pings_without_data", 0),
        )
        if self._channel_credentials is None:
            return grpc.insecure_channel(address, options=options)
        return grpc.secure_channel(address, self._channel_credentials, options=options)


def _written(chunks: Any, field: str, out: IO[bytes]) -> tuple[str, int]:
    out.seek(0)
    out.truncate()
    digest, version = hashlib.sha256(), 0
    for chunk in chunks:
        data = getattr(chunk, field)
        digest.update(data)
        out.write(data)
        version = chunk.schema_version
    out.flush()
    return digest.hexdigest(), version


def _refusal(address: str, name: str, reason: str, code: str) -> CoordinatorRefused:
    what = f"the coordinator at {address} refused {name}: {reason}"
    if code == "UNIMPLEMENTED":
        what = (
            f"what answers at {address} doesn't know {name} ({reason}): it is a coordinator of another version, or "
            "none; see that coord_url is right, and that nodes and coordinator are of one version"
        )
    return CoordinatorRefused(what, code=code)


def _unix_ms() -> int:
    return time.time_ns() // 1_000_000
