"""What shows a running loader to other programs of the same user: a small file that ``penstock top`` reads.

The file is JSON, in a folder that only its owner can open, and its writer holds an ``flock`` on it: the kernel lets go
of that when the process dies, however it dies, and the next reader removes the file. It is written by the thread that
calls ``next()``, at most once a second, in one system call.
"""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import json
import logging
import os
import stat
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from penstock import config
from penstock.observe.rates import Rates, Stats, rates_between

__all__ = ["LiveLoader", "Snapshot", "Totals", "snapshots", "totals"]

_EVERY_S: Final = 1.0
_MOST_BYTES: Final = 64 << 10  # a file is far smaller; a larger one isn't ours
_log = logging.getLogger("penstock")
_numbers = itertools.count(1)


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A loader as its file shows it.

    Attributes:
        pid: of its process.
        dataset: the base of its link.
        manifest_hash: what it loads.
        started_at: when it was made, in seconds since 1970.
        updated_at: when this was written.
        interval_s: seconds between ``before`` and ``stats``.
        before: ``stats()`` as it was written the last time.
        stats: ``loader.stats()``.
    """

    pid: int
    dataset: str
    manifest_hash: str
    started_at: float
    updated_at: float
    interval_s: float
    before: Stats
    stats: Stats

    def rates(self) -> Rates:
        """Speeds over the interval."""
        return rates_between(self.before, self.stats, max(self.interval_s, 1e-6))


class LiveLoader:
    """A loader that can be seen from outside while it lives: from other processes, and in this process's totals.

    Args:
        dataset: the base of its link.
        manifest_hash: what it loads.
        stats: reads its counters; any thread. It must not hold the loader itself, whose end is the end of this.
        shown: whether it writes a file at all.
    """

    def __init__(self, dataset: str, manifest_hash: str, stats: Callable[[], Stats], *, shown: bool = True) -> None:
        self.dataset = dataset
        self.stats = stats
        self._manifest_hash = manifest_hash
        self._started_at = time.time()
        self._pid = os.getpid()
        self._path: Path | None = None
        self._fd = -1
        self._written_bytes = 0
        self._before, self._before_s = stats(), time.monotonic()
        self._due_s = self._before_s + _EVERY_S if shown else float("inf")
        self._writing = threading.Lock()
        with _lock:
            _live.add(self)

    def tick(self) -> None:
        """Write the file if it is due; called for every batch."""
        if time.monotonic() < self._due_s or os.getpid() != self._pid or not self._writing.acquire(blocking=False):
            return
        try:
            self._write()
        except OSError as error:
            self._due_s = float("inf")
            _log.debug("penstock top won't see this loader: %s", error)
        finally:
            self._writing.release()

    def _write(self) -> None:
        now_s, stats = time.monotonic(), self.stats()
        snapshot = Snapshot(
            pid=self._pid,
            dataset=self.dataset,
            manifest_hash=self._manifest_hash,
            started_at=self._started_at,
            updated_at=time.time(),
            interval_s=now_s - self._before_s,
            before=self._before,
            stats=stats,
        )
        if self._fd < 0:
            self._open()
        text = json.dumps(asdict(snapshot)).encode().ljust(self._written_bytes)
        os.pwrite(self._fd, text, 0)
        self._written_bytes = len(text)
        self._before, self._before_s, self._due_s = stats, now_s, now_s + _EVERY_S

    def _open(self) -> None:
        snapshots()  # removes what killed processes left
        self._path = _private(config.runtime_dir()) / f"{self._pid}-{next(_numbers)}.json"
        with contextlib.suppress(FileNotFoundError):
            self._path.unlink()  # of a process that had our number and died
        self._fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def close(self) -> None:
        """Remove the file, and add what the loader did to the totals. Safe twice."""
        if os.getpid() != self._pid:
            return
        with _lock:
            if self not in _live:
                return
            _live.remove(self)
            _done.setdefault(self.dataset, Counter()).update(_counters(self.stats()))
        with self._writing:
            self._due_s = float("inf")
            if self._path is not None:
                self._path.unlink(missing_ok=True)
            self.forget()

    def forget(self) -> None:
        """Let go of the file without removing it."""
        if self._fd >= 0:
            os.close(self._fd)
        self._fd = -1


@dataclass(frozen=True, slots=True)
class Totals:
    """All loaders of one dataset in this process.

    Attributes:
        dataset: the base of their links.
        counters: what only grows, over loaders that live and those that are closed.
        gauges: what is so now, over those that live.
        loaders: how many live.
    """

    dataset: str
    counters: Stats
    gauges: Stats
    loaders: int


_lock = threading.RLock()  # the collector may close a loader in the middle of anything
_live: set[LiveLoader] = set()
_done: dict[str, Counter[str]] = {}


def totals() -> list[Totals]:
    """One entry for each dataset that this process has loaded, in the order of their names."""
    with _lock:
        read = [(loader.dataset, loader.stats()) for loader in list(_live)]
        counters = {dataset: Counter(done) for dataset, done in _done.items()}
    gauges: dict[str, Counter[str]] = {}
    loaders: Counter[str] = Counter()
    for dataset, stats in read:
        counters.setdefault(dataset, Counter()).update(_counters(stats))
        gauges.setdefault(dataset, Counter()).update(
            {name: value for name, value in stats.items() if not _only_grows(name)}
        )
        loaders[dataset] += 1
    return [Totals(name, counters[name], gauges.get(name, {}), loaders[name]) for name in sorted(counters)]


def _counters(stats: Stats) -> Counter[str]:
    return Counter({name: value for name, value in stats.items() if _only_grows(name)})


def _only_grows(name: str) -> bool:
    return name.endswith(("_total", "_s"))


def snapshots() -> list[Snapshot]:
    """All loaders of this user's that run now, as they last showed themselves; files of the dead are removed."""
    try:
        folder = _private(config.runtime_dir(), make=False)
        paths = sorted(path for path in folder.iterdir() if path.suffix == ".json")
    except OSError:
        return []
    read = (_snapshot(path) for path in paths)
    return sorted((snapshot for snapshot in read if snapshot), key=lambda each: (each.pid, each.started_at))


def _snapshot(path: Path) -> Snapshot | None:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return None  # it ended just now
    try:
        text = os.read(fd, _MOST_BYTES)
        if not text:
            return None  # it begins just now, and has perhaps no lock yet
        if _unlocked(fd):
            path.unlink(missing_ok=True)
            return None
        return Snapshot(**json.loads(text))
    except (OSError, ValueError, TypeError):
        return None  # not a file of this version's
    finally:
        os.close(fd)


def _unlocked(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _private(folder: Path, *, make: bool = True) -> Path:
    """The folder, which belongs to us and which nobody else can enter.

    Raises:
        OSError: it is missing, or it is somebody else's.
    """
    if make:
        folder.mkdir(mode=0o700, exist_ok=True)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o077:
        raise PermissionError(f"{folder} isn't a folder of our own that is closed to others")
    return folder


def _after_fork() -> None:
    """The loaders stayed in the parent; a file that the child kept open would keep its lock."""
    global _lock  # noqa: PLW0603 - a thread that isn't here may have held it
    _lock = threading.RLock()
    for loader in _live:
        loader.forget()
    _live.clear()
    _done.clear()


os.register_at_fork(after_in_child=_after_fork)
