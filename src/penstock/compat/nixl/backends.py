"""Calls about backends: which there are, and creating them."""

from __future__ import annotations

import weakref
from collections.abc import Mapping

from penstock import config as environment
from penstock.compat.nixl.base import AgentState, log
from penstock.compat.nixl.descriptors import nixlRegDList
from penstock.compat.nixl.errors import (
    as_nixl,
    nixlInvalidParamError,
    nixlNotFoundError,
    nixlNotSupportedError,
)
from penstock.compat.nixl.exchange import Places
from penstock.compat.nixl.forms import registered_list, required
from penstock.compat.nixl.plugins import PLUGINS, file_facts
from penstock.compat.nixl.registrations import Registrations
from penstock.errors import ConfigError
from penstock.transfer import Agent

__all__ = ["BackendCalls"]


class BackendCalls(AgentState):
    """Backends."""

    _end: weakref.finalize[..., BackendCalls] | None = None
    _listen_on: int | None
    _places: Places | None = None

    def get_plugin_list(self) -> list[str]:
        """Names of the backends that can be created."""
        return list(PLUGINS)

    def get_plugin_mem_types(self, backend: str) -> list[str]:
        """Long names of the kinds of memory that a backend works with; unknown: a warning, and none."""
        return self._memory_names(backend, backend in PLUGINS)

    def get_plugin_params(self, backend: str) -> dict[str, str]:
        """What a backend may be given, with its defaults; unknown: a warning, and nothing."""
        return dict(PLUGINS[backend].params) if self._warned(backend, backend in PLUGINS) else {}

    def get_backend_mem_types(self, backend: str) -> list[str]:
        """``get_plugin_mem_types`` of a backend that was created."""
        return self._memory_names(backend, backend in self.backends)

    def get_backend_params(self, backend: str) -> dict[str, str]:
        """What a backend was created with; not created: a warning, and nothing."""
        return dict(self._params[backend]) if self._warned(backend, backend in self.backends) else {}

    def create_backend(self, backend: str, initParams: Mapping[str, str] | None = None) -> None:
        """Creates a backend.

        Args:
            backend: its name. Of several that fit, the one that was created first is used.
            initParams: see ``get_plugin_params``.

        Raises:
            nixlNotFoundError: there is none of this name.
            nixlInvalidParamError: it was created before, or has no such parameter.
            nixlBackendError: it can't be set up.
        """
        plugin = PLUGINS.get(backend)
        if plugin is None:
            raise nixlNotFoundError(f"there is no backend {backend!r}; choose one of {', '.join(PLUGINS)}")
        if backend in self.backends:
            raise nixlInvalidParamError(f"backend {backend!r} was created before")
        given = dict(initParams or {})
        unknown = [name for name in given if name not in plugin.params]
        if unknown:
            log.warning("backend %s: parameters without effect: %s", backend, ", ".join(sorted(unknown)))
        params = {**plugin.params, **given}
        if plugin.moves:
            self._open(params)
        self._params[backend] = params
        self.backends[backend] = len(self.backends) + 1

    def query_memory(self, reg_list: object, backend: str, mem_type: str | None = None) -> list[dict[str, str] | None]:
        """What there is where descriptors point: of files their size, mode and time of change; None = nothing.

        Raises:
            ConfigError: a ``ValueError``: the backend wasn't created.
            nixlNotSupportedError: it knows nothing about this memory.
        """
        if backend not in self.backends:
            raise ConfigError(f"backend {backend!r} wasn't created; there are {', '.join(self.backends) or 'none'}")
        if isinstance(reg_list, list) and not reg_list:
            return []
        rows = required(registered_list(reg_list, mem_type), reg_list)
        return self._query(rows, backend)

    def _query(self, rows: nixlRegDList, backend: str) -> list[dict[str, str] | None]:
        if not len(rows):
            return []
        if rows.getType() not in PLUGINS[backend].memory or PLUGINS[backend].moves:
            raise nixlNotSupportedError(f"backend {backend!r} can't be asked about {rows.getType().name}")
        return file_facts(rows)

    def _open(self, params: dict[str, str]) -> None:
        network = params["ucx_devices"] or environment.lookup("TRANSFER_NETWORK")
        with as_nixl():
            agent = Agent(
                self.name,
                network=network_of(network),
                require=params["require"] or None,
                timeout_s=_seconds(params["timeout_s"]),
            )
            places = Places(agent)
            try:
                if self._listen_on is not None:
                    places.listen(self._listen_on)
            except BaseException:
                agent.close()
                raise
        self.agent, self._places, self._registrations = agent, places, Registrations(agent)
        self._end = weakref.finalize(self, _ended, places, agent)

    def _memory_names(self, backend: str, known: bool) -> list[str]:
        return [kind.name for kind in PLUGINS[backend].memory] if self._warned(backend, known) else []

    def _warned(self, backend: str, known: bool) -> bool:
        if not known:
            log.warning("there is no backend %r, or it wasn't created", backend)
        return known


def _ended(places: Places, agent: Agent) -> None:
    """Ends what one ``nixl_agent`` opened: when it is closed, nobody has it any more, or the process ends."""
    places.close()
    agent.close()


def network_of(devices: str | None) -> str | None:
    """What ``Agent`` takes as its network, of what UCX calls devices."""
    return "any" if devices == "all" else devices


def _seconds(text: str) -> float:
    try:
        return float(text)
    except ValueError as error:
        raise ConfigError(f"timeout_s is {text!r}; give seconds, such as '30'") from error
