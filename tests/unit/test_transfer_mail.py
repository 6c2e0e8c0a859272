"""Several readers of one agent's notifications: each gets its own, and nobody sleeps through them."""

import asyncio
import threading
import time

import pytest

from penstock.errors import ClosedError, DeadlineExceeded
from penstock.transfer import Agent
from penstock.transfer.mail import MOST_KEPT_BYTES, new_topic


@pytest.fixture
def agent():
    with Agent("mail", timeout_s=5.0) as made:
        yield made


def bodies(pairs):
    return [message for _, message in pairs]


def test_topics_are_kept_apart_and_unknown_ones_dropped(agent):
    topic = new_topic()
    box = agent.mail.open(topic)
    for message in (b"one", topic + b"mine", new_topic() + b"nobody's", b"two", topic):
        agent.notify(agent.itself, message)
    assert agent.notifications() == [("mail", b"one"), ("mail", b"two")]
    assert agent.mail.take(box) == [("mail", b"mine"), ("mail", b"")] and agent.mail.take(box) == []
    agent.mail.shut(box)
    agent.notify(agent.itself, topic + b"late")
    assert agent.mail.take(box) == [] and agent.notifications() == []


def test_a_reader_that_takes_at_last_lets_the_others_go_on(agent):
    """The general box is full, so the inbox is left as it is; then somebody empties the box, once."""
    topic = new_topic()
    box = agent.mail.open(topic)
    filling = MOST_KEPT_BYTES // (128 << 10) + 4

    def send():
        for _ in range(filling):
            agent.notify(agent.itself, bytes(128 << 10))
        agent.notify(agent.itself, topic + b"behind them")

    sender = threading.Thread(target=send)
    got = []
    reader = threading.Thread(target=lambda: got.append((agent.mail.wait(box, 5.0), agent.mail.take(box))))
    reader.start()
    sender.start()
    while agent.mail._kept_bytes < MOST_KEPT_BYTES:
        time.sleep(0.001)
    agent.notifications()
    reader.join(20)
    sender.join(20)
    assert got == [(True, [("mail", b"behind them")])]


def test_whoever_takes_wakes_those_whose_mail_it_found(agent):
    """One thread sleeps on a topic, another polls for all: whichever of them empties the inbox."""
    topic = new_topic()
    box = agent.mail.open(topic)
    got, stop = [], threading.Event()

    def sleeper():
        while len(got) < 300:
            assert agent.mail.wait(box, 5.0)
            got.extend(bodies(agent.mail.take(box)))

    def poller():
        while not stop.is_set():
            agent.notifications()

    threads = [threading.Thread(target=sleeper), threading.Thread(target=poller)]
    for thread in threads:
        thread.start()
    for number in range(300):
        agent.notify(agent.itself, topic + bytes([number % 256]))
    threads[0].join(20)
    stop.set()
    threads[1].join(20)
    assert got == [bytes([number % 256]) for number in range(300)]


def test_many_sleepers_in_threads_and_one_event_loop_each_get_their_own(agent):
    topics = [new_topic() for _ in range(6)]
    boxes = [agent.mail.open(topic) for topic in topics]
    got = {number: [] for number in range(6)}
    rounds = 100

    def in_thread(number):
        while len(got[number]) < rounds:
            assert agent.mail.wait(boxes[number], 10.0), number
            got[number].extend(bodies(agent.mail.take(boxes[number])))

    async def in_loop():
        async def one(number):
            while len(got[number]) < rounds:
                assert await agent.mail.arrived(boxes[number], 10.0), number
                got[number].extend(bodies(agent.mail.take(boxes[number])))

        await asyncio.gather(*[one(number) for number in (3, 4, 5)])

    threads = [threading.Thread(target=in_thread, args=[number]) for number in (0, 1, 2)]
    threads.append(threading.Thread(target=lambda: asyncio.run(in_loop())))
    for thread in threads:
        thread.start()
    for step in range(rounds):
        for number, topic in enumerate(topics):
            agent.notify(agent.itself, topic + bytes([step, number]))
    for thread in threads:
        thread.join(20)
    assert got == {number: [bytes([step, number]) for step in range(rounds)] for number in range(6)}


def test_two_that_sleep_on_one_box_both_find_out(agent):
    """The general box may have several readers; each message goes to one of them, and the other goes on sleeping."""
    found = []

    def reader():
        found.append(bodies(agent.wait_notification(5.0)))

    threads = [threading.Thread(target=reader) for _ in range(2)]
    for thread in threads:
        thread.start()
    agent.notify(agent.itself, b"first")
    while not found:
        time.sleep(0.001)
    agent.notify(agent.itself, b"second")
    for thread in threads:
        thread.join(10)
    assert sorted(found) == [[b"first"], [b"second"]]


def test_waiting_ends_in_time_and_costs_nothing(agent):
    box = agent.mail.open(new_topic())
    started, used = time.monotonic(), time.thread_time()
    assert not agent.mail.wait(box, 0.2)
    assert time.monotonic() - started >= 0.2 and time.thread_time() - used < 0.05
    assert not asyncio.run(agent.mail.arrived(box, 0.01))


@pytest.mark.parametrize("end", ["close", "shut"])
def test_closing_wakes_who_sleeps(agent, end):
    box = agent.mail.open(new_topic())
    raised = []

    def sleeper():
        try:
            raised.append(agent.mail.wait(box, 30.0))
        except ClosedError as error:
            raised.append(error)

    thread = threading.Thread(target=sleeper)
    thread.start()
    while not box.sleepers:
        time.sleep(0.001)
    agent.close() if end == "close" else agent.mail.shut(box)
    thread.join(10)
    assert isinstance(raised[0], ClosedError) if end == "close" else raised == [True]


def test_a_reader_that_leaves_its_mail_lying_fills_no_memory(agent):
    """What nobody takes is bounded here, then in the ring; then the sender waits. Nothing is lost."""
    box = agent.mail.open(new_topic())
    message, sent = bytes(100_000), 0
    with pytest.raises(DeadlineExceeded):
        while sent < 1000:
            agent.notify(agent.itself, sent.to_bytes(4, "little") + message, timeout_s=0.05)
            sent += 1
            agent.mail.take(box)
    assert MOST_KEPT_BYTES // len(message) <= sent <= 2 * MOST_KEPT_BYTES // len(message)
    got = []
    while arrived := agent.notifications():
        got += [int.from_bytes(each.message[:4], "little") for each in arrived]
    assert got == list(range(sent))
    agent.notify(agent.itself, b"again")
    assert agent.notifications() == [("mail", b"again")]
