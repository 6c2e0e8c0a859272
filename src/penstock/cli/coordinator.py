"""``penstock coordinator``: one job, shared out to many nodes."""

from __future__ import annotations

import asyncio
import logging
import resource
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from penstock import config
from penstock.cli import output
from penstock.cli.coordinator_job import Asked, Found, checkpoint_in, job_of, text_of
from penstock.cli.logs import log_to_stderr
from penstock.errors import ConfigError

if TYPE_CHECKING:
    from penstock.coordinator.access import Access
    from penstock.coordinator.events import Restore
    from penstock.coordinator.server import CoordinatorServer, Settings
    from penstock.coordinator.state import Job, State, Terms

__all__ = ["coordinator"]

_MOST_31: Final = 2**31 - 1  # of what gRPC counts
_MOST_32: Final = 2**32 - 1
_LEAST_TTL_MS: Final = 50
_LOOK_S: Final = 0.05
_OWN_FILES: Final = 64  # of the coordinator itself, and of those who look at its page

_log = logging.getLogger("penstock.coordinator")


def coordinator(
    *,
    addr: Annotated[str | None, typer.Option(help="host:port to listen on; port 0 = any free one.")] = None,
    dataset_link: Annotated[str | None, typer.Option(help="The dataset to share out.")] = None,
    world_size: Annotated[int | None, typer.Option(min=1, max=_MOST_32, help="Nodes that the job waits for.")] = None,
    job_id: Annotated[str | None, typer.Option(help="What nodes call the job; names its journal.")] = None,
    journal: Annotated[str | None, typer.Option(help="A file, a folder, memory: or etcd://host:port,...")] = None,
    anew: Annotated[bool, typer.Option("--anew", help="Forget what the journal holds, and begin.")] = False,
    resume: Annotated[Path | None, typer.Option(help="A checkpoint (JSON) to begin with.")] = None,
    epoch: Annotated[int | None, typer.Option(min=0, max=_MOST_32, help="The first epoch.")] = None,
    epochs: Annotated[int, typer.Option(min=1, help="How many.")] = 1,
    shuffle: Annotated[bool | None, typer.Option("--shuffle/--no-shuffle", help="Deal blocks in random order.")] = None,
    seed: Annotated[int | None, typer.Option(min=0, max=2**64 - 1, help="Of that order.")] = None,
    dev_block_size: Annotated[int | None, typer.Option(min=1, help="Samples in a lease, at most.")] = None,
    steal: Annotated[bool, typer.Option("--steal", help="Idle nodes take blocks from slow ones.")] = False,
    heartbeat_interval_ms: Annotated[int | None, typer.Option(min=1, help="How often nodes call.")] = None,
    lease_ttl_ms: Annotated[int | None, typer.Option(min=_LEAST_TTL_MS, help="Silence after which leases end.")] = None,
    barrier_timeout: Annotated[float | None, typer.Option(min=0.0, help="Seconds to wait for all nodes.")] = None,
    min_world_size: Annotated[int, typer.Option(min=0, help="Begin with so many after that; 0 = fail.")] = 0,
    manifest_store_root: Annotated[str | None, typer.Option(help="Where manifests are kept.")] = None,
    manifest_hash: Annotated[str | None, typer.Option(help="A manifest there, in place of a link.")] = None,
    dev_manifest_path: Annotated[str | None, typer.Option(help="A TSV to use instead of indexing the base.")] = None,
    dev_total_samples: Annotated[int | None, typer.Option(min=0, help="Share out only so many samples.")] = None,
    snapshot_lock_stale_ms: Annotated[int | None, typer.Option(min=0, help="See docs/environment.md.")] = None,
    snapshot_wait_timeout_ms: Annotated[int | None, typer.Option(min=0, help="See docs/environment.md.")] = None,
    token: Annotated[str | None, typer.Option(help="Secret of the job; better in PENSTOCK_COORD_TOKEN.")] = None,
    tls_cert: Annotated[Path | None, typer.Option(help="Our certificate (PEM).")] = None,
    tls_key: Annotated[Path | None, typer.Option(help="Its key, if it isn't in the same file.")] = None,
    tls_client_ca: Annotated[Path | None, typer.Option(help="Nodes need certificates that this vouches for.")] = None,
    announce: Annotated[str | None, typer.Option(help="host:port by which nodes reach us.")] = None,
    leader_ttl_ms: Annotated[int, typer.Option(min=500, help="Silence after which another leads (etcd).")] = 3000,
    grpc_max_message_bytes: Annotated[int | None, typer.Option(min=4096, max=_MOST_31, help="Of one message.")] = None,
    metrics_snapshot_interval_ms: Annotated[int | None, typer.Option(min=0, help="Log progress; 0 = never.")] = None,
    page_addr: Annotated[str | None, typer.Option(help="host:port of a page to look at; off = none.")] = None,
    log_json: Annotated[bool, typer.Option("--log-json", help="Log one JSON document a line.")] = False,
) -> None:
    """Share one job out to many nodes, as leases of samples; nodes that die lose theirs to others.

    Without an option its environment variable counts (docs/environment.md). It runs until SIGTERM or Ctrl-C, and goes
    on where it was when it is started again with the same journal.
    """
    from penstock.coordinator.server import Settings

    log_to_stderr(as_json=log_json)
    settings = Settings(
        addr=_text("COORD_BIND_ADDR", addr, "127.0.0.1:50051"),
        job_id=_text("JOB_ID", job_id, ""),
        journal=_text("COORD_JOURNAL", journal, f"{config.state_dir() / 'coordinator'}/"),
        announce=announce or "",
        leader_ttl_s=leader_ttl_ms / 1000,
        access=_access(token, tls_cert, tls_key, tls_client_ca),
        max_message_bytes=_message_bytes(grpc_max_message_bytes),
        anew=anew,
        page_addr=page_addr if page_addr is not None else config.lookup("COORD_PAGE_ADDR"),
        report_interval_s=_number("METRICS_SNAPSHOT_INTERVAL_MS", metrics_snapshot_interval_ms, 0) / 1000,
    )
    terms = _terms(lease_ttl_ms, heartbeat_interval_ms, barrier_timeout, min_world_size, steal=steal)
    asked = Asked(
        link=_text("DATASET_LINK", dataset_link, ""),
        manifest_hash=_text("MANIFEST_HASH", manifest_hash, "dev"),
        samples=_number("DEV_TOTAL_SAMPLES", dev_total_samples, 0),
        store_root=manifest_store_root or config.lookup("MANIFEST_STORE_ROOT"),
        dev_manifest_path=dev_manifest_path,
        lock_stale_ms=snapshot_lock_stale_ms,
        wait_timeout_ms=snapshot_wait_timeout_ms,
        block_samples=_number("DEV_BLOCK_SIZE", dev_block_size, 65536, least=1),
        shuffle=bool(config.flag("SHUFFLE")) if shuffle is None else shuffle,
        seed=_number("SEED", seed, 0, most=2**64 - 1),
        epoch=_number("EPOCH", epoch, 0, most=_MOST_32),
        epochs=epochs,
        world_size=_number("COORD_WORLD_SIZE", world_size, 1, least=1, most=_MOST_32),
    )
    text = _read_early(settings, resume)
    found = job_of(asked)
    checkpoint = None if text is None else checkpoint_in(text, found.job, f"--resume {resume}")
    asyncio.run(_run(settings, terms, found, checkpoint))


