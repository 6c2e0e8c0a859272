"""``nixl_agent``: all its calls, which stand by subject in the modules beside this one."""

from __future__ import annotations

import threading
from typing import Self

from penstock.compat.nixl.backends import BackendCalls
from penstock.compat.nixl.base import log
from penstock.compat.nixl.config import nixl_agent_config, telemetry_wanted
from penstock.compat.nixl.exchange import ExchangeCalls
from penstock.compat.nixl.notifications import NotificationCalls
from penstock.compat.nixl.plugins import PLUGINS
from penstock.compat.nixl.transfers import TransferCalls
from penstock.errors import ConfigError

__all__ = ["nixl_agent"]


class nixl_agent(BackendCalls, TransferCalls, NotificationCalls, ExchangeCalls):
    """One process's end of all transfers, with NIXL's calls, over ``penstock.transfer.Agent``.

    Args:
        agent_name: by which others know it.
        nixl_conf: the settings; None = ``nixl_agent_config()``.
        instantiate_all: create every backend there is; ignored beside a configuration.

    Attributes:
        name: the agent's.
        agent: Penstock's agent, which does everything; None before the backend "UCX" is created.
        notifs: what ``update_notifs`` and the checks drained and nobody took yet, by sender.
        backends: those that were created.
        plugin_list: those that can be.

    Raises:
        ConfigError: a ``ValueError``: no name.
        nixlBackendError: a backend can't be set up.
    """

    def __init__(
        self, agent_name: str, nixl_conf: nixl_agent_config | None = None, instantiate_all: bool = False
    ) -> None:
        if not agent_name:
            raise ConfigError("agent_name is empty; give the agent a name")
        if nixl_conf is not None and instantiate_all:
            log.warning("instantiate_all is ignored beside a configuration, which names its backends")
        config = nixl_conf or nixl_agent_config(backends=list(PLUGINS) if instantiate_all else ["UCX"])
        self.name = agent_name
        self.agent = None
        self.notifs = {}
        self.backends = {}
        self.plugin_list = list(PLUGINS)
        self._notifs_lock = threading.Lock()
        self._params = {}
        self._listen_on = config.port if config.enable_listen else None
        self._timed = telemetry_wanted(config.capture_telemetry)
        for backend in config.backends:
            if backend not in PLUGINS:
                log.warning("there is no backend %r, so %s goes without", backend, agent_name)
                continue
            self.create_backend(backend, {"num_threads": str(config.num_threads)} if config.num_threads > 0 else {})

    def close(self) -> None:
        """Ends connections, transfers and registrations; what the last reference's end does as well. Idempotent."""
        if self._end is not None:
            self._end()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<nixl_agent {self.name} with {', '.join(self.backends) or 'no backend'}>"
