"""A thread that waits for a store is let go when its work is closed."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from penstock.errors import ClosedError
from penstock.store import Interrupt, open_store
from penstock.store.files import folder_lock
from penstock.store.limit import RequestLimit
from penstock.store.objects import ObjectStore
from penstock.store.requests import Requester
from penstock.store.retry import RetryPolicy
from penstock.store.urls import parse_store_url
from penstock.testing.fault_proxy import Fault, FaultProxy
from penstock.testing.store import collect
from waiting import wait_until

WAIT_S = 10.0
SOON_S = 5.0  # on a busy machine; what is interrupted would wait much longer


class Waiter:
    """Does something under an interrupt in a thread, and notes how it ended."""

    def __init__(self, work: Callable[[], object]) -> None:
        self.interrupt = Interrupt()
        self.error: BaseException | None = None
        self._work = work
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            with self.interrupt.cover():
                self._work()
        except BaseException as error:
            self.error = error

    def let_go(self) -> None:
        """Set the interrupt; the thread must end soon, and with ClosedError."""
        assert self._thread.is_alive(), f"it didn't wait: {self.error!r}"
        started = time.monotonic()
        self.interrupt.set()
        self._thread.join(WAIT_S)
        assert time.monotonic() - started < SOON_S
        assert isinstance(self.error, ClosedError)


@pytest.fixture
def silent_store(monkeypatch: pytest.MonkeyPatch) -> Iterator[ObjectStore]:
    """A store whose server takes connections and never answers; one request may run at once."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.getsockname()[1]}")
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
        requests = Requester(RequestLimit(1), RetryPolicy(timeout_s=300.0))
        yield ObjectStore(parse_store_url("s3://bucket"), requests=requests)


def stats_of(store: ObjectStore):
    return store._requests.limit.stats()


@pytest.mark.parametrize(
    "use",
    [
        lambda store: store.read("k"),
        lambda store: collect(store, "k", 0, 10),
        lambda store: list(store.list()),
        lambda store: store.put("k", b"x"),
        lambda store: store.open_writer("k").commit(),
    ],
)
def test_a_request_under_way_is_ended(silent_store: ObjectStore, use: Callable[[ObjectStore], object]):
    waiter = Waiter(lambda: use(silent_store))
    wait_until(lambda: stats_of(silent_store).in_flight == 1)
    waiter.let_go()
    assert stats_of(silent_store).in_flight == 0


def test_a_wait_for_the_limit_is_ended_and_others_go_on(silent_store: ObjectStore):
    first = Waiter(lambda: silent_store.read("k"))
    wait_until(lambda: stats_of(silent_store).in_flight == 1)
    second = Waiter(lambda: silent_store.read("k"))
    wait_until(lambda: stats_of(silent_store).waiting == 1)
    second.let_go()
    assert first.error is None
    first.let_go()


@pytest.mark.s3
def test_a_wait_between_tries_is_ended(s3_root: str, s3_proxy: FaultProxy):
    requests = Requester(RequestLimit(4), RetryPolicy(tries=9, first_delay_s=300.0, longest_delay_s=300.0))
    store = ObjectStore(parse_store_url(s3_root), requests=requests)
    s3_proxy.add_rule(lambda request: Fault(status=503))
    waiter = Waiter(lambda: store.read("k"))
    wait_until(lambda: stats_of(store).throttled_total == 1)
    waiter.let_go()
    assert len(s3_proxy.requests) == 1


def test_a_wait_for_a_folder_s_lock_is_ended(tmp_path: Path):
    store = open_store(str(tmp_path))
    store.put("k", b"1")
    with folder_lock(str(tmp_path)):
        waiter = Waiter(lambda: store.put("k", b"2"))
        wait_until(lambda: len(list(tmp_path.iterdir())) == 2)
        waiter.let_go()
    assert store.read("k") == b"1"
    assert [each.name for each in tmp_path.iterdir()] == ["k"]


def test_calls_after_it_was_set_fail_at_once_and_those_outside_do_not(tmp_path: Path, silent_store: ObjectStore):
    interrupt = Interrupt()
    interrupt.set()
    interrupt.set()
    with interrupt.cover():
        with pytest.raises(ClosedError):
            silent_store.read("k")
        with pytest.raises(ClosedError):
            next(silent_store.stream("k", 0, 1))
    assert stats_of(silent_store).in_flight == 0
    other = Waiter(lambda: silent_store.read("k"))
    wait_until(lambda: stats_of(silent_store).in_flight == 1)
    other.let_go()