def _read_early(settings: Settings, resume: Path | None) -> str | None:
    """A checkpoint's text. What can be refused is, before a dataset is indexed, which may take long."""
    from penstock.coordinator.access import check_address, check_token

    check_address(settings.addr, settings.access)
    check_token(settings.access.token)
    return None if resume is None else text_of(resume)


def _allow_files(needed: int) -> None:
    """Take as many open files as we may have: each node keeps a connection, and 1,024 are usual."""
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    except (OSError, ValueError) as error:
        _log.warning("the limit of open files couldn't be raised: %s", error)
    allowed = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if allowed != resource.RLIM_INFINITY and allowed < needed:
        _log.warning(
            "this process may have %d files open, and all nodes' connections take %d: some would wait in vain; allow "
            "more (ulimit -Hn, LimitNOFILE=)",
            allowed,
            needed,
        )


def _access(token: str | None, cert: Path | None, key: Path | None, client_ca: Path | None) -> Access:
    from penstock.coordinator.access import Access

    return Access(
        token=_text("COORD_TOKEN", token, ""),
        tls_cert=_path("COORD_TLS_CERT", cert),
        tls_key=_path("COORD_TLS_KEY", key),
        tls_client_ca=_path("COORD_TLS_CLIENT_CA", client_ca),
    )


