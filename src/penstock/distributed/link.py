"""How a loader reaches the coordinator of its job, and takes part."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from penstock.coordinator.client import Client
from penstock.coordinator.credentials import Credentials
from penstock.errors import ConfigError

__all__ = ["Link", "named", "positive", "refuse_what_is_decided"]

_THE_COORDINATORS: Final = (
    *("start_id", "end_id", "shuffle", "seed", "generator_seed", "epoch", "sampler", "sampler_type", "group_by_length"),
    *("rank", "shard_rank", "world_size", "shard_world_size", "worker_id", "num_workers_pytorch", "drop_last"),
    *("dev_manifest_path", "options"),
)


@dataclass(frozen=True, slots=True)
class Link:
    """What ``DistributedDataLoader`` is told of its job; see there."""

    coord_url: str
    job_id: str
    node_id: str
    want: int
    report_interval_s: float
    max_message_bytes: int
    timeout_s: float
    join_timeout_s: float
    credentials: Credentials
    base: str | None
    resume: Mapping[str, Any] | None

    def client(self) -> Client:
        """A line to the coordinator; the caller closes it."""
        return Client(
            self.coord_url,
            self.job_id,
            timeout_s=self.timeout_s,
            credentials=self.credentials,
            max_message_bytes=self.max_message_bytes,
        )


def named(what: str, name: str) -> str:
    """The name, or a ConfigError: it is none."""
    if not isinstance(name, str) or not name.strip():
        raise ConfigError(f"{what} is {name!r}; give it a name")
    try:
        name.encode()
    except UnicodeEncodeError as error:
        raise ConfigError(f"{what} is {name!r}, which UTF-8 can't hold ({error.reason}); give another name") from None
    return name


def positive(what: str, seconds: float) -> float:
    """The seconds, or a ConfigError: they aren't more than 0."""
    if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not seconds > 0:
        raise ConfigError(f"{what} is {seconds!r}; give seconds, more than 0")
    return float(seconds)


def refuse_what_is_decided(arguments: Mapping[str, Any]) -> None:
    """Raise ConfigError for arguments of a loader that are the coordinator's to decide."""
    given = [name for name in _THE_COORDINATORS if arguments.get(name) is not None]
    if given:
        raise ConfigError(
            f"{' and '.join(given)}: which samples a node of a shared job gets, and in which order, is the "
            "coordinator's to say; give that to `penstock coordinator`"
        )
