"""Runs the object-store client's coroutines for callers that just want to wait.

The client's own blocking calls can't be interrupted: Ctrl-C would wait for the request's deadline. So its
asynchronous ones run on one background thread, and the caller waits for the result with a deadline that Ctrl-C
cuts short; giving up cancels the request itself. The thread is a daemon that is stopped when the interpreter exits.
"""

from __future__ import annotations

import asyncio
import atexit
import os
import sys
import threading
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import CancelledError
from typing import TypeVar

from penstock.errors import ClosedError, StoreError
from penstock.store.interrupt import covered, watched

__all__ = ["run"]

T = TypeVar("T")
_STOP_DEADLINE_S = 2.0
_QUIET_COUNT = 5
_QUIET_POLL_S = 0.002

_guard = threading.Lock()
_loop: asyncio.AbstractEventLoop | None = None
_thread: threading.Thread | None = None
_owner_pid = 0
_stopping = False


def run(start: Callable[[], Awaitable[T]], timeout_s: float) -> T:
    """Wait for what ``start`` begins, for at most ``timeout_s`` seconds.

    Args:
        start: makes the awaitable; called on the background thread.
        timeout_s: the deadline.

    Raises:
        TimeoutError: the deadline passed; the work was cancelled.
        ClosedError: an ``Interrupt`` over this thread was set, or the program is ending; the work was cancelled.
        StoreError: this process was forked from one that had used an object store.
    """

    async def started() -> T:
        return await start()

    covered()
    loop = _running_loop()
    future = asyncio.run_coroutine_threadsafe(started(), loop)
    try:
        with watched(future):
            return future.result(timeout_s)
    except CancelledError:
        raise _ended() from None  # nobody else cancels
    finally:
        future.cancel()  # does nothing to work that ended


def _running_loop() -> asyncio.AbstractEventLoop:
    global _loop, _thread, _owner_pid  # noqa: PLW0603 - one thread per process is the point
    with _guard:
        if _loop is None:
            _loop = asyncio.new_event_loop()
            _thread = threading.Thread(target=_loop.run_forever, name="penstock-store", daemon=True)
            _owner_pid = os.getpid()
            _thread.start()
            atexit.register(_stop)
        if _owner_pid != os.getpid():
            raise StoreError(
                f"process {os.getpid()} was forked from process {_owner_pid} after that had used an object store; "
                'threads and connections don\'t survive a fork: start workers with "spawn" or "forkserver", or '
                "open the store only in the workers"
            )
        if _stopping:
            raise _ended()
        return _loop


def _ended() -> ClosedError:
    return ClosedError("the program is ending, and its store calls with it")


def _stop() -> None:
    """Leave nothing behind that could call into an interpreter that is being taken down."""
    global _stopping  # noqa: PLW0603 - as above
    if _loop is None or _thread is None or _owner_pid != os.getpid():
        return
    with _guard:
        _stopping = True
    _loop.call_soon_threadsafe(_cancel_all, _loop)
    _thread.join(_STOP_DEADLINE_S)
    _let_client_threads_leave()
    if not _thread.is_alive():
        _loop.close()


def _cancel_all(loop: asyncio.AbstractEventLoop) -> None:
    for task in asyncio.all_tasks(loop):
        task.cancel()
    loop.call_soon(loop.call_soon, loop.stop)  # two turns: one for the tasks to take note, one to end


def _let_client_threads_leave() -> None:
    """Wait until no thread of the client is inside Python.

    Such a thread hands a result over in the loop's ``call_soon_threadsafe``, and may still be on its way out when
    the main thread, which has that result, ends the program. Before Python 3.14 a thread that asks for the
    interpreter when it is gone is ended by force, which the client's runtime answers with ``abort()``.
    """
    deadline = time.monotonic() + _STOP_DEADLINE_S
    quiet_count = 0
    while quiet_count < _QUIET_COUNT and time.monotonic() < deadline:
        time.sleep(_QUIET_POLL_S)  # gives the interpreter away to whoever waits for it
        known = {thread.ident for thread in threading.enumerate()}
        quiet_count = 0 if sys._current_frames().keys() - known else quiet_count + 1
