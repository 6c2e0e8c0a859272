"""What a worker process does: read samples where they lie, run the user's transform, write results where they go.

It maps the file in memory that holds its loader's regions, so payload crosses between processes without being copied or
pickled. It ends when its loader lets go of the socket, or when the loader's process is no more, however that ended.
"""

from __future__ import annotations

import contextlib
import gc
import mmap
import os
import random
import select
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable
from typing import Any

import numpy as np

from penstock.workers.results import Form, Layout, Outgrown, Unsendable, write
from penstock.workers.sample import Sample, UInt8Array
from penstock.workers.wire import Gone, Message, receive, send

__all__ = ["run"]

_MOST_DETAILS = 32 << 10  # characters of a traceback
_POLL_S = 1.0


def run(connection: socket.socket, function: Callable[[Any], Any], per_batch: bool, parent_pid: int) -> None:
    """The main function of a worker process; doesn't return.

    Args:
        connection: to its loader.
        function: the user's.
        per_batch: whether it takes the list of a batch's samples, and not one sample.
        parent_pid: the process to live for.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the loader's process, which then ends us
    gc.freeze()  # what a fork() brought along belongs to the parent, its finalizers too
    threading.Thread(target=_end_with, args=(parent_pid,), daemon=True, name="penstock-watch").start()
    code = 0
    try:
        _serve(_Work(function, per_batch), connection)
    except Gone:
        pass
    except BaseException:
        traceback.print_exc()
        code = 1
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError, AttributeError):
            stream.flush()
    os._exit(code)  # after a fork() the rest of the way out goes through the parent's locks


def _end_with(pid: int) -> None:
    """Wait for a process to end, then end this one at once, whatever it is doing."""
    try:
        ended = select.poll()
        ended.register(os.pidfd_open(pid), select.POLLIN)
        while not ended.poll():
            pass
    except (OSError, AttributeError):  # it ended already, or this kernel has no pidfd_open(2)
        with contextlib.suppress(ProcessLookupError):
            while True:
                os.kill(pid, 0)
                time.sleep(_POLL_S)
    os._exit(1)


def _serve(work: _Work, connection: socket.socket) -> None:
    connection.settimeout(None)
    send(connection, {"ready": os.getpid()})
    while True:
        message, fd = receive(connection)
        if fd is not None:
            work.begin(message, fd)
        else:
            send(connection, work.do(message))


class _Work:
    def __init__(self, function: Callable[[Any], Any], per_batch: bool) -> None:
        self._function = function
        self._per_batch = per_batch
        self._memory: UInt8Array = np.empty(0, dtype=np.uint8)
        self._key = 0

    def begin(self, message: Message, fd: int) -> None:
        """Map another arena, and begin another epoch's random numbers."""
        try:
            mapped = mmap.mmap(fd, message["arena"])
        finally:
            os.close(fd)
        self._memory = np.frombuffer(mapped, dtype=np.uint8)
        self._key = message["key"]
        _seed(message["seed"])

    def do(self, message: Message) -> Message:
        """The answer to one task."""
        rows = message["samples"]
        samples = [self._sample(*row) for row in rows]
        layout = Layout(tuple(message["cells"]), message["count"])
        results = self._memory[message["out"] : message["out"] + layout.total_bytes]
        if self._per_batch:
            return self._answer([samples], [0], layout, results)
        return self._answer(samples, message["places"], layout, results)

    def _sample(self, sample_id: int, start: int, length: int, label: int | None, chance: int) -> Sample:
        return Sample(self._memory[start : start + length], sample_id, label, key=self._key, chance=chance)

    def _answer(self, inputs: list[Any], places: list[int], layout: Layout, results: UInt8Array) -> Message:
        forms: list[Form] = []
        failure: Message = {}
        for each, place in zip(inputs, places, strict=True):
            try:
                forms.append(write(self._function(each), place, layout, results))
            except Outgrown as outgrown:
                failure = {"outgrown": outgrown.sizes}
            except Unsendable as error:
                failure = {"error": str(error), "details": ""}
            except BaseException as error:
                failure = {"error": _one_line(error), "details": traceback.format_exc()[-_MOST_DETAILS:]}
            if failure:
                break
        alike = len(forms) > 1 and all(form == forms[0] for form in forms)
        return {"forms": forms[:1] if alike else forms, "times": len(forms) if alike else 1, **failure}


def _one_line(error: BaseException) -> str:
    return "".join(traceback.format_exception_only(error)).strip()[-_MOST_DETAILS:]


def _seed(seed: int) -> None:
    """The global generators, for transforms that use them: other numbers in each worker and epoch."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch = sys.modules.get("torch")
    if torch is not None:
        torch.manual_seed(seed % 2**63)
        torch.set_num_threads(1)  # workers are the parallelism
