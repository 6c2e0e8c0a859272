"""NIXL's names for moving memory: ``from penstock.compat.nixl import ...`` instead of ``from nixl import ...``.

The agent, its configuration and handles of NIXL's Python API, over ``penstock.transfer``: every transfer has a
deadline, every registration a generation, and nothing that travels is a pickle. ``docs/nixl.md`` says what differs.
The exceptions and descriptor lists are in ``penstock.compat.nixl._bindings``, as NIXL's are in its own.
"""

from __future__ import annotations

from penstock.compat.nixl.agent import nixl_agent
from penstock.compat.nixl.base import nixl_backend_handle
from penstock.compat.nixl.config import DEFAULT_COMM_PORT, nixl_agent_config, nixl_thread_sync_t
from penstock.compat.nixl.handles import nixl_prepped_dlist_handle, nixl_xfer_handle

__all__ = [
    "DEFAULT_COMM_PORT",
    "nixl_agent",
    "nixl_agent_config",
    "nixl_backend_handle",
    "nixl_prepped_dlist_handle",
    "nixl_thread_sync_t",
    "nixl_xfer_handle",
]
