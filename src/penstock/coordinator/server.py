"""A coordinator: a seat, a journal, and gRPC around them, on one event loop."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from dataclasses import dataclass, field
from typing import Any, Final

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from penstock.coordinator.access import (
    Access,
    TokenCheck,
    check_address,
    check_token,
    credentials,
)
from penstock.coordinator.events import Restore
from penstock.coordinator.journal.opening import open_journal
from penstock.coordinator.page import PageServer, open_page
from penstock.coordinator.readable import ReadableCheck
from penstock.coordinator.rules.members import MAX_ID
from penstock.coordinator.seat import Seat
from penstock.coordinator.service import CoordinatorService
from penstock.coordinator.snapshot import snapshot_of
from penstock.coordinator.state import Job, Terms
from penstock.coordinator.watch import Watch
from penstock.coordinator.wire.coordinator_pb2 import DESCRIPTOR
from penstock.coordinator.wire.coordinator_pb2_grpc import add_CoordinatorServicer_to_server
from penstock.dataset.manifest_store import ManifestStore
from penstock.errors import ConfigError
from penstock.net import is_loopback, join_address, split_address
from penstock.proof import prove

__all__ = ["MAX_MESSAGE_BYTES", "NO_NAME", "CoordinatorServer", "Settings"]

_log = logging.getLogger("penstock.coordinator")

MAX_MESSAGE_BYTES: Final = 64 << 20
NO_NAME: Final = "local-job"
"""Of a job that was given none."""

_HEALTH_S: Final = 0.1  # how late whoever asks for our health may hear that we lead, or don't any more
_NAME: Final = DESCRIPTOR.services_by_name["Coordinator"].full_name
_MOST_PENDING: Final = 100_000  # gRPC's 1,000 are soon reached where thousands of nodes find a new leader at once
_OPTIONS: Final = (
    ("grpc.so_reuseport", 0),  # else two coordinators could share a port, and nodes would find either
    ("grpc.keepalive_time_ms", 30_000),  # a node whose machine is gone doesn't keep its connection
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
    ("grpc.server.max_pending_requests", _MOST_PENDING),
    ("grpc.server.max_pending_requests_hard_limit", _MOST_PENDING),
)


@dataclass(frozen=True, slots=True)
class Settings:
    """How a coordinator is run.

    Attributes:
        addr: host:port to listen on; port 0 = any free one.
        job_id: whose journal it is, and what nodes have to call the job; empty = ``local-job``, and whatever the first
            node calls it.
        journal: where it is kept: ``memory:``, ``file:/path`` or ``etcd://host:port``.
        announce: host:port by which nodes reach this coordinator; empty = ``addr``, or this machine's name where that
            is every address.
        leader_ttl_s: how long after a leader fell silent another one leads, where the journal is shared.
        access: who may take part.
        max_message_bytes: of one message, either way.
        anew: forget what the journal holds.
        page_addr: host:port of the page; "" = none, None = on loopback, next to ``addr``.
        report_interval_s: how often it is logged how far the job is; 0 = never.
    """

    addr: str = "127.0.0.1:50051"
    job_id: str = ""
    journal: str = "memory:"
    announce: str = ""
    leader_ttl_s: float = 3.0
    access: Access = field(default_factory=Access)
    max_message_bytes: int = MAX_MESSAGE_BYTES
    anew: bool = False
    page_addr: str | None = ""
    report_interval_s: float = 0.0


class CoordinatorServer:
    """One coordinator of one job. All of it belongs to the event loop that it is made in.

    Args:
        settings: how it is run.
        job: what is to be done.
        terms: how long things may take.
        manifests: where they are kept; None = nodes can't get them here.
        dataset_base: what relative locations in the manifest are joined to.
        checkpoint: where the job begins.

    Attributes:
        seat: from which the job is led.
        addr: host:port that it listens on.
        announced: host:port by which nodes reach it.
        page: what people look at, while this runs; None = nothing.

    Raises:
        ConfigError: the port is in use, or the settings can't be.
    """

    def __init__(
        self,
        settings: Settings,
        job: Job,
        terms: Terms,
        *,
        manifests: ManifestStore | None = None,
        dataset_base: str = "",
        checkpoint: Restore | None = None,
    ) -> None:
        check_address(settings.addr, settings.access)
        check_token(settings.access.token)
        _check_said(settings)
        self._settings = settings
        self._health = health.aio.HealthServicer()
        self._server, port = _bound(settings)
        host, _ = split_address(settings.addr)
        self.addr = join_address(host, port)
        self.announced = settings.announce or join_address(_reached_by(host), port)
        journal = open_journal(
            settings.journal, job_id=settings.job_id or NO_NAME, address=self.announced, ttl_s=settings.leader_ttl_s
        )
        self.seat = Seat(journal, job, terms, checkpoint=checkpoint, anew=settings.anew, job_id=settings.job_id)
        self.page: PageServer | None = None
        self._watch = Watch(self.seat)
        self._service = CoordinatorService(
            self.seat, self._watch, manifests, dataset_base=dataset_base, max_message_bytes=settings.max_message_bytes
        )
        add_CoordinatorServicer_to_server(self._service, self._server)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        self._stopping = asyncio.Event()

    async def run(self, *, started: asyncio.Event | None = None, grace_s: float = 5.0) -> None:
        """Listen, and lead whenever nobody else does, until ``stop()``.

        Args:
            started: set once calls are answered.
            grace_s: how long calls that have begun may take after ``stop()``.

        Raises:
            CoordinatorError: the journal is damaged, or of another job.
            ConfigError: the page can't be served where it was asked for.
        """
        await self._open_page()
        leading = asyncio.ensure_future(self.seat.run())
        stopping = asyncio.ensure_future(self._stopping.wait())
        beside = [stopping, *map(asyncio.ensure_future, (self._tell_health(), self._report(), self._watch.run()))]
        try:
            await self._server.start()
            if started is not None:
                started.set()
            await asyncio.wait([leading, stopping], return_when=asyncio.FIRST_COMPLETED)
            await self._health.enter_graceful_shutdown()
        finally:
            if self.page is not None:
                await self.page.close()
            await self._service.conversations.end()
            await self._server.stop(grace_s)  # calls that have begun are answered, by a seat that still decides
            await self.seat.close()
            for task in beside:
                task.cancel()
            await asyncio.gather(*beside, return_exceptions=True)
            await leading

    async def _open_page(self) -> None:
        try:
            self.page = await open_page(self._watch, self._settings.page_addr, self.addr, self._settings.access)
        except BaseException:
            await self.seat.close()
            raise

    def stop(self) -> None:
        """End: answer what was asked, keep what was decided, let somebody else lead. From the loop's thread."""
        self._stopping.set()

    async def _tell_health(self) -> None:
        """The process lives: "". It leads, and can be asked: the service's name."""
        status = health_pb2.HealthCheckResponse
        await self._health.set("", status.SERVING)
        told: bool | None = None
        while True:
            if self.seat.leads is not told:
                told = self.seat.leads
                await self._health.set(_NAME, status.SERVING if told else status.NOT_SERVING)
            await asyncio.sleep(_HEALTH_S)

    async def _report(self) -> None:
        """Now and then, how far the job is."""
        while self._settings.report_interval_s:
            await asyncio.sleep(self._settings.report_interval_s)
            if (state := self.seat.state) is not None:
                told = snapshot_of(state, self.seat.now())
                prove(
                    "metrics_snapshot",
                    **{name: told[name] for name in ("phase", "epoch", "done", "leased", "queued", "granted")},
                    nodes=told["nodes"]["live"],
                )


