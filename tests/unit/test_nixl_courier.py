"""Errands in the background: in order within a lane, beside each other in several."""

import threading

from penstock.compat.nixl.courier import Courier
from penstock.errors import TransferError


def test_errands_of_a_lane_are_run_in_order_and_those_of_another_beside_them():
    courier, done, held = Courier(), [], threading.Event()
    finished = [threading.Event(), threading.Event()]
    courier.send("one", "holding", lambda: held.wait(10))
    for number in range(5):
        courier.send("one", "counting", lambda number=number: done.append(number))
    courier.send("one", "ending", finished[0].set)
    courier.send("two", "ending", finished[1].set)
    assert finished[1].wait(10)
    assert done == []
    assert courier.runs("one")
    held.set()
    assert finished[0].wait(10)
    assert done == [0, 1, 2, 3, 4]
    while courier.runs("one"):
        pass
    assert not courier.runs("nowhere")


def test_what_fails_is_logged_and_the_next_errand_is_run(caplog):
    courier, finished = Courier(), threading.Event()

    def fail():
        raise TransferError("because")

    courier.send("one", "trying", fail)
    courier.send("one", "ending", finished.set)
    assert finished.wait(10)
    assert [(each.levelname, each.getMessage()) for each in caplog.records] == [("ERROR", "trying failed: because")]


def test_a_closed_courier_drops_what_it_did_not_begin():
    courier, held, done = Courier(), threading.Event(), []
    courier.send("one", "holding", lambda: held.wait(10))
    courier.send("one", "dropped", lambda: done.append("dropped"))
    courier.close()
    courier.send("one", "too late", lambda: done.append("too late"))
    held.set()
    while courier.runs("one"):
        pass
    assert done == []
