"""Threads that build, as many as are wanted at the moment."""

from __future__ import annotations

import itertools
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeAlias, TypeVar

__all__ = ["Crew"]

T = TypeVar("T")
_Job: TypeAlias = tuple["Future[Any]", Callable[[], Any]]

_SLICE_S = 1.0  # how long one wait lasts before it looks again whether it is still wanted


class Crew:
    """Runs tasks in the order in which they came, on up to ``count`` threads that begin when there is work for them.

    A thread that is wanted no more ends after the task that it has in hand; what waits is left to the others.

    Args:
        count: threads at first, at least 1.
        name: of the threads, a number follows.
    """

    def __init__(self, count: int, name: str) -> None:
        self._name = name
        self._wanted = count
        self._changed = threading.Condition()
        self._jobs: deque[_Job] = deque()
        self._threads: list[threading.Thread] = []  # all that haven't ended
        self._numbers = itertools.count()
        self._employed = 0
        self._idle = 0
        self._stopping = False

    def submit(self, task: Callable[[], T]) -> Future[T]:
        """Have a task run; cancelled when the crew was stopped."""
        job: Future[T] = Future()
        with self._changed:
            if self._stopping:
                job.cancel()
                return job
            self._jobs.append((job, task))
            self._engage()
            self._changed.notify()
        return job

    def resize(self, count: int) -> None:
        """Have ``count`` threads from now on, at least 1."""
        with self._changed:
            self._wanted = count
            self._engage()
            self._changed.notify_all()

    def stop(self) -> None:
        """Cancel what waits; threads end after the task that they have in hand."""
        with self._changed:
            self._stopping = True
            jobs = list(self._jobs)
            self._jobs.clear()
            self._changed.notify_all()
        for job, _ in jobs:
            job.cancel()

    def join(self, timeout_s: float) -> None:
        """Wait for the threads to end, at most for so long."""
        deadline_s = time.monotonic() + timeout_s
        for thread in list(self._threads):
            if thread is not threading.current_thread():
                thread.join(max(0.0, deadline_s - time.monotonic()))

    def _engage(self) -> None:
        """Begin threads for tasks that nobody is free for; with the lock held."""
        lacking = min(len(self._jobs) - self._idle, self._wanted - self._employed)
        if lacking <= 0 or self._stopping:
            return
        self._threads = [thread for thread in self._threads if thread.is_alive()]
        for _ in range(lacking):
            thread = threading.Thread(target=self._run, name=f"{self._name}-{next(self._numbers)}", daemon=False)
            try:
                thread.start()
            except RuntimeError:  # no more threads to be had: those that are there do it
                if not self._employed:
                    raise
                return
            self._threads.append(thread)
            self._employed += 1

    def _run(self) -> None:
        while (job := self._next()) is not None:
            _perform(*job)
            del job  # and with it what was built, which isn't ours while we wait

    def _next(self) -> _Job | None:
        """The next task, or None when this thread is to end."""
        with self._changed:
            self._idle += 1
            while not self._jobs and not self._stopping and self._employed <= self._wanted:
                self._changed.wait(_SLICE_S)
            self._idle -= 1
            if self._jobs and self._employed <= self._wanted:
                return self._jobs.popleft()
            self._employed -= 1
            self._changed.notify()  # what woke us may be work for another
            return None


def _perform(job: Future[T], task: Callable[[], T]) -> None:
    if not job.set_running_or_notify_cancel():
        return
    try:
        result = task()
    except BaseException as error:
        job.set_exception(error)
        del job, task  # else the error's frames keep the error and its batch alive
    else:
        job.set_result(result)
