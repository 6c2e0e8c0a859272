"""The calls of ``mx8.v0.Coordinator``: messages into events for the seat, its answers into messages and statuses."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from functools import partial
from typing import Any, Final, NoReturn, Protocol, TypeVar

import grpc

from penstock.coordinator.conversations import Conversations
from penstock.coordinator.events import Code, Event, Granted, Refused, Registered, Reply
from penstock.coordinator.manifests import ManifestText
from penstock.coordinator.seat import Seat
from penstock.coordinator.state import State
from penstock.coordinator.token import checkpoint_of, read_checkpoint
from penstock.coordinator.watch import Watch
from penstock.coordinator.wire import convert
from penstock.coordinator.wire import coordinator_pb2 as wire
from penstock.coordinator.wire.coordinator_pb2_grpc import CoordinatorServicer
from penstock.dataset.manifest_store import ManifestStore
from penstock.errors import (
    ConfigError,
    CoordinatorError,
    JournalUnavailable,
    ManifestNotFound,
    NotLeader,
    PenstockError,
    ResumeError,
)

__all__ = ["CoordinatorService"]

_MESSAGE_OVERHEAD_BYTES: Final = 1024  # of a manifest in one message, at most

Wanted = TypeVar("Wanted")


class _Context(Protocol):
    """What is used of grpc.aio's, which has no types."""

    async def abort(self, code: Any, details: str, trailing_metadata: tuple[tuple[str, str], ...] = ()) -> NoReturn:
        """End the call with a status."""


