"""A trace of an epoch in the Trace Event Format, which Perfetto and chrome://tracing open.

The format is described in "Trace Event Format" by the Chrome developers (docs.google.com, document
1CvAClvFfyA5R-PhYUmn5OOQtYMH4h6I0nSsKchNAySU). We write its array form: complete events (``X``) on the thread that did
the work, nestable asynchronous ones (``b``, ``e``) for what no thread does, metadata (``M``) for names. An event
is one write to the file, so nothing piles up in memory, and what a killed process wrote can be read: the format
lets the closing bracket be absent.
"""

from __future__ import annotations

import itertools
import json
import logging
import os
import threading
from pathlib import Path

from penstock.errors import ConfigError

__all__ = ["Trace", "trace_in"]

_log = logging.getLogger("penstock")
_numbers = itertools.count(1)


class Trace:
    """Writes spans to a file as they end. Thread-safe; a disk that fails ends the trace, never the loader.

    Args:
        path: written anew.
        title: what the trace is of, shown as the process's name.

    Raises:
        ConfigError: the file can't be written.
    """

    def __init__(self, path: str | os.PathLike[str], title: str) -> None:
        self._path = os.fspath(path)
        self._pid = os.getpid()
        self._lock = threading.RLock()  # the collector may close a loader in the middle of anything
        self._threads: set[int] = set()
        try:
            self._fd = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o666)
        except OSError as error:
            raise ConfigError(f"no trace can be written to {self._path}: {error.strerror}") from error
        with self._lock:
            self._write("[\n" + self._metadata("process_name", 0, title))

    def span(self, name: str, batch: int, started_s: float, ended_s: float, *, across_threads: bool = False) -> None:
        """One batch was in the stage ``name``; this thread did it, unless ``across_threads``."""
        thread = threading.get_native_id()
        shared = {"name": name, "cat": "batch", "pid": self._pid, "tid": thread}
        start, end = _microseconds(started_s), _microseconds(ended_s)
        if across_threads:
            ends = {**shared, "ph": "b", "ts": start, "id": batch}, {**shared, "ph": "e", "ts": end, "id": batch}
            text = _following(*ends)
        else:
            duration = round(end - start, 3)
            text = _following({**shared, "ph": "X", "ts": start, "dur": duration, "args": {"batch": batch}})
        with self._lock:
            if thread not in self._threads:
                self._threads.add(thread)
                text += ",\n" + self._metadata("thread_name", thread, threading.current_thread().name)
            self._write(text)

    def close(self) -> None:
        """Complete the file. Spans that end later are dropped; safe twice, and without effect in a forked child."""
        if os.getpid() != self._pid:
            return
        with self._lock:
            self._write("\n]\n")
            self._end()

    def _metadata(self, name: str, thread: int, value: str) -> str:
        return json.dumps({"name": name, "ph": "M", "pid": self._pid, "tid": thread, "args": {"name": value}})

    def _write(self, text: str) -> None:
        if self._fd < 0:
            return
        try:
            os.write(self._fd, text.encode())
        except OSError as error:
            _log.warning("the trace %s ends here: %s", self._path, error)
            self._end()

    def _end(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
        self._fd = -1


def trace_in(folder: str, title: str) -> Trace:
    """A trace in a file of its own, ``penstock-<pid>-<number>.json``, in a folder that is made if need be.

    Raises:
        ConfigError: the folder or file can't be written.
    """
    path = Path(folder).expanduser()
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"no trace can be written to {path}: {error.strerror}; PENSTOCK_TRACE is a folder") from error
    return Trace(path / f"penstock-{os.getpid()}-{next(_numbers)}.json", title)


def _following(*events: dict[str, object]) -> str:
    return "".join(",\n" + json.dumps(event) for event in events)


def _microseconds(seconds: float) -> float:
    return round(seconds * 1e6, 3)
