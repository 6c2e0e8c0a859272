"""The loader's side of its worker processes: start, ask, replace, end.

Threads: ``ask`` may be called by as many threads as there are workers, each then has one for itself. ``cancel`` and
``close`` may be called from any thread, and end every wait.
"""

from __future__ import annotations

import contextlib
import itertools
import multiprocessing
import os
import pickle
import socket
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, Literal, TypeAlias

from penstock.errors import ClosedError, ConfigError, DeadlineExceeded, PenstockError, WorkerDied
from penstock.workers import child
from penstock.workers.sample import worker_seed
from penstock.workers.wire import Gone, Message, Overdue, receive, send

__all__ = ["Context", "Died", "Pool", "Setting"]

Context: TypeAlias = Literal["spawn", "fork", "forkserver"]

_GRACE_S: Final = 1.0  # for workers to end by themselves
_SLICE_S: Final = 1.0
_starting = threading.Lock()  # what one fork() copies, another thread must not be in the middle of


class Died(Exception):
    """A worker ended while it was at a task; ``how`` says how."""

    def __init__(self, how: str) -> None:
        super().__init__(how)
        self.how = how


@dataclass(frozen=True, slots=True)
class Setting:
    """What workers need to know of an epoch.

    Attributes:
        arena: file descriptor and size of the memory that regions lie in.
        key: of the epoch's random numbers.
    """

    arena: tuple[int, int]
    key: int


class _Worker:
    """One process and the socket to it."""

    def __init__(self, context: Context, function: Callable[[Any], Any], per_batch: bool, number: int) -> None:
        self.number = number
        self.setting: Setting | None = None
        self.ready = False
        with _starting:
            self.connection, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
            try:
                starter: Any = multiprocessing.get_context(context)
                self.process = starter.Process(
                    target=child.run,
                    args=(theirs, function, per_batch, os.getpid()),
                    name=f"penstock-worker-{number}",
                    daemon=True,
                )
                _start(self.process, function)
            except BaseException:
                self.connection.close()
                raise
            finally:
                theirs.close()

    def begin(self, setting: Setting) -> None:
        """Tell it of an epoch, once."""
        if self.setting is setting:
            return
        fd, size = setting.arena
        seed = worker_seed(setting.key, self.number)
        send(self.connection, {"arena": size, "key": setting.key, "seed": seed}, fd)
        self.setting = setting

    def interrupt(self) -> None:
        """End whatever waits for this worker; it ends, too, when it is idle."""
        with contextlib.suppress(OSError):
            self.connection.shutdown(socket.SHUT_RDWR)  # unlike close() it also reaches copies that a fork() made

    def end(self, grace_s: float) -> None:
        """Have the process be no more when this returns."""
        self.interrupt()
        self.process.join(grace_s)
        self.process.kill()
        self.process.join()

    def how_it_ended(self) -> str:
        """In words."""
        self.process.join(_GRACE_S)
        code = self.process.exitcode
        if code is None:
            return "closed its connection"
        if code < 0:
            return f"was killed by signal {-code}" + (" (SIGKILL: by hand, or by the OOM killer)" if code == -9 else "")
        return f"ended with exit code {code}"


