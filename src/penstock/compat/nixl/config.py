"""What a ``nixl_agent`` is made with."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from enum import Enum

from penstock import config as environment

__all__ = ["DEFAULT_COMM_PORT", "nixl_agent_config", "nixl_thread_sync_t", "telemetry_wanted"]

DEFAULT_COMM_PORT = 8888
"""Where agents that exchange metadata listen, unless told otherwise."""

_log = logging.getLogger("penstock")


class nixl_thread_sync_t(Enum):
    """How calls of several threads are kept apart. Penstock's agents may be called from any thread, in every mode."""

    NIXL_THREAD_SYNC_NONE = 0
    NIXL_THREAD_SYNC_STRICT = 1
    NIXL_THREAD_SYNC_RW = 2
    NIXL_THREAD_SYNC_DEFAULT = NIXL_THREAD_SYNC_NONE


class nixl_agent_config:
    """The settings of one agent, with NIXL's names and defaults.

    Args:
        enable_prog_thread: kept, without effect: transfers go on by themselves, and nothing spins meanwhile.
        enable_listen_thread: answer other agents' sockets, for ``send_local_metadata`` and ``fetch_remote_metadata``.
        listen_port: where; 0 = a free port (``agent.listen_port`` says which).
        capture_telemetry: keep what ``get_xfer_telemetry`` reports; ``NIXL_TELEMETRY_ENABLE`` set to off wins over it.
        num_threads: kept, and shown by ``get_backend_params``; without effect.
        backends: names; those that there are none of are left out with a warning.
        sync_mode: kept, without effect; None = strict with a listen thread, else none.

    Raises:
        TypeError: ``sync_mode`` isn't one.
    """

    def __init__(
        self,
        enable_prog_thread: bool = True,
        enable_listen_thread: bool = False,
        listen_port: int = DEFAULT_COMM_PORT,
        capture_telemetry: bool = False,
        num_threads: int = 0,
        backends: Sequence[str] = ("UCX",),
        sync_mode: nixl_thread_sync_t | None = None,
    ) -> None:
        if sync_mode is not None and not isinstance(sync_mode, nixl_thread_sync_t):
            raise TypeError(f"sync_mode must be a nixl_thread_sync_t, not {sync_mode!r}")
        if sync_mode is None:
            listens = nixl_thread_sync_t.NIXL_THREAD_SYNC_STRICT
            sync_mode = listens if enable_listen_thread else nixl_thread_sync_t.NIXL_THREAD_SYNC_DEFAULT
        self.enable_pthread = enable_prog_thread
        self.enable_listen = enable_listen_thread
        self.port = listen_port
        self.capture_telemetry = capture_telemetry
        self.num_threads = num_threads
        self.backends = list(backends)
        self.sync_mode = sync_mode


_ON = {"y", "yes", "on", "true", "enable", "enabled", "1"}
_OFF = {"n", "no", "off", "false", "disable", "disabled", "0"}


def telemetry_wanted(configured: bool) -> bool:
    """Whether telemetry is on: the environment's word, else the configuration's."""
    found = environment.setting("NIXL_TELEMETRY_ENABLE")
    if found.value is None:
        return configured
    word = found.value.lower()
    if word not in _ON | _OFF:
        _log.warning("%s=%r; give on or off. The configuration's %s holds", found.source, found.value, configured)
        return configured
    return word in _ON
