"""Both ends of a channel in one process: what is sent arrives, slots come back when nobody looks, ends end."""

import asyncio
import gc
import threading
import time

import numpy as np
import pytest
import torch

from penstock.budget import Budget
from penstock.errors import (
    ClosedError,
    ConfigError,
    DeadlineExceeded,
    MetadataError,
    PeerLost,
    PeerUnreachable,
    PenstockError,
)
from penstock.transfer import Agent, channel


@pytest.fixture
def agent():
    with Agent("both", timeout_s=5.0) as made:
        yield made


@pytest.fixture
def ends(agent):
    with channel.Receiver(agent, 4, 1000) as receiver, channel.Sender(agent, receiver.offer()) as sender:
        yield sender, receiver


def opened(ends):
    """The first look of the receiver grants the ring."""
    with pytest.raises(DeadlineExceeded, match="no message came from .* within 0 s"):
        ends[1].receive(0)


def send(ends, *things):
    opened(ends) if ends[1].peer_name is None else None
    for thing in things:
        ends[0].send(thing, 1.0)


def take(receiver):
    with receiver.receive(1.0) as message:
        return bytes(message.data)


@pytest.mark.parametrize(
    ("thing", "expected"),
    [
        (b"bytes", b"bytes"),
        (b"", b""),
        (bytearray(1000), bytes(1000)),
        (memoryview(b"view"), b"view"),
        (np.arange(3, dtype="<u2"), b"\0\0\1\0\2\0"),
        (np.array(5, np.uint8), b"\5"),
        (np.zeros((0, 7)), b""),
        (torch.arange(3, dtype=torch.int16), b"\0\0\1\0\2\0"),
        (torch.ones(2, dtype=torch.bfloat16), b"\x80\x3f\x80\x3f"),
        (torch.zeros(0), b""),
        ([b"head", torch.ones(1, dtype=torch.uint8), b"", np.arange(2, dtype=np.uint8)], b"head\1\0\1"),
        ([], b""),
    ],
)
def test_what_is_sent_arrives(ends, thing, expected):
    send(ends, thing)
    message = ends[1].receive(1.0)
    assert (bytes(message.data), len(message), message.sequence) == (expected, len(expected), 0)
    assert message.array().tobytes() == expected


def test_a_slot_filled_in_place(ends):
    opened(ends)
    slot = ends[0].reserve(1.0)
    assert slot.data.nbytes == 1000
    np.asarray(slot.data)[:4] = [1, 2, 3, 4]
    slot.send(4)
    with pytest.raises(ClosedError, match="sent already"):
        slot.send(4)
    with pytest.raises(ConfigError, match="size_bytes is 1001"):
        ends[0].reserve(1.0).send(1001)
    ends[0].reserve(1.0).send()
    assert [take(ends[1])[:4], len(take(ends[1]))] == [b"\1\2\3\4", 1000]


def test_registered_memory_is_moved_from_where_it_lies(agent, ends):
    opened(ends)
    first, second = np.arange(100, dtype=np.uint8), bytearray(b"second")
    with agent.register([first, second]) as registration:
        ends[0].send(registration.descriptors)
        ends[0].send(registration.descriptors[1])
        with pytest.raises(ConfigError, match="a message of 1100 bytes; slots of this channel have 1000"):
            ends[0].send(registration.descriptors[[0] * 11])
    assert take(ends[1]) == first.tobytes() + b"second" and take(ends[1]) == b"second"


@pytest.mark.parametrize(
    ("thing", "said"),
    [
        (bytes(1001), "a message of 1001 bytes; slots of this channel have 1000"),
        ([bytes(600), bytes(401)], "a message of 1001 bytes"),
        (7, "int isn't memory"),
        (np.arange(8)[::2], "isn't contiguous"),
        (np.array([None]), "references to objects"),
    ],
)
def test_what_can_not_be_sent_leaves_the_channel_as_it_was(ends, thing, said):
    opened(ends)
    with pytest.raises(ConfigError, match=said):
        ends[0].send(thing, 1.0)
    send(ends, b"good")
    assert take(ends[1]) == b"good"


