"""What programs give as descriptors, tensors, arrays or tuples, as descriptor lists.

NIXL writes a line in the log and returns None where it can't tell what is meant; so do these functions, and whoever
needs a list (``required``) raises.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from typing import Any, TypeVar

import numpy as np

from penstock.compat.nixl.descriptors import DescriptorList, nixlRegDList, nixlRemoteDList, nixlXferDList
from penstock.compat.nixl.errors import nixlInvalidParamError
from penstock.compat.nixl.memory import MEMORY_KINDS, nixl_mem_t
from penstock.errors import ConfigError
from penstock.transfer.memory import ranges_of

__all__ = ["is_tensors", "registered_list", "remote_list", "required", "transfer_list"]

_log = logging.getLogger("penstock")

L = TypeVar("L", bound=DescriptorList)


def transfer_list(given: Any, mem_type: str | None = None) -> nixlXferDList | None:
    """A list to transfer from or to; ``MetadataCalls.get_xfer_descs`` says of what, and what it raises."""
    return _list_of(nixlXferDList, given, mem_type, width=3)


def registered_list(given: Any, mem_type: str | None = None) -> nixlRegDList | None:
    """A list to register; as ``transfer_list``, but tuples have a fourth field, which belongs to the row."""
    return _list_of(nixlRegDList, given, mem_type, width=4)


def remote_list(given: Any, mem_type: str | None) -> nixlRemoteDList | None:
    """A list of other agents' memory: tuples whose fourth field is the agent's name."""
    return _list_of(nixlRemoteDList, given, mem_type, width=4)


def required(found: L | None, given: Any) -> L:
    """The list, where a call can't do without one.

    Raises:
        nixlInvalidParamError: there is none.
    """
    if found is None:
        raise nixlInvalidParamError(
            f"{type(given).__name__} can't be read as descriptors; give get_xfer_descs(...) or get_reg_descs(...), "
            "tuples or an array (N, 3) and a mem_type, or contiguous tensors"
        )
    return found


def is_tensors(given: Any) -> bool:
    """Whether this is a torch tensor or a list of them. Never imports torch."""
    return _is_tensor(given) or (isinstance(given, list) and bool(given) and _is_tensor(given[0]))


class _Unclear(Exception):
    """What was given doesn't say which memory is meant."""


def _list_of(kind: type[L], given: Any, mem_type: str | None, *, width: int) -> L | None:
    try:
        return _read(kind, given, mem_type, width)
    except _Unclear as error:
        _log.error("%s", error)
        return None


def _read(kind: type[L], given: Any, mem_type: str | None, width: int) -> L:
    if isinstance(given, kind):
        return given
    memory = None if mem_type is None else MEMORY_KINDS[mem_type]
    if is_tensors(given):
        return _of_tensors(kind, [given] if _is_tensor(given) else given)
    if isinstance(given, np.ndarray):
        return _of_array(kind, given, memory)
    if isinstance(given, list):
        return _of_tuples(kind, given, memory, width)
    raise _Unclear(f"a {type(given).__name__} can't be read as a {kind.__name__}")


def _of_tuples(kind: type[L], given: list[Any], memory: nixl_mem_t | None, width: int) -> L:
    first = given[0]
    if not isinstance(first, tuple) or len(first) != width:
        raise _Unclear(f"descriptors for a {kind.__name__} are tuples of {width} fields, not {first!r}")
    if memory is None:
        raise _Unclear("tuples don't say which memory they lie in; give mem_type")
    return kind(memory, given)


def _of_array(kind: type[L], given: Any, memory: nixl_mem_t | None) -> L:
    if given.ndim != 2 or given.shape[1] != 3:
        raise _Unclear(f"an array of descriptors is (N, 3), not {given.shape}")
    if memory is None:
        raise _Unclear("an array doesn't say which memory it describes; give mem_type")
    if given.dtype not in (np.uint64, np.int64) or not given.flags.c_contiguous:
        layout = "" if given.flags.c_contiguous else ", not C-contiguous"
        raise ValueError(f"an array of {given.dtype}{layout}; give C-contiguous uint64 or int64")
    return kind(memory, given)


def _of_tensors(kind: type[L], tensors: Sequence[Any]) -> L:
    try:
        ranges = ranges_of(tensors)
    except ConfigError as error:
        raise _Unclear(str(error)) from error
    if len(np.unique(ranges.table[:, 2])) > 1:
        raise _Unclear("a list of tensors must be all on one device")
    return kind(MEMORY_KINDS[ranges.memory], ranges.table)


def _is_tensor(given: Any) -> bool:
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(given, torch.Tensor)
