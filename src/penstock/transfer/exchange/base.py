"""What every place where agents leave their metadata can do."""

from __future__ import annotations

from typing import Final, Protocol, runtime_checkable

from penstock.errors import ConfigError

__all__ = ["WHOLE", "Exchange", "agent_prefix", "key_of"]

WHOLE: Final = "metadata"  # the label of all that an agent has to say; other labels are parts of it


@runtime_checkable
class Exchange(Protocol):
    """A place where agents leave their metadata for each other. Any thread may call.

    Every method raises:
        PeerUnreachable: the place can't be reached; the same call may succeed later.
        PeerRefused: it answered and said no: a wrong password, a blob that is too large.
        DeadlineExceeded: it didn't answer in time.
        MetadataError: what answers isn't such a place, or what lies there isn't a blob.
        ConfigError: an empty name or label.
    """

    def publish(self, agent_name: str, label: str, blob: bytes, *, timeout_s: float | None = None) -> None:
        """Leave a blob, in place of the one with this label that the agent left before."""

    def retrieve(self, agent_name: str, label: str, timeout_s: float) -> bytes:
        """The blob that an agent left, waited for as long as there is none.

        Raises:
            DeadlineExceeded: it left none in time.
        """

    def remove(self, agent_name: str, *, timeout_s: float | None = None) -> None:
        """Take away everything that an agent left, under any label; nothing happens if it left nothing."""


def agent_prefix(agent_name: str) -> str:
    """What the keys of an agent begin with, and those of no other."""
    return f"{_part(agent_name, 'an agent name')}/"


def key_of(agent_name: str, label: str) -> str:
    """``agent/label``: the key of a blob."""
    return agent_prefix(agent_name) + _part(label, "a label")


def _part(text: str, what: str) -> str:
    """A name as part of a key: slashes mustn't make one name the beginning of another."""
    if not text:
        raise ConfigError(f"{what} is empty; give one")
    return text.replace("%", "%25").replace("/", "%2F")