def test_a_sender_whose_receiver_never_waited_is_told_why_nothing_moves(ends):
    with pytest.raises(DeadlineExceeded, match=r"its program hasn't called receive\(\), nor begun its loop"):
        ends[0].send(b"early", 0.01)
    send(ends, b"good")
    assert take(ends[1]) == b"good"
    ends[0].send(b"1", 1.0)
    with pytest.raises(DeadlineExceeded, match=r"no free slot came from both within 0.01 s$"):
        while True:
            ends[0].send(b"more", 0.01)


def test_the_sender_waits_while_no_slot_is_free_and_nothing_is_sent_twice(ends):
    send(ends, *(bytes([number]) for number in range(4)))
    with pytest.raises(DeadlineExceeded, match="no free slot came from both within 0.01 s"):
        ends[0].send(b"\4", 0.01)
    held = ends[1].receive(1.0)
    with pytest.raises(DeadlineExceeded):
        ends[0].send(b"\4", 0.01)
    held.release()
    ends[0].send(b"\4", 1.0)
    assert [take(ends[1]) for _ in range(4)] == [b"\1", b"\2", b"\3", b"\4"]


def test_a_view_holds_its_slot_until_it_dies(ends):
    send(ends, *(np.full(1000, number, np.uint8) for number in range(4)))
    with ends[1].receive(1.0) as message:
        array = message.array(np.uint8)
        tensor = torch.from_numpy(array[10:])
    with pytest.raises(ClosedError, match="message 0 was released"):
        message.data
    del array
    with pytest.raises(DeadlineExceeded):
        ends[0].send(b"next", 0.01)
    assert not tensor.any(), "the slot was filled under a view"
    del tensor
    gc.collect()
    take(ends[1])  # the receiver looks
    ends[0].send(b"next", 1.0)


def test_a_receiver_that_waits_holds_nothing_back(agent):
    """Grants are saved up, but not while the receiver sleeps and the sender may be waiting for the one that is left."""
    with channel.Receiver(agent, 8, 10) as receiver, channel.Sender(agent, receiver.offer()) as sender:
        send((sender, receiver), *[b"full"] * 8)
        held = [receiver.receive(1.0) for _ in range(8)]
        held[0].release()
        with pytest.raises(DeadlineExceeded):
            sender.send(b"more", 0.01)
        with pytest.raises(DeadlineExceeded):
            receiver.receive(0)
        sender.send(b"more", 1.0)


def test_a_grant_that_the_sender_has_no_room_for_is_made_later(agent, ends, monkeypatch):
    send(ends, b"0", b"1", b"2", b"3")
    notify, full = agent.notify, [True]

    def no_room(peer, message, timeout_s):
        if full[0]:
            assert timeout_s < 1
            raise DeadlineExceeded("there is no room for more notifications")
        notify(peer, message, timeout_s)

    monkeypatch.setattr(agent, "notify", no_room)
    assert [take(ends[1]) for _ in range(4)] == [b"0", b"1", b"2", b"3"]
    full[0] = False
    with pytest.raises(DeadlineExceeded, match="no message came"):
        ends[1].receive(0)
    send(ends, b"4")
    assert take(ends[1]) == b"4"


def test_a_receiver_that_holds_everything_is_told_so(ends):
    send(ends, b"0", b"1", b"2", b"3")
    messages = [ends[1].receive(1.0) for _ in range(4)]
    messages[3].release()
    with pytest.raises(
        DeadlineExceeded, match="none can come: 3 of the 4 slots, the oldest of them too, are held here"
    ):
        ends[1].receive(0.01)


