"""The buffer that a session shares with its peers: fixed size, addressed by offset."""

from __future__ import annotations

import contextlib
from typing import Any

import numpy as np

from penstock import _core
from penstock.compat.hmc.device import DeviceMemory, copy, pointer_of
from penstock.compat.hmc.enums import MemoryType, Status
from penstock.compat.hmc.errors import HMCError, HMCStatusError
from penstock.compat.hmc.memory import resolved
from penstock.compat.hmc.payload import (
    Bytes,
    address_of,
    byte_count,
    is_device_tensor,
    is_tensor,
    readable,
    taken,
    writable,
)
from penstock.compat.hmc.whole import whole
from penstock.errors import ClosedError, ConfigError

__all__ = ["ConnBuffer", "IOBuffer"]

DEFAULT_SIZE = 128 << 20


class ConnBuffer:
    """The bytes themselves: memory that peers can be let into, on the CPU or on a GPU.

    Attributes:
        size: bytes.
        mem_type: ``CPU`` or ``NVIDIA_GPU``; ``DEFAULT`` was one of them.
        device_id: which GPU; on the CPU only remembered.
    """

    def __init__(self, device_id: int = 0, buffer_size: int = DEFAULT_SIZE, mem_type: Any = MemoryType.DEFAULT) -> None:
        self.size = whole(buffer_size, "buffer_size")
        if self.size < 1:
            raise ConfigError(f"buffer_size is {self.size} bytes; give at least 1")
        self.mem_type = resolved(mem_type)
        self.device_id = device_id
        self._segment: _core.Segment | None = None
        self._host: Bytes | None = None
        self._device: DeviceMemory | None = None
        if self.mem_type is MemoryType.CPU:
            self._segment = _core.Segment.create(self.size)  # what Agent.allocate gives: peers on this host map it
            self._host = np.asarray(self._segment)
        else:
            self._device = DeviceMemory(device_id, self.size)

    @property
    def ptr(self) -> int:
        """The address of the first byte."""
        return address_of(self._host) if self._host is not None else self._on_device().address

    @property
    def device(self) -> int:
        """The device as descriptors have it: 0 for the CPU."""
        return 0 if self.mem_type is MemoryType.CPU else self.device_id

    @property
    def shared(self) -> Any:
        """What agents register: the segment on the CPU, or the GPU's memory."""
        return self._segment if self._segment is not None else self._on_device()

    def close(self) -> None:
        """Lets go of the memory, which goes when no agent has it registered; every use from now on is an error."""
        self._host = self._segment = self._device = None

    def window(self, offset: int, nbytes: int) -> int:
        """``offset``, after a look whether ``nbytes`` from there lie inside.

        Raises:
            TypeError: not whole numbers.
            HMCError: they don't.
        """
        offset, nbytes = whole(offset, "offset"), whole(nbytes, "nbytes")
        if offset < 0 or nbytes < 0 or offset + nbytes > self.size:
            raise HMCError(f"Buffer overflow: offset {offset} + {nbytes} bytes, the buffer has {self.size}")
        return offset

    def writeFromCpu(self, src: Any, size: int, bias: int = 0) -> Status:
        """Copies ``size`` bytes of host memory (bytes, an array, a tensor) to ``bias``."""
        source, start = readable(src), self.window(bias, size)
        count = taken(size, source.nbytes)
        if self._host is not None:
            np.copyto(self._host[start : start + count], source[:count])
        else:
            copy(self.device_id, self._on_device().address + start, address_of(source), count)
        return Status.SUCCESS

    def readToCpu(self, dst: Any, size: int, bias: int = 0) -> Status:
        """Copies ``size`` bytes from ``bias`` to host memory."""
        target, start = writable(dst), self.window(bias, size)
        if size > target.nbytes:
            raise HMCError(f"Destination buffer too small: have={target.nbytes} need={size}")
        if self._host is not None:
            np.copyto(target[:size], self._host[start : start + size])
        else:
            copy(self.device_id, address_of(target), self._on_device().address + start, size)
        return Status.SUCCESS

    def writeFromGpu(self, src: int, size: int, bias: int = 0) -> Status:
        """Copies ``size`` bytes at a device address to ``bias``; ``ERROR`` in a buffer on the CPU."""
        start = self.window(bias, size)
        if self._host is not None:
            return Status.ERROR
        copy(self.device_id, self._on_device().address + start, src, size)
        return Status.SUCCESS

    def readToGpu(self, dst: int, size: int, bias: int = 0) -> Status:
        """Copies ``size`` bytes from ``bias`` to a device address; ``ERROR`` in a buffer on the CPU."""
        start = self.window(bias, size)
        if self._host is not None:
            return Status.ERROR
        copy(self.device_id, dst, self._on_device().address + start, size)
        return Status.SUCCESS

    def copyWithin(self, dst_offset: int, src_offset: int, nbytes: int) -> Status:
        """Moves ``nbytes`` from one offset to another; the two may overlap."""
        target, source = self.window(dst_offset, nbytes), self.window(src_offset, nbytes)
        if self._host is not None:
            np.copyto(self._host[target : target + nbytes], self._host[source : source + nbytes])  # overlap-safe
        elif target != source:
            self._move_on_device(target, source, nbytes)
        return Status.SUCCESS

    def _move_on_device(self, target: int, source: int, nbytes: int) -> None:
        start = self._on_device().address
        if abs(target - source) >= nbytes:
            copy(self.device_id, start + target, start + source, nbytes)
            return
        between = DeviceMemory(self.device_id, nbytes)  # copies of a GPU are not overlap-safe
        with contextlib.closing(between):
            copy(self.device_id, between.address, start + source, nbytes)
            copy(self.device_id, start + target, between.address, nbytes)

    def _on_device(self) -> DeviceMemory:
        if self._device is None:
            raise ClosedError("the buffer was closed; make a new session")
        return self._device


