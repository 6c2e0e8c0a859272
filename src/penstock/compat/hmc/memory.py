"""Memory of one kind, with copies in and out, as HMC's ``Memory`` and ``Buffer`` have it."""

from __future__ import annotations

import contextlib
import ctypes
from typing import Any

from penstock.compat.hmc.device import DeviceMemory, copy, cuda_device_count, pointer_of
from penstock.compat.hmc.enums import MemoryType, Status, member
from penstock.compat.hmc.errors import HMCError, HMCStatusError, status_of
from penstock.compat.hmc.payload import address_of, byte_count, is_device_tensor, is_tensor, readable, writable

__all__ = ["Buffer", "Memory", "memory_supported", "memory_type_from_torch_tensor", "resolved"]


def memory_supported() -> MemoryType:
    """The accelerator whose memory sessions can use here, else ``MemoryType.CPU``."""
    return MemoryType.NVIDIA_GPU if cuda_device_count() else MemoryType.CPU


def memory_type_from_torch_tensor(t: Any, *, default: MemoryType | None = None) -> MemoryType:
    """Which kind of memory a torch tensor lies in; ``default``, or ``DEFAULT``, for one that HMC has no name for.

    Raises:
        TypeError: not a tensor.
    """
    if not is_tensor(t):
        raise TypeError(f"{type(t).__name__} is no torch tensor; give one")
    kind = t.device.type
    if kind == "cuda":
        import torch

        return MemoryType.AMD_GPU if torch.version.hip else MemoryType.NVIDIA_GPU
    known = {"cpu": MemoryType.CPU, "mlu": MemoryType.CAMBRICON_MLU, "musa": MemoryType.MOORE_GPU}
    return known.get(kind, MemoryType.DEFAULT if default is None else default)


def resolved(mem_type: Any) -> MemoryType:
    """The kind of memory that an argument means here: ``CPU`` or ``NVIDIA_GPU``.

    Raises:
        HMCStatusError: a kind that isn't there, with ``Status.UNSUPPORT``.
    """
    wanted = member(MemoryType, mem_type, "mem_type")
    here = memory_supported()
    found = here if wanted is MemoryType.DEFAULT else wanted
    if found in (MemoryType.CPU, here):
        return found
    raise HMCStatusError(
        "allocating a buffer",
        Status.UNSUPPORT,
        f"mem_type={wanted.name} isn't there; this machine has {' and '.join({'CPU': 0, here.name: 0})}",
    )


class Buffer(bytearray):
    """Bytes that a ``Memory`` allocated. In host memory it is the bytes themselves (buffer protocol, one dimension).

    Attributes:
        size: how many bytes, wherever they are.
        mem_type: the kind of memory.
        device_id: which device.
    """

    def __init__(self, size: int, mem_type: MemoryType, device_id: int) -> None:
        super().__init__(size if mem_type is MemoryType.CPU else 0)
        self.size = size
        self.mem_type = mem_type
        self.device_id = device_id
        self.device = None if mem_type is MemoryType.CPU else DeviceMemory(device_id, size)

    @property
    def ptr(self) -> int:
        """The address of the first byte; 0 after it was freed."""
        if self.device is not None:
            return self.device.address
        return address_of(readable(self)) if self else 0

    def free(self) -> None:
        """Gives the memory back; again is a no-op. Host memory that somebody still views goes with the last view."""
        if self.device is not None:
            self.device.close()
        else:
            with contextlib.suppress(BufferError):
                self.clear()


class Memory:
    """Allocates and copies memory of one kind. Its calls return a ``Status`` and don't raise for what fails inside."""

    def __init__(self, device_id: int, mem_type: Any = MemoryType.DEFAULT) -> None:
        self._device_id = int(device_id)
        self._mem_type = member(MemoryType, mem_type, "mem_type")
        self._status = self.init()

    def init(self) -> Status:
        """Looks whether this kind of memory is there."""
        try:
            self._mem_type = resolved(self._mem_type)
        except HMCStatusError as error:
            self._status = error.status
        else:
            self._status = Status.SUCCESS
        return self._status

    def free(self) -> Status:
        """Ends the use of it; buffers stay until they are freed."""
        return Status.SUCCESS

    def getInitStatus(self) -> Status:
        """What ``init`` found."""
        return self._status

    def getMemoryType(self) -> MemoryType:
        """The kind of memory, never ``DEFAULT`` where ``init`` succeeded."""
        return self._mem_type

    def getDeviceId(self) -> int:
        """Which device."""
        return self._device_id

    def allocateBuffer(self, size: int) -> tuple[Status, Buffer | None]:
        """``size`` bytes, or the status and None."""
        if self._status is not Status.SUCCESS:
            return self._status, None
        if size <= 0:
            return Status.INVALID_CONFIG, None
        try:
            return Status.SUCCESS, Buffer(int(size), self._mem_type, self._device_id)
        except Exception as error:
            return _status(error), None

    allocatePeerableBuffer = allocateBuffer

    def freeBuffer(self, buffer: Buffer) -> Status:
        """Gives it back; again is a no-op."""
        buffer.free()
        return Status.SUCCESS

    def copyHostToDevice(self, dest: Any, src: Any, size: int) -> Status:
        """Copies ``size`` bytes from host memory into this kind. Each side: a buffer, an address, an array or bytes."""
        return self._copy(dest, src, size)

    def copyDeviceToHost(self, dest: Any, src: Any, size: int) -> Status:
        """Copies ``size`` bytes of this kind into host memory."""
        return self._copy(dest, src, size)

    def copyDeviceToDevice(self, dest: Any, src: Any, size: int) -> Status:
        """Copies ``size`` bytes between two places of this kind."""
        return self._copy(dest, src, size)

    def _copy(self, dest: Any, src: Any, size: int) -> Status:
        try:
            target, source = _address(dest, size, writes=True), _address(src, size, writes=False)
            if self._mem_type is MemoryType.CPU:
                ctypes.memmove(target, source, size)
            else:
                copy(self._device_id, target, source, size)
        except Exception as error:
            return _status(error)
        return Status.SUCCESS


def _address(place: Any, size: int, *, writes: bool) -> int:
    """Where ``size`` bytes begin that ``place`` (a buffer, an address, bytes, an array, a tensor) has for us."""
    if isinstance(place, int):
        return place
    if isinstance(place, Buffer):
        address, available = place.ptr, place.size
    elif is_device_tensor(place):
        address, available = pointer_of(place), byte_count(place)
    else:
        array = writable(place) if writes or not isinstance(place, bytes) else readable(place)
        address, available = address_of(array), array.nbytes
    if not 0 <= size <= available:
        raise HMCError(f"{size} bytes don't fit: this {type(place).__name__} has {available}")
    return address


def _status(error: Exception) -> Status:
    if isinstance(error, TypeError | ValueError):
        return Status.INVALID_CONFIG
    return status_of(error) or Status.ERROR