def test_messages_may_be_let_go_of_in_any_order(ends):
    send(ends, b"0", b"1", b"2", b"3")
    messages = [ends[1].receive(1.0) for _ in range(4)]
    for number in (3, 1, 2):
        messages[number].release()
    with pytest.raises(DeadlineExceeded):
        ends[0].send(b"4", 0.01)
    messages[0].release()
    send(ends, *b"4 5 6 7".split())
    assert [take(ends[1]) for _ in range(4)] == b"4 5 6 7".split()


def test_the_loop_ends_when_the_sender_closes(ends):
    send(ends, b"one", b"two")
    ends[0].close()
    assert [bytes(message.data) for message in ends[1]] == [b"one", b"two"]
    assert ends[1].receive(0) is None and list(ends[1]) == []
    with pytest.raises(ClosedError, match="this end of the channel with both was closed"):
        ends[0].send(b"more")
    ends[0].close()


def test_a_sender_that_failed_says_so_after_what_it_had_sent(agent):
    receiver = channel.Receiver(agent, 4, 100)
    with pytest.raises(ZeroDivisionError), channel.Sender(agent, receiver.offer()) as sender:
        with pytest.raises(DeadlineExceeded):
            receiver.receive(0)
        sender.send(b"part")
        _ = 1 / 0
    assert take(receiver) == b"part"
    for _ in range(2):
        with pytest.raises(PeerLost, match="both stopped .* ZeroDivisionError at the sender: division by zero"):
            receiver.receive(1.0)
    receiver.close()


def test_what_was_sent_while_a_grant_failed_comes_first(ends, monkeypatch):
    """The sender sends the rest, ends and goes between two looks; the grant in between finds nobody any more."""
    sender, receiver = ends
    send(ends, b"first")
    first = receiver.receive(1.0)
    array = first.array()
    first.release()
    del first, array  # its slot is free now, and the next look says so

    def gone(*_, **__):
        sender.send(b"last", 1.0)
        sender.close()
        raise PeerUnreachable("the peer closed")

    monkeypatch.setattr(receiver, "_tell", gone)
    assert take(receiver) == b"last"
    assert receiver.receive(1.0) is None


def test_a_receiver_that_closes_stops_the_sender(ends):
    send(ends, b"one")
    ends[1].close()
    ends[1].close()
    with pytest.raises(PeerLost, match="both stopped at its end of the channel: the receiver closed it"):
        ends[0].send(b"two")
    with pytest.raises(ClosedError):
        ends[1].receive()
    with pytest.raises(ClosedError):
        ends[1].offer()


def test_what_is_held_outlives_the_receiver(agent):
    receiver = channel.Receiver(agent, 2, 1000)
    sender = channel.Sender(agent, receiver.offer())
    send((sender, receiver), np.full(1000, 7, np.uint8))
    array = receiver.receive(1.0).array()
    receiver.close()
    sender.close()
    del receiver, sender
    gc.collect()
    assert (array == 7).all()


@pytest.mark.parametrize("which", [0, 1])
@pytest.mark.parametrize("how", ["end", "agent"])
def test_closing_wakes_whoever_waits(agent, ends, which, how):
    opened(ends)
    if which == 0:
        send(ends, *[b"full"] * 4)
    raised = []

    def wait():
        try:
            ends[0].send(b"more", 30.0) if which == 0 else ends[1].receive(30.0)
        except ClosedError as error:
            raised.append(error)

    thread = threading.Thread(target=wait)
    thread.start()
    while not ends[which]._box.sleepers:
        time.sleep(0.001)
    (ends[which] if how == "end" else agent).close()
    thread.join(5)
    assert raised, "still waiting"


def test_a_waiting_receiver_costs_next_to_nothing(ends):
    used = time.thread_time()
    with pytest.raises(DeadlineExceeded):
        ends[1].receive(0.3)
    assert time.thread_time() - used < 0.05


def test_in_an_event_loop(ends):
    async def stream():
        async def feed():
            for number in range(50):
                await ends[0].sent(bytes([number]), 5.0)
            ends[0].close()

        feeding = asyncio.create_task(feed())
        got = []
        async for message in ends[1]:
            with message:
                got.append(message.data[0])
        await feeding
        return got

    assert asyncio.run(stream()) == list(range(50))