def _check_said(settings: Settings) -> None:
    """What nodes are told, or have to say."""
    if len(settings.job_id) > MAX_ID or (settings.job_id and not settings.job_id.strip()):
        raise ConfigError(f"job_id is {settings.job_id!r:.80}; give a name of at most {MAX_ID} characters")
    if settings.announce:
        split_address(settings.announce, name="announce")


def _bound(settings: Settings) -> tuple[Any, int]:
    """A gRPC server that has its port, and that port."""
    limits = [(f"grpc.max_{way}_message_length", settings.max_message_bytes) for way in ("send", "receive")]
    check = [*([TokenCheck(settings.access.token)] if settings.access.token else []), ReadableCheck()]
    server = grpc.aio.server(options=[*_OPTIONS, *limits], interceptors=check)
    secret = credentials(settings.access)
    try:
        if secret is None:
            return server, server.add_insecure_port(settings.addr)
        return server, server.add_secure_port(settings.addr, secret)
    except RuntimeError as error:  # all that gRPC says of it
        raise ConfigError(
            f"addr {settings.addr} can't be listened on: it is in use, isn't an address of this machine, or the "
            f"certificate doesn't fit its key ({error}). Stop whoever has it, or give another --addr"
        ) from None


def _reached_by(host: str) -> str:
    """A name for it on other machines."""
    if is_loopback(host) or host not in {"0.0.0.0", "::"}:
        return host
    return socket.getfqdn() or os.uname().nodename