class CoordinatorService(CoordinatorServicer):
    """Answers calls.

    Args:
        seat: from which the job is led.
        watch: what is told of the job to people.
        manifests: where they are kept; None = nowhere.
        dataset_base: what relative locations in the manifest are joined to.
        max_message_bytes: of a whole manifest in one message.
        unix_time_ms: the time of day.

    Attributes:
        conversations: those that are going on.
    """

    def __init__(
        self,
        seat: Seat,
        watch: Watch,
        manifests: ManifestStore | None,
        *,
        dataset_base: str,
        max_message_bytes: int,
        unix_time_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
    ) -> None:
        self._seat = seat
        self._watch = watch
        self._manifests = manifests
        self._dataset_base = dataset_base
        self._max_message_bytes = max_message_bytes
        self._unix_time_ms = unix_time_ms
        self.conversations = Conversations()

    async def RegisterNode(self, request: wire.RegisterNodeRequest, context: _Context) -> wire.RegisterNodeResponse:
        """A node takes part."""
        reply = await self._done(convert.read_register(request), context)
        registered = replace(_expected(reply, Registered), dataset_base=self._dataset_base)
        return convert.write_registered(registered)

    async def Heartbeat(self, request: wire.HeartbeatRequest, context: _Context) -> wire.HeartbeatResponse:
        """A node lives."""
        await self._done(convert.read_heartbeat(request), context)
        return wire.HeartbeatResponse()

    async def RequestLease(self, request: wire.RequestLeaseRequest, context: _Context) -> wire.RequestLeaseResponse:
        """A node wants leases."""
        reply = await self._done(convert.read_request(request), context)
        return self._granted(reply)

    async def ReportProgress(
        self, request: wire.ReportProgressRequest, context: _Context
    ) -> wire.ReportProgressResponse:
        """A node has come further with a lease."""
        await self._done(convert.read_progress(request), context)
        return wire.ReportProgressResponse()

    async def LeaveNode(self, request: wire.LeaveNodeRequest, context: _Context) -> wire.LeaveNodeResponse:
        """A node ends."""
        await self._done(convert.read_leave(request), context)
        return wire.LeaveNodeResponse()

    async def Converse(self, sayings: AsyncIterator[wire.Saying], context: _Context) -> None:
        """A node says one thing after the other."""
        await self.conversations.follow(sayings, partial(self._answer, context=context), context)

    async def Restore(self, request: wire.RestoreRequest, context: _Context) -> wire.RestoreResponse:
        """The job is to begin where a checkpoint says."""
        state = await self._state(request.job_id, context)
        try:
            event = read_checkpoint(request.token, state.job)
        except ResumeError as error:
            await context.abort(grpc.StatusCode.FAILED_PRECONDITION, str(error))
        await self._done(replace(event, job_id=request.job_id), context)
        return wire.RestoreResponse()

    async def Checkpoint(self, request: wire.CheckpointRequest, context: _Context) -> wire.CheckpointResponse:
        """What is done."""
        state = await self._state(request.job_id, context)
        return wire.CheckpointResponse(token=json.dumps(checkpoint_of(state), separators=(",", ":")))

    async def Snapshot(self, request: wire.SnapshotRequest, context: _Context) -> wire.SnapshotResponse:
        """The job as it is."""
        await self._state(request.job_id, context)
        return wire.SnapshotResponse(snapshot=(await self._watch.text()).decode())

    async def GetManifest(self, request: wire.GetManifestRequest, context: _Context) -> wire.GetManifestResponse:
        """A manifest in one message."""
        most_bytes = self._max_message_bytes - _MESSAGE_OVERHEAD_BYTES
        text, data = await self._manifest(request, context), bytearray()
        async for chunk in _chunks(text, context):
            data += chunk
            if len(data) > most_bytes:
                await context.abort(
                    grpc.StatusCode.RESOURCE_EXHAUSTED,
                    f"manifest {request.manifest_hash} is longer than {most_bytes} bytes, which is what one message "
                    "may have; get it by GetManifestStream",
                )
        return wire.GetManifestResponse(manifest_bytes=bytes(data), schema_version=text.schema_version)

    async def GetManifestStream(
        self, request: wire.GetManifestRequest, context: _Context
    ) -> AsyncIterator[wire.ManifestChunk]:
        """A manifest of any size."""
        text = await self._manifest(request, context)
        async for chunk in _chunks(text, context):
            yield wire.ManifestChunk(data=chunk, schema_version=text.schema_version)

    # What they have in common.

    async def _answer(self, saying: wire.Saying, *, context: _Context) -> wire.Answer:
        reply: Reply = Refused(Code.INVALID_ARGUMENT, "nothing was said that this coordinator knows; is it older?")
        if (event := convert.read_saying(saying)) is not None:
            reply = await self._decided(event, context)
        if isinstance(reply, Refused):
            return wire.Answer(refused=reply.code.value, reason=reply.reason)
        return wire.Answer(granted=self._granted(reply) if isinstance(reply, Granted) else None)

    async def _done(self, event: Event, context: _Context) -> Reply:
        reply = await self._decided(event, context)
        if isinstance(reply, Refused):
            await context.abort(grpc.StatusCode[reply.code.value], reply.reason)
        return reply

    async def _decided(self, event: Event, context: _Context) -> Reply:
        try:
            return await self._seat.do(event)
        except NotLeader as error:
            await self._not_leader(error, context)
        except JournalUnavailable as error:
            await context.abort(grpc.StatusCode.UNAVAILABLE, f"{error}; say it again")
        except CoordinatorError as error:
            await context.abort(grpc.StatusCode.INTERNAL, str(error))

    def _granted(self, reply: Reply) -> wire.RequestLeaseResponse:
        return convert.write_granted(_expected(reply, Granted), unix_time_ms=self._unix_time_ms())

    async def _not_leader(self, error: NotLeader, context: _Context) -> NoReturn:
        leader = await self._seat.leader()
        if leader is None:
            await context.abort(grpc.StatusCode.UNAVAILABLE, f"{error}, and nobody else is known to; ask again")
        metadata = ((convert.LEADER_METADATA, leader),)
        await context.abort(grpc.StatusCode.UNAVAILABLE, f"{error}; ask {leader}", metadata)

    async def _state(self, job_id: str, context: _Context) -> State:
        """What is decided and kept, for whoever names a job."""
        await _check_job_id(job_id, context)
        if (state := self._seat.state) is None or not self._seat.leads:
            await self._not_leader(NotLeader("this coordinator doesn't lead the job"), context)
        return state

    async def _manifest(self, request: wire.GetManifestRequest, context: _Context) -> ManifestText:
        await _check_job_id(request.job_id, context)
        if not request.manifest_hash.strip():
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "manifest_hash is blank; give the one that was told")
        if self._manifests is None:
            await context.abort(
                grpc.StatusCode.FAILED_PRECONDITION,
                "this coordinator has no manifest store; start it with a dataset link or a manifest store",
            )
        try:
            return await ManifestText.open(self._manifests, request.manifest_hash)
        except PenstockError as error:
            await context.abort(_manifest_code(error), str(error))


async def _check_job_id(job_id: str, context: _Context) -> None:
    if not job_id.strip():
        await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "job_id is blank; give it a name")


async def _chunks(text: ManifestText, context: _Context) -> AsyncIterator[bytes]:
    try:
        async for chunk in text.chunks():
            yield chunk
    except PenstockError as error:
        await context.abort(_manifest_code(error), str(error))


def _manifest_code(error: PenstockError) -> Any:
    if isinstance(error, ConfigError):
        return grpc.StatusCode.INVALID_ARGUMENT
    return grpc.StatusCode.NOT_FOUND if isinstance(error, ManifestNotFound) else grpc.StatusCode.INTERNAL


def _expected(reply: Reply, kind: type[Wanted]) -> Wanted:
    assert isinstance(reply, kind)
    return reply