def test_the_users_own_notifications_are_left_alone(agent, ends):
    opened(ends)
    agent.notify(agent.itself, b"mine")
    send(ends, b"one")
    assert take(ends[1]) == b"one" and agent.notifications() == [("both", b"mine")]


@pytest.mark.parametrize("thing", [b"", b"data", "registered"])
def test_a_receiver_that_is_gone_is_lost_whatever_is_sent(agent, thing):
    """Its end was noticed before: a new connection is tried, and nobody is there."""
    gone = Agent("gone", timeout_s=5.0)
    receiver = channel.Receiver(gone, 4, 100)
    sender = channel.Sender(agent, receiver.offer())
    send((sender, receiver), b"first")
    gone.close()
    while not sender._peer.lost:
        time.sleep(0.001)
    with agent.register(bytearray(8)) as registration:
        for _ in range(2):
            with pytest.raises(PeerLost, match="gone, at the other end of the channel, is lost"):
                sender.send(registration.descriptors if thing == "registered" else thing, 1.0)
    sender.close()


def test_an_offer_is_for_one_sender(agent):
    with (
        Agent("first", timeout_s=5.0) as one,
        Agent("second", timeout_s=5.0) as other,
        channel.Receiver(agent, 2, 10) as receiver,
        channel.Sender(one, receiver.offer()) as first,
    ):
        send((first, receiver), b"first")
        with channel.Sender(other, receiver.offer()) as second:
            assert take(receiver) == b"first"
            with pytest.raises(PeerLost, match="first sends into it already; an offer is for one sender"):
                second.send(b"second", 2.0)
        first.send(b"again")
        assert take(receiver) == b"again"


def test_an_end_that_can_not_be_made_leaves_nothing(agent):
    with channel.Receiver(agent, 2, 1000) as receiver:
        offer = receiver.offer()
        with pytest.raises(PenstockError):
            channel.Receiver(agent, 4096, 1 << 50)
    budget = Budget(1 << 10)
    with Agent("small", budget=budget, timeout_s=0.1) as small, pytest.raises(PenstockError):
        channel.Sender(small, offer)  # no memory, and the receiver is gone
    assert not agent.mail._boxes and not small.mail._boxes and not small.registrations and not agent.registrations


def test_two_agents_of_one_name_are_not_taken_for_one(agent):
    with (
        Agent("both") as namesake,
        channel.Receiver(namesake, 2, 10) as receiver,
        pytest.raises(ConfigError, match="'both', which is this agent's own name"),
    ):
        channel.Sender(agent, receiver.offer())


def test_numbers_that_can_not_be(agent):
    for arguments in ((0, 10), (4097, 10), (1, 0), (1.5, 10)):
        with pytest.raises(ConfigError, match="give a whole number"):
            channel.Receiver(agent, *arguments)
    with channel.Receiver(agent, 2, 10) as receiver:
        with pytest.raises(ConfigError, match="staging_slots"):
            channel.Sender(agent, receiver.offer(), staging_slots=4)
        with pytest.raises(ConfigError, match="timeout_s"):
            channel.Sender(agent, receiver.offer(), timeout_s=0)
    with pytest.raises(MetadataError, match="a channel's offer: ends too early"):
        channel.Sender(agent, b"no")


def test_the_ring_comes_from_the_budget_and_goes_back():
    budget = Budget(1 << 20)
    with Agent("frugal", budget=budget, timeout_s=5.0) as agent:
        with channel.Receiver(agent, 4, 100) as receiver, channel.Sender(agent, receiver.offer()) as sender:
            assert budget.charged_bytes >= 4 * 128 + 2 * 128
            send((sender, receiver), b"in budget")
            assert take(receiver) == b"in budget"
        del receiver, sender
        gc.collect()
        assert budget.charged_bytes == 0
