"""How a loader reaches the coordinator of its job, and takes part."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from penstock.coordinator.client import Client
from penstock.coordinator.credentials import Credentials
from penstock.errors import ConfigError

__all__ = ["Link", "named", "positive"]


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
