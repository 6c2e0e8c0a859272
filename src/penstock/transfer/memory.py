"""Where things lie in memory: buffers, arrays, tensors and plain addresses as ranges that can be registered.

Nothing is imported for this: who hands over a tensor has torch loaded already. A tensor costs some 400 ns, so that
thousands can be registered in one go.
"""

from __future__ import annotations

import itertools
import operator
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from penstock.errors import ConfigError
from penstock.transfer.dlpack import dlpack_memory
from penstock.transfer.table import Memory, checked_memory, checked_table, table_of
from penstock.transfer.wire import UInt64s

__all__ = ["Ranges", "ranges_of"]

_ALLOWED = (
    "give a region, a buffer, an array, a tensor, (address, length), (address, length, device), or a list of these"
)


@dataclass(frozen=True, eq=False)
class Ranges:
    """Memory of one kind, a row for each thing that was given, in order.

    Attributes:
        memory: ``"DRAM"`` or ``"VRAM"``.
        table: (N, 3) uint64: address, length in bytes, device.
        keepalive: as long as these objects live the memory does; that of plain addresses is their owner's business.
        writable: whether all of it may be written to.
    """

    memory: Memory
    table: UInt64s
    keepalive: tuple[object, ...] = field(default=(), repr=False)
    writable: bool = True

    def __len__(self) -> int:
        return len(self.table)


def ranges_of(thing: Any, memory: Memory | None = None) -> Ranges:
    """Where ``thing`` lies.

    Args:
        thing: a region or anything with the buffer protocol; a NumPy array; a torch tensor; an object with
            ``__cuda_array_interface__`` or ``__dlpack__``; a row ``(address, length)`` or
            ``(address, length, device)``; a list of those, all in one kind of memory. Everything is contiguous, in
            row-major order.
        memory: what kind of memory plain addresses are in; None = DRAM. **With it** an array (N, 2) or (N, 3) is a
            table of addresses; without it every array is the memory of the array itself.

    Returns:
        A row for each thing. What owns memory is kept alive by the result, and a ``bytearray`` can't be resized.

    Raises:
        ConfigError: something else, nothing, or an empty range; memory of several kinds; something not contiguous; a
            range beyond 2**64 - 1.
    """
    if memory is not None:
        memory = checked_memory(memory)
        if isinstance(thing, np.ndarray):
            return _not_empty(Ranges(memory, table_of(thing)))
    if isinstance(thing, list) or (isinstance(thing, tuple) and not _is_row(thing)):
        found = _of_list(thing, memory)
    else:
        found = _of_list([thing], memory)
    if memory is not None and found.memory != memory:
        raise ConfigError(f"memory={memory!r}, but what was given lies in {found.memory}; leave memory out")
    return _not_empty(found)


def _of_list(things: Sequence[Any], memory: Memory | None) -> Ranges:
    if not things:
        raise ConfigError(f"an empty list of memory; {_ALLOWED}")
    kinds = set(map(type, things))
    if kinds == {tuple}:
        return Ranges(memory or "DRAM", table_of(things))
    if _all_tensors(kinds):
        return _of_tensors(things)
    return _of_pieces([_piece(thing, memory) for thing in things])


class _Piece(NamedTuple):
    """One thing: its row, and what else there is to know of it."""

    memory: Memory
    address: int
    length: int
    device: int
    owners: tuple[object, ...]
    writable: bool


def _of_pieces(pieces: Sequence[_Piece]) -> Ranges:
    memories, addresses, lengths, devices, owners, writable = zip(*pieces, strict=True)
    if len(set(memories)) > 1:
        raise ConfigError("DRAM and VRAM in one list; make one list of each")
    table = _table(*(np.array(column, np.uint64) for column in (addresses, lengths, devices)))
    return Ranges(memories[0], table, tuple(itertools.chain.from_iterable(owners)), all(writable))


def _piece(thing: Any, memory: Memory | None) -> _Piece:
    if isinstance(thing, np.ndarray):
        return _of_array(thing)
    if isinstance(thing, tuple):
        address, length, device = table_of([thing])[0].tolist()
        return _Piece(memory or "DRAM", address, length, device, (), True)
    if _all_tensors({type(thing)}):
        return _of_tensor(thing)
    if hasattr(thing, "__cuda_array_interface__"):
        return _of_cuda_array(thing)
    try:
        view = memoryview(thing)
    except TypeError:
        if hasattr(thing, "__dlpack__"):
            return _of_dlpack(thing)
        raise ConfigError(f"{type(thing).__name__} isn't memory; {_ALLOWED}") from None
    return _of_buffer(view)


def _of_tensor(tensor: Any) -> _Piece:
    ranges = _of_tensors([tensor])
    address, length, device = ranges.table[0].tolist()
    return _Piece(ranges.memory, address, length, device, ranges.keepalive, True)