class Pool:
    """``count`` processes that run one function.

    Args:
        function: the user's; it goes to the processes by multiprocessing's own start-up, once for each.
        per_batch: whether it takes a list of samples.
        count: processes, at least 1.
        context: how they start.
        timeout_s: how long one task may take.

    Raises:
        ConfigError: processes can't be started with this function, or from here.
    """

    def __init__(
        self, function: Callable[[Any], Any], *, per_batch: bool, count: int, context: Context, timeout_s: float
    ) -> None:
        self.restarts = 0
        self._function = function
        self._per_batch = per_batch
        self._numbers = itertools.count()
        self._context = context
        self._timeout_s = timeout_s
        self._changed = threading.Condition()
        self._closed = self._cancelled = False
        self._broken: PenstockError | None = None
        self._setting: Setting | None = None
        _check_importable(function, context)
        self._all: set[_Worker] = set()
        self._free: list[_Worker] = []
        try:
            for _ in range(count):
                self._add(self._make())
        except BaseException:
            self.close()
            raise

    def begin(self, setting: Setting) -> None:
        """Tasks from now on are of another epoch; no tasks are under way."""
        with self._changed:
            self._setting, self._cancelled, self.restarts = setting, False, 0
            idle = [worker for worker in self._free if worker.ready]
        for worker in idle:  # now, so that they let go of the memory of the epoch before
            with contextlib.suppress(Gone, Overdue):  # who died is found out when it is asked
                worker.begin(setting)

    def ask(self, task: Message) -> Message:
        """Have one worker do a task.

        Raises:
            Died: the worker ended over it; another one has taken its place.
            DeadlineExceeded: it took too long, and its worker was ended and replaced.
            PenstockError: the worker couldn't start.
            ClosedError: after ``cancel`` or ``close``.
        """
        while (worker := self._take()).ready and not worker.process.is_alive():
            self._give_back(worker, usable=False)  # it died while it had nothing to do: no task's fault
        usable = False
        try:
            answer = self._ask(worker, task)
            usable = True
            return answer
        except Overdue as error:
            raise DeadlineExceeded(
                f"a worker process took longer than {self._timeout_s:g} s over samples "
                f"{[row[0] for row in task['samples'][:4]]} and some that follow; it was ended. Raise timeout_seconds "
                "if the transform is that slow"
            ) from error
        except Gone as error:
            self._check()
            how = worker.how_it_ended()
            if not worker.ready and (worker.process.exitcode or 0) > 0:
                self._broken = self._not_started(how)
                raise self._broken from None
            raise Died(how) from error
        finally:
            self._give_back(worker, usable)

    def _ask(self, worker: _Worker, task: Message) -> Message:
        deadline_s = time.monotonic() + self._timeout_s
        worker.connection.settimeout(self._timeout_s)

        def look() -> None:
            self._check()
            if not worker.process.is_alive():
                raise Gone

        if not worker.ready:
            receive(worker.connection, deadline_s=deadline_s, check=look)
            worker.ready = True
        assert self._setting is not None
        worker.begin(self._setting)
        send(worker.connection, task)
        return receive(worker.connection, deadline_s=deadline_s, check=look)[0]

    def cancel(self) -> None:
        """End all tasks under way with ClosedError, and refuse others until the next ``begin``."""
        with self._changed:
            self._cancelled = True
            busy = self._all.difference(self._free)
            self._changed.notify_all()
        for worker in busy:
            worker.interrupt()

    def close(self) -> None:
        """End all processes. Safe twice, and without effect in a forked child."""
        with self._changed:
            self._closed = self._cancelled = True
            workers, self._all, self._free = list(self._all), set(), []
            self._changed.notify_all()
        for worker in workers:
            worker.interrupt()
        deadline_s = time.monotonic() + _GRACE_S
        for worker in workers:
            _end(worker, max(0.0, deadline_s - time.monotonic()))

    def _check(self) -> None:
        if self._cancelled:
            raise ClosedError("the loader was closed while its workers were at a batch")
        if self._broken is not None:
            raise self._broken

    def _make(self) -> _Worker:
        return _Worker(self._context, self._function, self._per_batch, next(self._numbers))

    def _take(self) -> _Worker:
        with self._changed:
            while not self._free:
                self._check()
                self._changed.wait(_SLICE_S)
            self._check()
            return self._free.pop()

    def _add(self, worker: _Worker) -> None:
        with self._changed:
            if not self._closed:
                self._all.add(worker)
                self._free.append(worker)
                self._changed.notify()
                return
        _end(worker, 0)

    def _give_back(self, worker: _Worker, usable: bool) -> None:
        """A worker is free again, or another one in its place."""
        if usable:
            with self._changed:
                if not self._closed:
                    self._free.append(worker)
                self._changed.notify()
            return
        with self._changed:
            self._all.discard(worker)
            closed = self._closed
        _end(worker, _GRACE_S if self._cancelled else 0)
        if closed or self._broken is not None:
            return
        self.restarts += not self._cancelled
        try:
            self._add(self._make())
        except PenstockError as error:
            self._broken = error
            raise

    def _not_started(self, how: str) -> PenstockError:
        return WorkerDied(
            f"a worker process {how} before it was ready (multiprocessing_context {self._context!r}); its own message "
            "is on stderr. A script that starts processes needs `if __name__ == '__main__':` around what it runs, and "
            "the transform must be importable: put it into a module, or use workers='threads'"
        )


def _end(worker: _Worker, grace_s: float) -> None:
    if worker.process._parent_pid != os.getpid():
        return
    worker.end(grace_s)
    worker.connection.close()


def _start(process: Any, function: Callable[[Any], Any]) -> None:
    try:
        process.start()
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise ConfigError(
            f"{_name(function)} can't be sent to worker processes: {error}. Give a function or an object of a class "
            "that a module defines, not a lambda or a local function; or use workers='threads'"
        ) from error
    except OSError as error:
        raise PenstockError(f"a worker process can't be started: {error}; give fewer num_workers") from error
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(
            f"worker processes can't be started here: {str(error).strip()} Use workers='threads', or start them in "
            "the main program, below `if __name__ == '__main__':`"
        ) from error


def _check_importable(function: Callable[[Any], Any], context: Context) -> None:
    """What an interactive session defines exists nowhere else; the processes would only fail to find it."""
    module = getattr(function, "__module__", None) or type(function).__module__
    if context != "fork" and module == "__main__" and not hasattr(sys.modules["__main__"], "__file__"):
        raise ConfigError(
            f"{_name(function)} is defined in an interactive session, where processes that multiprocessing_context "
            f"{context!r} starts can't find it; put it into a module, use workers='threads', or 'fork'"
        )


def _name(function: Callable[[Any], Any]) -> str:
    return f"transform {getattr(function, '__qualname__', None) or repr(function)}"