class IOBuffer:
    """A ``ConnBuffer`` with calls that say their direction: put is into the buffer, get is out of it.

    What is outside of the buffer's bounds raises ``HMCError`` (a ``RuntimeError``), a destination that can't be
    filled ``ConfigError`` (a ``ValueError``), what has no bytes ``TypeError``.

    Attributes:
        core: the ``ConnBuffer``.
    """

    def __init__(self, core: ConnBuffer) -> None:
        if not isinstance(core, ConnBuffer):
            raise TypeError(f"core is {type(core).__name__}; give a ConnBuffer, or use IOBuffer.create")
        self.core = core

    @classmethod
    def create(
        cls, device_id: int = 0, buffer_size: int = DEFAULT_SIZE, mem_type: Any = MemoryType.DEFAULT
    ) -> IOBuffer:
        """A new buffer of ``buffer_size`` bytes.

        Raises:
            HMCStatusError: that kind of memory isn't here.
        """
        return cls(ConnBuffer(device_id, buffer_size, mem_type))

    @property
    def ptr(self) -> int:
        """The address of the first byte."""
        return self.core.ptr

    @property
    def size(self) -> int:
        """Bytes."""
        return self.core.size

    @property
    def mem_type(self) -> MemoryType:
        """Where it lies: ``CPU`` or ``NVIDIA_GPU``."""
        return self.core.mem_type

    @property
    def device_id(self) -> int:
        """Which GPU."""
        return self.core.device_id

    def close(self) -> None:
        """Gives the memory back."""
        self.core.close()

    def put(self, data: Any, *, nbytes: int | None = None, offset: int = 0, device: str | None = None) -> int:
        """Copies ``data`` into the buffer, from the CPU or a GPU.

        Args:
            data: bytes, an array, a tensor; or a device pointer, with ``device="ptr"``.
            nbytes: take only so many bytes; needed for a pointer.
            offset: where in the buffer the first one goes.
            device: ``"cpu"``, ``"cuda"``, ``"ptr"``; None = by the kind of ``data``.

        Returns:
            How many bytes were copied.
        """
        kind = _kind(data, device)
        if kind == "ptr":
            return self.buffer_put_gpu_ptr(_pointer(data), nbytes=_needed(nbytes), offset=offset)
        into = self.buffer_put_cuda if kind == "cuda" else self.buffer_put_cpu
        return into(data, nbytes=nbytes, offset=offset)

    def get_into(self, dst: Any, *, nbytes: int | None = None, offset: int = 0, device: str | None = None) -> None:
        """Copies ``nbytes`` from ``offset`` into ``dst``, or as many as it holds; the arguments are ``put``'s."""
        kind = _kind(dst, device)
        if kind == "ptr":
            self.buffer_get_gpu_ptr(_pointer(dst), nbytes=_needed(nbytes), offset=offset)
            return
        count = byte_count(dst) if nbytes is None else nbytes
        out_to = self.buffer_get_cuda if kind == "cuda" else self.buffer_get_cpu_into
        out_to(dst, nbytes=count, offset=offset)

    def buffer_put_cpu(self, src: Any, *, nbytes: int | None = None, offset: int = 0) -> int:
        """Copies bytes, an array or a CPU tensor into the buffer; says how many bytes."""
        source = readable(src)
        count = taken(nbytes, source.nbytes)
        self.core.writeFromCpu(source, count, offset)
        return count

    def buffer_get_cpu_into(self, dst: Any, *, nbytes: int, offset: int = 0) -> None:
        """Copies ``nbytes`` out of the buffer into a writable, contiguous array, tensor or bytes."""
        target = writable(dst)
        if nbytes > target.nbytes:
            raise ConfigError(f"Destination too small: have={target.nbytes} need={nbytes}")
        self.core.readToCpu(target, nbytes, offset)

    def buffer_get_cpu(self, *, nbytes: int, offset: int = 0) -> bytearray:
        """A copy of ``nbytes`` of the buffer."""
        self.core.window(offset, nbytes)
        copied = bytearray(nbytes)
        self.core.readToCpu(copied, nbytes, offset)
        return copied

    def buffer_put_gpu_ptr(self, ptr: int, *, nbytes: int, offset: int = 0) -> int:
        """Copies from a device address into a buffer on that GPU."""
        self._done("buffer_put_gpu_ptr", self.core.writeFromGpu(_pointer(ptr), nbytes, offset))
        return nbytes

    def buffer_get_gpu_ptr(self, ptr: int, *, nbytes: int, offset: int = 0) -> None:
        """Copies from a buffer on a GPU to a device address."""
        self._done("buffer_get_gpu_ptr", self.core.readToGpu(_pointer(ptr), nbytes, offset))

    def buffer_put_cuda(self, t: Any, *, nbytes: int | None = None, offset: int = 0) -> int:
        """Copies a CUDA tensor into a buffer on that GPU; says how many bytes."""
        source = _cuda(t).contiguous()
        count = taken(nbytes, byte_count(source))
        return self.buffer_put_gpu_ptr(pointer_of(source), nbytes=count, offset=offset)

    def buffer_get_cuda(self, t: Any, *, nbytes: int, offset: int = 0) -> None:
        """Copies out of a buffer on a GPU into a contiguous CUDA tensor."""
        if not _cuda(t).is_contiguous():
            raise ConfigError("the destination tensor is not contiguous; give tensor.contiguous() and copy it back")
        if nbytes > byte_count(t):
            raise ConfigError(f"Destination too small: have={byte_count(t)} need={nbytes}")
        self.buffer_get_gpu_ptr(pointer_of(t), nbytes=nbytes, offset=offset)

    def buffer_copy_within(self, *, dst_offset: int, src_offset: int, nbytes: int) -> None:
        """Moves ``nbytes`` inside the buffer; the two places may overlap."""
        self.core.copyWithin(dst_offset, src_offset, nbytes)

    def _done(self, operation: str, status: Status) -> None:
        if status is not Status.SUCCESS:
            raise HMCStatusError(
                operation,
                status,
                f"the buffer is on the {self.mem_type.name}, not on a GPU; create the session with "
                "mem_type=MemoryType.NVIDIA_GPU, or copy to the CPU first",
            )


def _kind(data: Any, device: str | None) -> str:
    if device is None:
        return "cuda" if is_device_tensor(data) else "cpu"
    if device not in ("cpu", "cuda", "ptr"):
        raise ConfigError(f"device is {device!r}; give 'cpu', 'cuda', 'ptr' or None")
    return device


def _pointer(value: Any) -> int:
    return whole(value, "a device pointer")


def _needed(nbytes: int | None) -> int:
    if nbytes is None:
        raise ConfigError("nbytes is needed with a pointer, which doesn't say how much is there")
    return nbytes


def _cuda(t: Any) -> Any:
    if not is_tensor(t):
        raise TypeError(f"{type(t).__name__} is no torch tensor; give a CUDA tensor, or use device='cpu'")
    if t.device.type != "cuda":
        raise ConfigError(f"the tensor is on {t.device}, not on a CUDA device; use device='cpu'")
    return t