def _of_tensors(tensors: Sequence[Any]) -> Ranges:
    """Torch's tensors: one C call for each thing asked of each, and no Python in between."""
    torch = sys.modules["torch"]
    kind = torch.Tensor
    try:
        contiguous = all(map(kind.is_contiguous, tensors))
        addresses = np.fromiter(map(kind.data_ptr, tensors), np.uint64, len(tensors))
        # The storages, not the tensors: a tensor may be given another one (``tensor.data = ...``).
        storages = tuple(map(kind.untyped_storage, tensors))
    except (RuntimeError, NotImplementedError) as error:
        raise ConfigError(f"a tensor without memory of its own that is dense and strided: {error}") from error
    if not contiguous:
        row, tensor = next((row, tensor) for row, tensor in enumerate(tensors) if not tensor.is_contiguous())
        raise ConfigError(
            f"tensor {row} of shape {tuple(tensor.shape)} and strides {tensor.stride()} isn't contiguous; "
            "give tensor.contiguous() or its parts"
        )
    lengths = np.fromiter(map(operator.attrgetter("nbytes"), tensors), np.uint64, len(tensors))
    devices = np.fromiter(map(kind.get_device, tensors), np.int64, len(tensors))
    memory = _memory_of_tensors(tensors, devices)
    return Ranges(memory, _table(addresses, lengths, devices.clip(0).astype(np.uint64)), storages)


def _memory_of_tensors(tensors: Sequence[Any], devices: npt.NDArray[np.int64]) -> Memory:
    """By one tensor of each device, for asking each for its device would cost as much as all the rest."""
    _, firsts = np.unique(devices, return_index=True)
    kinds = {tensors[row].device.type for row in firsts}
    if not kinds <= {"cpu", "cuda"}:
        raise ConfigError(f"tensors on {' and '.join(sorted(kinds))}; they can be on the CPU or on CUDA devices")
    if len(kinds) > 1:
        raise ConfigError("tensors on the CPU and on CUDA devices in one list; make one list of each")
    return "VRAM" if kinds == {"cuda"} else "DRAM"


def _of_array(array: npt.NDArray[Any]) -> _Piece:
    if array.dtype.hasobject:
        raise ConfigError(f"an array of dtype {array.dtype} holds references to objects, which mean nothing elsewhere")
    if not array.flags.c_contiguous:
        raise ConfigError(
            f"an array of shape {array.shape} and strides {array.strides} isn't contiguous in row-major order; "
            "give numpy.ascontiguousarray(array), or array.T of an array in column-major order"
        )
    address, read_only = array.__array_interface__["data"]
    return _Piece("DRAM", address, array.nbytes, 0, (array,), not read_only)


def _of_buffer(view: memoryview) -> _Piece:
    if not view.c_contiguous or "O" in view.format:
        raise ConfigError(
            f"a buffer of shape {view.shape}, strides {view.strides} and format {view.format!r} "
            "isn't contiguous plain data"
        )
    if not view.nbytes:
        raise ConfigError(f"an empty buffer; {_ALLOWED}")
    (address, _) = np.frombuffer(view, np.uint8).__array_interface__["data"]
    return _Piece("DRAM", address, view.nbytes, 0, (view,), not view.readonly)


def _of_cuda_array(array: Any) -> _Piece:
    """CUDA Array Interface, version 3: it doesn't say which device, so DLPack is asked for that."""
    face = array.__cuda_array_interface__
    shape, item_bytes = tuple(face["shape"]), np.dtype(face["typestr"]).itemsize
    length = item_bytes
    for size, stride in zip(reversed(shape), reversed(face.get("strides") or (None,) * len(shape)), strict=True):
        if stride is not None and size != 1 and stride != length:
            raise ConfigError(f"a CUDA array of shape {shape} and strides {face['strides']} isn't contiguous")
        length *= size
    address, read_only = face["data"]
    device = array.__dlpack_device__()[1] if hasattr(array, "__dlpack_device__") else 0
    return _Piece("VRAM", address or 0, length, device, (array,), not read_only)


def _of_dlpack(thing: Any) -> _Piece:
    found = dlpack_memory(thing)
    return _Piece("VRAM" if found.on_gpu else "DRAM", found.address, found.length, found.device, (found.capsule,), True)


def _not_empty(ranges: Ranges) -> Ranges:
    if not len(ranges):
        raise ConfigError(f"an empty table of memory; {_ALLOWED}")
    if ranges.keepalive and not ranges.table[:, 0].all():
        raise ConfigError("a tensor or array without memory: its address is 0")
    return ranges


def _is_row(thing: tuple[Any, ...]) -> bool:
    return bool(thing) and all(isinstance(number, (int, np.integer)) for number in thing)


def _all_tensors(kinds: set[type]) -> bool:
    torch = sys.modules.get("torch")
    tensor = getattr(torch, "Tensor", None)
    return tensor is not None and all(issubclass(kind, tensor) for kind in kinds)


def _table(addresses: UInt64s, lengths: UInt64s, devices: UInt64s) -> UInt64s:
    return checked_table(np.column_stack([addresses, lengths, devices]))
