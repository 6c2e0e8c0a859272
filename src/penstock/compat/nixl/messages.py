"""Which message a program looks for among those that arrived; pure."""

from __future__ import annotations

from collections.abc import Iterable

from penstock.transfer import Notification

__all__ = ["Messages", "as_bytes", "as_text", "collect", "take_first"]

Messages = dict[str, list[bytes]]
"""What arrived from whom, in order."""


def as_bytes(message: bytes | str) -> bytes:
    """A message as it travels: a str as UTF-8."""
    return message.encode() if isinstance(message, str) else bytes(message)


def as_text(name: str | bytes) -> str:
    """An agent's name: ``add_remote_agent`` returns bytes, and programs hand on what they got."""
    return name.decode() if isinstance(name, bytes) else name


def collect(arrived: Iterable[Notification], into: Messages) -> Messages:
    """Appends what arrived to each sender's list."""
    for notification in arrived:
        into.setdefault(notification.sender, []).append(notification.message)
    return into


def take_first(messages: Messages, sender: str, tag: bytes, *, prefix: bool, inside: bool) -> bool:
    """Removes the sender's first message that fits, and says whether there was one.

    Args:
        messages: what arrived; a sender without messages doesn't stay in it.
        sender: whose.
        tag: what the message must be, or begin with, or contain.
        prefix: it need only begin with the tag.
        inside: it need only contain the tag.
    """
    waiting = messages.get(sender, [])
    for at, message in enumerate(waiting):
        fits = message.startswith(tag) if prefix else (tag in message if inside else message == tag)
        if fits:
            del waiting[at]
            if not waiting:
                del messages[sender]
            return True
    return False
