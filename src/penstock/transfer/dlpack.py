"""Where the memory of an object lies that speaks DLPack, on any device, without importing its library.

NumPy takes only tensors on the CPU from others. So this reads the header itself, as dlpack.h lays it out: ``DLTensor``
is the first member of the ``DLManagedTensor`` that a capsule named ``"dltensor"`` points to. The capsule isn't
consumed: as long as it lives the memory does.
"""

from __future__ import annotations

import ctypes
from math import prod
from typing import Any, Final, NamedTuple

from penstock.errors import ConfigError

__all__ = ["DlpackMemory", "dlpack_memory"]

CPU: Final = 1
CUDA: Final = 2
CUDA_HOST: Final = 3
CUDA_MANAGED: Final = 13


class _DLTensor(ctypes.Structure):
    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int32),
        ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32),
        ("code", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    )


class DlpackMemory(NamedTuple):
    """One contiguous range.

    Attributes:
        address: of its first byte.
        length: in bytes.
        on_gpu: whether it is a GPU's memory.
        device: the GPU's number; 0 on the host.
        capsule: keeps the memory alive.
    """

    address: int
    length: int
    on_gpu: bool
    device: int
    capsule: object


def dlpack_memory(thing: Any) -> DlpackMemory:
    """Where the memory lies of something with ``__dlpack__``.

    Raises:
        ConfigError: it gives none, on another kind of device, or isn't contiguous.
    """
    try:
        capsule = thing.__dlpack__()
        address = _pointer(capsule, b"dltensor")
    except Exception as error:  # whatever the foreign library raises
        raise ConfigError(f"{type(thing).__name__} gives no DLPack capsule: {error}") from error
    tensor = ctypes.cast(address, ctypes.POINTER(_DLTensor)).contents
    shape = [int(tensor.shape[axis]) for axis in range(tensor.ndim)]
    if tensor.strides and not _contiguous(shape, [int(tensor.strides[axis]) for axis in range(tensor.ndim)]):
        raise ConfigError(f"{type(thing).__name__} of shape {tuple(shape)} isn't contiguous; give a contiguous copy")
    if tensor.device_type not in (CPU, CUDA, CUDA_HOST, CUDA_MANAGED):
        raise ConfigError(f"{type(thing).__name__} lies on a device of DLPack's type {tensor.device_type}; CPU or CUDA")
    on_gpu = tensor.device_type in (CUDA, CUDA_MANAGED)
    return DlpackMemory(
        address=int(tensor.data or 0) + tensor.byte_offset,
        length=(prod(shape) * tensor.bits * tensor.lanes + 7) // 8,
        on_gpu=on_gpu,
        device=tensor.device_id if on_gpu else 0,
        capsule=capsule,
    )


def _pointer(capsule: object, name: bytes) -> int:
    get = ctypes.pythonapi.PyCapsule_GetPointer
    get.restype, get.argtypes = ctypes.c_void_p, (ctypes.py_object, ctypes.c_char_p)
    return int(get(capsule, name))


def _contiguous(shape: list[int], strides: list[int]) -> bool:
    """Whether strides, in items, are those of row-major order; an axis of one item may have any."""
    expected = 1
    for size, stride in zip(reversed(shape), reversed(strides), strict=True):
        if size != 1 and stride != expected:
            return False
        expected *= size
    return True
