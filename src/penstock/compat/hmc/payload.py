"""What users hand over (bytes, arrays, tensors) as the bytes that it consists of.

Everything becomes a one-dimensional uint8 array over the same memory, so shape and dtype never matter: neither
zero-dimensional arrays nor dtypes that NumPy lacks (bfloat16) are special. torch is never imported here: a tensor can
only come from a program that has done so.
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
from numpy.typing import NDArray

from penstock.compat.hmc.errors import HMCError
from penstock.errors import ConfigError

__all__ = ["Bytes", "address_of", "byte_count", "is_device_tensor", "is_tensor", "readable", "taken", "writable"]

Bytes = NDArray[np.uint8]


def address_of(array: Bytes) -> int:
    """Where its first byte lies."""
    return int(array.ctypes.data)


def is_tensor(value: object) -> bool:
    """Whether it is a torch tensor."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.Tensor)


def is_device_tensor(value: Any) -> bool:
    """Whether it is a torch tensor in an accelerator's memory."""
    return is_tensor(value) and value.device.type != "cpu"


def byte_count(value: Any) -> int:
    """How many bytes its elements take.

    Raises:
        TypeError: neither bytes nor array nor tensor.
    """
    if is_tensor(value):
        return int(value.numel()) * int(value.element_size())
    if isinstance(value, np.ndarray):
        return value.nbytes
    return _view(value).nbytes


def readable(data: Any) -> Bytes:
    """The bytes of ``data`` in C order: a view, or a copy where they don't lie so.

    Raises:
        TypeError: neither bytes nor array nor tensor.
        ConfigError: a tensor that isn't in the CPU's memory, or an array of Python objects.
    """
    if is_tensor(data):
        return _of_tensor(data)
    if not isinstance(data, np.ndarray):
        view = _view(data)
        return np.frombuffer(view if view.c_contiguous else view.tobytes(), dtype=np.uint8)
    if data.dtype.hasobject:
        raise ConfigError(f"an array of {data.dtype} holds Python objects, not bytes; give numbers")
    return np.ascontiguousarray(data).reshape(-1).view(np.uint8)


def writable(destination: Any) -> Bytes:
    """The bytes of ``destination``, to be filled in place.

    Raises:
        TypeError: neither bytes nor array nor tensor.
        ConfigError: it is read-only, or not contiguous, or not in the CPU's memory.
    """
    if is_tensor(destination):
        if not destination.is_contiguous():
            raise ConfigError("the destination tensor is not contiguous; give tensor.contiguous() and copy it back")
        if destination.is_conj() or destination.is_neg():
            raise ConfigError("the destination tensor is a conjugate or negative view; give the tensor that it views")
        return _of_tensor(destination)
    if isinstance(destination, np.ndarray) and destination.dtype.hasobject:
        raise ConfigError(f"an array of {destination.dtype} holds Python objects, not bytes; give numbers")
    if isinstance(destination, np.ndarray):
        read_only, contiguous = not destination.flags.writeable, destination.flags.c_contiguous
    else:
        view = _view(destination)
        read_only, contiguous = view.readonly, view.c_contiguous
    if read_only:
        raise ConfigError(f"the destination {type(destination).__name__} is read-only; give one that can be written")
    if not contiguous:
        raise ConfigError(f"the destination {type(destination).__name__} is not contiguous; give a C-contiguous one")
    if isinstance(destination, np.ndarray):
        return destination.reshape(-1).view(np.uint8)
    return np.frombuffer(_view(destination), dtype=np.uint8)


def taken(count: Any, available: int, name: str = "nbytes") -> int:
    """How many bytes to take of a source of ``available``: all, unless ``count`` says fewer.

    Raises:
        ConfigError: a negative number.
        HMCError: more than there are.
    """
    if count is None:
        return available
    wanted = int(count)
    if wanted < 0:
        raise ConfigError(f"{name} is {wanted}; give 0 or more bytes")
    if wanted > available:
        raise HMCError(f"Source buffer too small: {name} is {wanted}, the source has {available} bytes")
    return wanted


def _view(data: Any) -> memoryview:
    try:
        return memoryview(data)
    except TypeError:
        raise TypeError(
            f"{type(data).__name__} has no bytes; give bytes, bytearray, memoryview, a NumPy array or a torch tensor"
        ) from None


def _of_tensor(tensor: Any) -> Bytes:
    if tensor.device.type != "cpu":
        raise ConfigError(
            f"a tensor on {tensor.device} is not in the CPU's memory; use device='cuda' with a session whose buffer is "
            "on a GPU (mem_type=MemoryType.NVIDIA_GPU), or give tensor.cpu()"
        )
    torch = sys.modules["torch"]
    plain = tensor.detach().resolve_conj().resolve_neg().contiguous()
    flat: Bytes = plain.reshape(-1).view(torch.uint8).numpy()
    return flat
