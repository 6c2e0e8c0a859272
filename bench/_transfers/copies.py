"""The floors: memory copied between the same two mappings, and by the system calls that reach another process."""

from __future__ import annotations

import ctypes
import mmap
import os
import socket
import subprocess
import time
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from _common import OUT

from .side import Operation, Side, Unsupported

_SOURCE = Path(__file__).with_name("copies.cpp")
_LINE_BYTES = 64
_BELL_BYTES = 4096  # the page with how many messages came, and the last one


@cache
def _library() -> ctypes.CDLL:
    OUT.mkdir(parents=True, exist_ok=True)
    built = OUT / f"copies-{_SOURCE.stat().st_mtime_ns}.so"
    if not built.exists():
        scratch = built.with_suffix(f".{os.getpid()}")
        subprocess.run(["g++", "-O3", "-std=c++20", "-shared", "-fPIC", "-o", str(scratch), str(_SOURCE)], check=True)
        scratch.rename(built)
    library = ctypes.CDLL(str(built))
    library.copy_rows.argtypes = library.stream_rows.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
    library.process_rows.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t]
    return library


def _mapped(fd: int, nbytes: int) -> np.ndarray:
    mapping = mmap.mmap(fd, nbytes)
    mapping.madvise(mmap.MADV_HUGEPAGE)
    return np.frombuffer(mapping, np.uint8)


def _table(*columns: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(np.column_stack(columns).astype(np.uint64))


class Memcpy(Side):
    """Both ends map the target's memfd; a transfer is a copy in C. Notifications are a counter in shared memory."""

    transport = "memcpy between mappings"
    routine = "copy_rows"

    def __init__(self, name: str, address: str | None, memory: str) -> None:
        super().__init__(name, address, memory)
        if address is not None:
            raise Unsupported("one host only")
        self._fd = os.memfd_create("bench")
        self._bell_fd = os.memfd_create("bench-bell")
        os.ftruncate(self._bell_fd, _BELL_BYTES)
        self._bell = _mapped(self._bell_fd, _BELL_BYTES).view(np.uint64)
        self._seen = 0
        self._routine = getattr(_library(), self.routine)

    def allocate(self, nbytes: int) -> np.ndarray:
        os.ftruncate(self._fd, nbytes)
        self._own = _mapped(self._fd, nbytes)
        self._own.fill(0)
        return self._own

    def hello(self) -> Any:
        return {"pid": os.getpid(), "fd": self._fd, "bell": self._bell_fd, "nbytes": len(self._own)}

    def meet(self, hello: Any) -> None:
        of = f"/proc/{hello['pid']}/fd"
        memory, bell = os.open(f"{of}/{hello['fd']}", os.O_RDWR), os.open(f"{of}/{hello['bell']}", os.O_RDWR)
        self._their_bell = _mapped(bell, _BELL_BYTES).view(np.uint64)
        self._theirs = _mapped(memory, hello["nbytes"])
        self._theirs[:: mmap.PAGESIZE].max()  # its pages are in our table from now on

    def operation(self, kind: str, rows: np.ndarray) -> Operation:
        ours, theirs = self._own.ctypes.data + rows[:, 0], self._theirs.ctypes.data + rows[:, 0]
        to, source = (theirs, ours) if kind == "WRITE" else (ours, theirs)
        table = _table(to, source, rows[:, 1])
        routine, place, count = self._routine, table.ctypes.data, len(table)

        def run(keep: Any = table) -> None:
            routine(place, count)

        return run

    def send(self, message: bytes) -> None:
        self._their_bell[1] = int.from_bytes(message, "little")
        self._their_bell[0] += 1

    def receive(self) -> list[bytes]:
        count = int(self._bell[0])
        if count == self._seen:
            return []
        self._seen = count
        return [int(self._bell[1]).to_bytes(8, "little").rstrip(b"\0")]


class Streaming(Memcpy):
    """The same with stores that go past the caches."""

    transport = "streaming stores between mappings"
    routine = "stream_rows"

    def send(self, message: bytes) -> None:
        raise Unsupported("as memcpy")


class ProcessCopy(Side):
    """Any memory of the target, by process_vm_readv and writev, 1,024 rows a call. Messages go by a socket."""

    transport = "process_vm_readv/writev"

    def __init__(self, name: str, address: str | None, memory: str) -> None:
        super().__init__(name, address, memory)
        if address is not None:
            raise Unsupported("one host only")
        self._library = _library()
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(f"\0bench-{os.getpid()}")
        self._socket.setblocking(False)

    def allocate(self, nbytes: int) -> np.ndarray:
        self._own = super().allocate(nbytes)
        return self._own

    def hello(self) -> Any:
        return {"pid": os.getpid(), "address": self._own.ctypes.data}

    def meet(self, hello: Any) -> None:
        self._pid, self._base = hello["pid"], hello["address"]
        self._peer = f"\0bench-{hello['pid']}"

    def operation(self, kind: str, rows: np.ndarray) -> Operation:
        local = _table(self._own.ctypes.data + rows[:, 0], rows[:, 1])
        remote = _table(self._base + rows[:, 0], rows[:, 1])
        arguments = (self._pid, int(kind == "WRITE"), local.ctypes.data, remote.ctypes.data, len(rows))
        routine = self._library.process_rows

        def run(keep: Any = (local, remote)) -> None:
            if code := routine(*arguments):
                raise OSError(code, os.strerror(code))

        return run

    def send(self, message: bytes) -> None:
        self._socket.sendto(message, self._peer)

    def receive(self) -> list[bytes]:
        try:
            return [self._socket.recv(_LINE_BYTES)]
        except BlockingIOError:
            return []

    def receive_asleep(self, timeout_s: float) -> list[bytes]:
        self._socket.settimeout(timeout_s)
        try:
            return [self._socket.recv(_LINE_BYTES)]
        except (TimeoutError, BlockingIOError):
            return []
        finally:
            self._socket.setblocking(False)


def clock_cost_ns() -> float:
    """What two readings of the clock take: it is in every latency below."""
    readings = [time.perf_counter_ns() for _ in range(10_000)]
    return float(np.median(np.diff(readings)))
