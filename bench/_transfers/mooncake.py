"""Mooncake's transfer engine over TCP.

Its wheel wants CUDA's libraries even where there is no GPU: libcudart from a wheel, and libcuda, for which a stand-in
is built here that says "no device" (100) to every call. What is measured that way isn't Mooncake's best, which is RDMA.
"""

from __future__ import annotations

import ctypes
import importlib.util
import os
import subprocess
from pathlib import Path
from typing import Any

import numpy as np

from _common import OUT

from .side import Operation, Side

_NO_DEVICE = 100
_MOST_ROWS = 500  # of a batch: one of 10,000 is refused, and leaves stale bytes behind
_CALLS = """
cuCtxGetDevice cuCtxSetCurrent cuDeviceGet cuDeviceGetAttribute cuDevicePrimaryCtxRelease_v2 cuDevicePrimaryCtxRetain
cuGetErrorName cuGetErrorString cuInit cuMemAddressFree cuMemAddressReserve cuMemCreate cuMemExportToShareableHandle
cuMemGetAddressRange_v2 cuMemGetAllocationGranularity cuMemGetHandleForAddressRange cuMemImportFromShareableHandle
cuMemMap cuMemRelease cuMemSetAccess cuMemUnmap cuPointerGetAttribute cuPointerSetAttribute
"""


def _load_cuda() -> None:
    folders = getattr(importlib.util.find_spec("nvidia"), "submodule_search_locations", None) or []
    for found in (path for folder in folders for path in Path(folder).glob("cuda_runtime/lib/libcudart.so.12")):
        ctypes.CDLL(str(found), ctypes.RTLD_GLOBAL)
    try:
        ctypes.CDLL("libcuda.so.1", ctypes.RTLD_GLOBAL)
    except OSError:
        ctypes.CDLL(str(_stand_in()), ctypes.RTLD_GLOBAL)


def _stand_in() -> Path:
    OUT.mkdir(parents=True, exist_ok=True)
    built = OUT / "libcuda.so.1"
    if not built.exists():
        code = "".join(f"int {call}(void) {{ return {_NO_DEVICE}; }}\n" for call in _CALLS.split())
        scratch = built.with_suffix(f".{os.getpid()}")
        command = ["gcc", "-shared", "-fPIC", "-Wl,-soname,libcuda.so.1", "-x", "c", "-o", str(scratch), "-"]
        subprocess.run(command, input=code, text=True, check=True)
        scratch.rename(built)
    return built


class Mooncake(Side):
    transport = "mooncake tcp"

    def __init__(self, name: str, address: str | None, memory: str) -> None:
        super().__init__(name, address, memory)
        _load_cuda()
        from mooncake.engine import TransferEngine

        self._engine = TransferEngine()
        host = address or "127.0.0.1"
        if self._engine.initialize(host, "P2PHANDSHAKE", "tcp", "") != 0:
            raise RuntimeError("initialize failed")
        self._place = f"{host}:{self._engine.get_rpc_port()}"

    def allocate(self, nbytes: int) -> np.ndarray:
        self._own = super().allocate(nbytes)
        if self._engine.register_memory(self._own.ctypes.data, nbytes) != 0:
            raise RuntimeError("register_memory failed")
        return self._own

    def hello(self) -> Any:
        return {"place": self._place, "address": self._own.ctypes.data}

    def meet(self, hello: Any) -> None:
        self._peer, self._base = hello["place"], hello["address"]

    def operation(self, kind: str, rows: np.ndarray) -> Operation:
        ours = (self._own.ctypes.data + rows[:, 0]).tolist()
        theirs = (self._base + rows[:, 0]).tolist()
        lengths = rows[:, 1].tolist()
        engine, peer = self._engine, self._peer
        if len(rows) == 1:
            call = engine.transfer_sync_write if kind == "WRITE" else engine.transfer_sync_read
            batches: list[tuple[Any, ...]] = [(peer, ours[0], theirs[0], lengths[0])]
        else:
            call = engine.batch_transfer_sync_write if kind == "WRITE" else engine.batch_transfer_sync_read
            starts = range(0, len(rows), _MOST_ROWS)
            batches = [(peer, *(column[at : at + _MOST_ROWS] for column in (ours, theirs, lengths))) for at in starts]

        def run() -> None:
            for batch in batches:
                if code := call(*batch):
                    raise RuntimeError(f"Mooncake says {code}")

        return run
