"""A GPU's memory through the CUDA driver: allocate, free, copy. Loaded when first asked for; torch isn't needed."""

from __future__ import annotations

import ctypes
import functools
import os
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from penstock.compat.hmc.errors import HMCError
from penstock.errors import TransportUnavailable

__all__ = ["DeviceMemory", "copy", "cuda_device_count", "pointer_of"]

_LIBRARY = "libcuda.so.1"
_SIGNATURES: dict[str, tuple[Any, ...]] = {
    "cuInit": (ctypes.c_uint,),
    "cuDeviceGetCount": (ctypes.POINTER(ctypes.c_int),),
    "cuDevicePrimaryCtxRetain": (ctypes.POINTER(ctypes.c_void_p), ctypes.c_int),
    "cuCtxPushCurrent_v2": (ctypes.c_void_p,),
    "cuCtxPopCurrent_v2": (ctypes.POINTER(ctypes.c_void_p),),
    "cuCtxSynchronize": (),
    "cuMemAlloc_v2": (ctypes.POINTER(ctypes.c_uint64), ctypes.c_size_t),
    "cuMemFree_v2": (ctypes.c_uint64,),
    "cuMemcpy": (ctypes.c_uint64, ctypes.c_uint64, ctypes.c_size_t),
}


class DeviceMemory:
    """Bytes in a GPU's memory, freed with the last reference, so never while an agent has them registered.

    ``close()`` frees them at once; it is for memory that nobody has registered.

    Attributes:
        nbytes: how many there are.
        device_id: which GPU.
    """

    def __init__(self, device_id: int, nbytes: int) -> None:
        address = ctypes.c_uint64()
        with _current(device_id) as driver:
            _check(driver, "cuMemAlloc_v2", ctypes.byref(address), nbytes)
        self.nbytes = nbytes
        self.device_id = device_id
        self._address = address.value
        self._end = weakref.finalize(self, _free, device_id, address.value, os.getpid())

    @property
    def address(self) -> int:
        """Of the first byte; 0 when it was freed."""
        return self._address if self._end.alive else 0

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        return {"shape": (self.nbytes,), "typestr": "|u1", "data": (self.address, False), "version": 3, "strides": None}

    def close(self) -> None:
        """Gives the memory back; again is a no-op."""
        self._end()


def _free(device_id: int, address: int, owner: int) -> None:
    if os.getpid() == owner:  # a forked child has no part in its parent's GPU
        with _current(device_id) as driver:
            _check(driver, "cuMemFree_v2", address)


def cuda_device_count() -> int:
    """How many CUDA devices this process can use; 0 without a driver."""
    try:
        driver = _driver()
    except TransportUnavailable:
        return 0
    count = ctypes.c_int()
    _check(driver, "cuDeviceGetCount", ctypes.byref(count))
    return count.value


def copy(device_id: int, target: int, source: int, nbytes: int) -> None:
    """Copies bytes between any two places, host or GPU; they are there when it returns.

    Args:
        device_id: the GPU that one of the two belongs to.
        target: address of the first byte to write.
        source: address of the first byte to read.
        nbytes: how many.
    """
    if nbytes:
        with _current(device_id) as driver:
            _check(driver, "cuMemcpy", target, source, nbytes)
            _check(driver, "cuCtxSynchronize")  # between two places on a GPU the copy itself doesn't wait


def pointer_of(tensor: Any) -> int:
    """The address of a contiguous CUDA tensor's first byte, after what was queued before has written it."""
    import torch

    torch.cuda.current_stream(tensor.device).synchronize()
    return int(tensor.data_ptr())


@functools.cache
def _driver() -> Any:
    try:
        driver = ctypes.CDLL(_LIBRARY)
    except OSError as error:
        raise TransportUnavailable(
            f"no CUDA driver here ({error}); use MemoryType.CPU, or run where an NVIDIA GPU is"
        ) from error
    for name, arguments in _SIGNATURES.items():
        getattr(driver, name).argtypes = arguments
    code = driver.cuInit(0)
    if code != 0:
        raise TransportUnavailable(f"the CUDA driver doesn't start (code {code}); use MemoryType.CPU")
    return driver


@functools.cache
def _context(device_id: int) -> ctypes.c_void_p:
    context = ctypes.c_void_p()
    _check(_driver(), "cuDevicePrimaryCtxRetain", ctypes.byref(context), device_id)
    return context


@contextmanager
def _current(device_id: int) -> Iterator[Any]:
    """The driver, with the GPU's primary context (which torch uses as well) current in this thread."""
    driver = _driver()
    _check(driver, "cuCtxPushCurrent_v2", _context(device_id))
    try:
        yield driver
    finally:
        driver.cuCtxPopCurrent_v2(ctypes.byref(ctypes.c_void_p()))


def _check(driver: Any, name: str, *arguments: Any) -> None:
    code = getattr(driver, name)(*arguments)
    if code != 0:
        raise HMCError(f"the CUDA driver's {name} failed with code {code}")