def _message_bytes(given: int | None) -> int:
    from penstock.coordinator.server import MAX_MESSAGE_BYTES

    return _number("GRPC_MAX_MESSAGE_BYTES", given, MAX_MESSAGE_BYTES, least=4096, most=_MOST_31)


def _terms(
    lease_ttl_ms: int | None, heartbeat_ms: int | None, barrier_timeout_s: float | None, least: int, *, steal: bool
) -> Terms:
    from penstock.coordinator.state import Terms

    if least and barrier_timeout_s is None:
        raise ConfigError(f"--min-world-size={least} would never count; give --barrier-timeout, after which it does")
    return Terms(
        lease_ttl_s=_number("LEASE_TTL_MS", lease_ttl_ms, 10_000, least=_LEAST_TTL_MS) / 1000,
        heartbeat_interval_s=_number("HEARTBEAT_INTERVAL_MS", heartbeat_ms, 1000, least=1) / 1000,
        barrier_timeout_s=barrier_timeout_s,
        min_world_size=least,
        steal=steal,
    )


async def _run(settings: Settings, terms: Terms, found: Found, checkpoint: Restore | None) -> None:
    from penstock.coordinator.server import CoordinatorServer

    _allow_files(found.job.world_size + _OWN_FILES)
    server = CoordinatorServer(
        settings, found.job, terms, manifests=found.manifests, dataset_base=found.base, checkpoint=checkpoint
    )
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, server.stop)
    started = asyncio.Event()
    telling = asyncio.ensure_future(_tell(started, server, settings, found.job))
    try:
        await server.run(started=started)
    finally:
        telling.cancel()
        await asyncio.gather(telling, return_exceptions=True)


async def _tell(started: asyncio.Event, server: CoordinatorServer, settings: Settings, job: Job) -> None:
    """Say where we are, in a line that scripts can wait for, and what they should know of the job."""
    from penstock.coordinator.server import NO_NAME

    await started.wait()
    follows: str | None = None
    while (state := server.seat.state) is None and follows is None:
        await asyncio.sleep(_LOOK_S)
        leader = await server.seat.leader()
        follows = None if leader == server.announced else leader
    size = f"{output.counted(job.samples, 'sample')}, {output.counted(job.world_size, 'node')}"
    role = f"follows {follows}" if state is None else "leads"
    name = settings.job_id or NO_NAME
    output.line(f"coordinator ready at {server.addr}: {role} job {name}, {size}, {job.manifest_hash}")
    if server.page is not None:
        output.line(f"page at {server.page.url}")
    sys.stdout.flush()
    if state is not None:
        _warn(state)


def _warn(state: State) -> None:
    """Of what a job's options make of it that its user may not expect."""
    from penstock.coordinator.blocks import block_count, too_few_to_shuffle

    job = state.job
    if few := too_few_to_shuffle(state.blocks, "--dev-block-size"):
        _log.warning("%s", few)
    if state.course.phase == "gathering" and (blocks := block_count(state.blocks)) < min(job.world_size, job.samples):
        _log.warning(
            "what is to do makes %s of at most %s, so not all of %s get any: give a smaller --dev-block-size",
            output.counted(blocks, "block"),
            output.counted(job.block_samples, "sample"),
            output.counted(job.world_size, "node"),
        )
    if state.course.phase in {"drained", "failed"}:
        _log.warning(
            "the journal says that this job is %s, so nodes get nothing; --anew forgets that and begins again",
            state.course.phase,
        )


def _text(name: str, given: str | None, default: str) -> str:
    return given if given is not None else config.lookup(name) or default


def _path(name: str, given: Path | None) -> Path | None:
    found = config.lookup(name)
    return given if given is not None or found is None else Path(found)


def _number(name: str, given: int | None, default: int, *, least: int = 0, most: int | None = None) -> int:
    number = config.positive_int(name, default, least=least) if given is None else given
    if most is not None and number > most:
        raise ConfigError(f"{config.setting(name).source}={number}; give at most {most}")
    return number
