"""Calls about notifications."""

from __future__ import annotations

from collections.abc import Sequence

from penstock.compat.nixl.base import AgentState
from penstock.compat.nixl.errors import translated
from penstock.compat.nixl.messages import Messages, as_bytes, as_text, collect, take_first
from penstock.errors import PenstockError

__all__ = ["NotificationCalls"]


class NotificationCalls(AgentState):
    """Sending notifications, and looking through those that arrived."""

    def send_notif(self, remote_agent_name: str | bytes, notif_msg: bytes | str, backend: str | None = None) -> None:
        """Sends a message at once; messages of one sender arrive in order, each exactly once.

        Raises:
            nixlNotFoundError: an unknown agent, or a backend that wasn't created.
            nixlBackendError: no backend sends notifications.
            nixlRemoteDisconnectError: the other agent is gone.
        """
        if backend is not None:
            self._check_backends([backend])
        try:
            self._mover.notify(as_text(remote_agent_name), as_bytes(notif_msg))
        except PenstockError as error:
            raise translated(error) from error

    def get_new_notifs(self, backends: Sequence[str] = ()) -> Messages:
        """What arrived since somebody asked last, by sender; it is yours, and nobody else sees it again."""
        if backends:
            self._check_backends(backends)
        return collect(self._mover.notifications(), {})

    def update_notifs(self, backends: Sequence[str] = ()) -> Messages:
        """Adds what arrived to ``notifs``, and returns all that is in there; nothing is removed."""
        if backends:
            self._check_backends(backends)
        with self._notifs_lock:
            return collect(self._mover.notifications(), self.notifs)

    def check_remote_xfer_done(
        self,
        remote_agent_name: str | bytes,
        lookup_tag: bytes | str,
        backends: Sequence[str] = (),
        tag_is_prefix: bool = True,
    ) -> bool:
        """Whether a transfer's message has come, and with it all of its data; the first that fits is removed.

        Args:
            remote_agent_name: who posted the transfer.
            lookup_tag: what its message begins with.
            backends: none given = all.
            tag_is_prefix: False: the message only has to contain the tag.
        """
        return self._take(remote_agent_name, lookup_tag, backends, prefix=tag_is_prefix, inside=not tag_is_prefix)

    def check_notif(
        self,
        remote_agent_name: str | bytes,
        lookup_tag: bytes | str,
        backends: Sequence[str] = (),
        tag_is_prefix: bool = False,
    ) -> bool:
        """Whether a message has come that is the tag, or with ``tag_is_prefix`` begins with it; it is removed."""
        return self._take(remote_agent_name, lookup_tag, backends, prefix=tag_is_prefix, inside=False)

    def _take(
        self, sender: str | bytes, tag: bytes | str, backends: Sequence[str], *, prefix: bool, inside: bool
    ) -> bool:
        self.update_notifs(backends)
        with self._notifs_lock:
            return take_first(self.notifs, as_text(sender), as_bytes(tag), prefix=prefix, inside=inside)
