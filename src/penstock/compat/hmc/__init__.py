"""HMC's names for moving memory: ``from penstock.compat import hmc`` instead of ``import hmc``.

Sessions of HMC's Python guide (v0.1: ``put``, ``get``, ``get_into``) and of its second generation (``put_remote``,
``put_nb``, control tags, all-to-all), over ``penstock.transfer``. ``docs/hmc.md`` says what an HMC program has to
change and where Penstock decides otherwise.
"""

from penstock.compat.hmc.buffer import ConnBuffer, IOBuffer
from penstock.compat.hmc.collective import alltoall
from penstock.compat.hmc.communicator import Communicator
from penstock.compat.hmc.control import CtrlLink
from penstock.compat.hmc.enums import ConnType, CtrlTransport, MemoryType, Status, status_t
from penstock.compat.hmc.errors import HMCError, HMCStatusError
from penstock.compat.hmc.group import Group, init_group
from penstock.compat.hmc.memory import Buffer, Memory, memory_supported, memory_type_from_torch_tensor
from penstock.compat.hmc.session import Session, create_session

__all__ = [
    "Buffer",
    "Communicator",
    "ConnBuffer",
    "ConnType",
    "CtrlLink",
    "CtrlTransport",
    "Group",
    "HMCError",
    "HMCStatusError",
    "IOBuffer",
    "Memory",
    "MemoryType",
    "Session",
    "Status",
    "alltoall",
    "create_session",
    "init_group",
    "memory_supported",
    "memory_type_from_torch_tensor",
    "status_t",
]
