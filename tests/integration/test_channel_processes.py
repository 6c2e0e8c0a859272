"""A channel between two real processes, one of which is slow, stopped, or killed at any moment."""

import asyncio
import contextlib
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from channel_child import PLANES, payload

from penstock import _core
from penstock.errors import DeadlineExceeded, PeerLost
from penstock.transfer import Agent, channel

SLOT_BYTES = 5000
SOON_S = 8.0  # on a quiet machine 0.3 s on one host, and somewhat more than the peers' 1 s over a network


@pytest.fixture(params=PLANES)
def plane(request):
    if request.param == "network":
        pytest.importorskip("libucx")
        if not _core.has_ucx_plane:
            pytest.skip("this core was built without UCX's headers")
    return request.param


@pytest.fixture
def agent(plane):
    with Agent("test", timeout_s=20.0, **PLANES[plane]) as made:
        yield made


@pytest.fixture
def child(plane):
    """Starts the other end; what is left of it at the end of the block is killed."""

    @contextlib.contextmanager
    def start(role, *numbers):
        script = Path(__file__).with_name("channel_child.py")
        command = [sys.executable, script, role, plane, *map(str, numbers)]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
            try:
                yield process
            finally:
                process.kill()

    return start


def offer_to(process, receiver):
    process.stdin.write(receiver.offer().hex() + "\n")
    process.stdin.flush()


def is_right(message, array):
    return np.array_equal(array, payload(message.sequence, SLOT_BYTES))


def test_ten_thousand_messages_of_any_size_in_order_and_never_one_under_a_reader(agent, child, plane):
    """The receiver is slow: it holds a random number of messages, and looks at each again before it lets go."""
    rng = random.Random(5)
    total = 10_000 if plane == "host" else 1_000
    with channel.Receiver(agent, 16, SLOT_BYTES) as receiver, child("send", total) as sender:
        offer_to(sender, receiver)
        held = []
        for count, message in enumerate(receiver):
            assert message.sequence == count
            array = message.array()
            assert is_right(message, array)
            held.append((message, array))
            while (oldest := held and count - held[0][0].sequence > 12) or len(held) > rng.randrange(12):
                place = 0 if oldest else rng.randrange(len(held))
                message, array = held.pop(place)
                assert is_right(message, array), f"message {message.sequence} was written over"
                message.release()
                del message, array
        assert count == total - 1
        assert all(is_right(*each) for each in held)
        assert sender.communicate(timeout=20)[0] == f"began\nsent {total}\n"


@pytest.mark.parametrize("plane", ["host"], indirect=True)  # over a network, who is stopped is silent, and lost
def test_the_sender_is_held_up_by_a_receiver_that_is_stopped(agent, child):
    with child("receive", 8, SLOT_BYTES) as receiver:
        with channel.Sender(agent, bytes.fromhex(receiver.stdout.readline())) as sender:
            sender.send(payload(0, SLOT_BYTES))
            assert receiver.stdout.readline() == "began\n"
            receiver.send_signal(signal.SIGSTOP)
            sent = 1
            with pytest.raises(DeadlineExceeded, match="no free slot came from child-receive within 0.2 s"):
                while sent < 100:
                    sender.send(payload(sent, SLOT_BYTES), 0.2)
                    sent += 1
            assert sent <= 9, "more messages than the ring and the one that was taken"
            receiver.send_signal(signal.SIGCONT)
            for sequence in range(sent, 200):
                sender.send(payload(sequence, SLOT_BYTES), 20.0)
        assert receiver.communicate(timeout=20)[0] == "received 200\n"


@pytest.mark.parametrize("seed", range(3))
def test_a_sender_that_is_killed(agent, child, seed):
    """What arrived is right, nothing is made up, and the loss is noticed."""
    kill_after = random.Random(seed).randrange(1, 3000)
    with channel.Receiver(agent, 8, SLOT_BYTES) as receiver, child("send", 10**9) as sender:
        offer_to(sender, receiver)
        killed = None
        with pytest.raises(PeerLost, match="child-send, at the other end of the channel, is lost"):
            for message in receiver:
                with message:
                    assert is_right(message, message.array())
                if message.sequence == kill_after:
                    sender.kill()
                    killed = time.monotonic()
        assert time.monotonic() - killed < SOON_S
        assert message.sequence >= kill_after


@pytest.mark.parametrize("seed", range(3))
def test_a_receiver_that_is_killed(agent, child, seed):
    kill_after = random.Random(seed).randrange(1, 3000)
    with child("receive", 8, SLOT_BYTES) as receiver:
        sender = channel.Sender(agent, bytes.fromhex(receiver.stdout.readline()))
        with pytest.raises(PeerLost):
            for sequence in range(10**9):
                sender.send(payload(sequence, SLOT_BYTES))
                if sequence == kill_after:
                    receiver.kill()
                    killed = time.monotonic()
        assert time.monotonic() - killed < SOON_S
        with pytest.raises(PeerLost):
            sender.send(b"and again")
        sender.close()
    # The same agent again, in another process: a new offer, a new channel.
    with child("receive", 8, SLOT_BYTES) as receiver:
        with channel.Sender(agent, bytes.fromhex(receiver.stdout.readline())) as sender:
            for sequence in range(50):
                sender.send(payload(sequence, SLOT_BYTES))
        assert receiver.communicate(timeout=20)[0] == "began\nreceived 50\n"


def test_a_sender_that_is_killed_while_it_waits_for_a_slot(agent, child):
    with channel.Receiver(agent, 2, SLOT_BYTES) as receiver, child("send", 10**9) as sender:
        offer_to(sender, receiver)
        first, second = receiver.receive(), receiver.receive()
        sender.kill()
        with pytest.raises(PeerLost):
            receiver.receive(SOON_S)
        assert is_right(first, first.array()) and is_right(second, second.array())


def large(number):
    return np.full((2 << 20) - number, number, np.uint8)


def is_large(message, number):
    return message.size_bytes == (2 << 20) - number and bool((message.array() == number).all())


@pytest.mark.parametrize("awaited", [False, True])
def test_large_messages_of_which_several_are_under_way(agent, plane, awaited):
    """Over a network each staging slot is used anew only when its message is off."""

    def feed(sender):
        for number in range(24):
            sender.send(large(number))
        sender.close()

    async def stream(sender, receiver):
        async def feed():
            for number in range(24):
                await sender.sent(large(number))
            sender.close()

        feeding, count = asyncio.create_task(feed()), 0
        async for message in receiver:
            with message:
                assert is_large(message, count)
            count += 1
        await feeding
        return count

    with Agent("other", timeout_s=20.0, **PLANES[plane]) as other, channel.Receiver(agent, 6, 2 << 20) as receiver:
        sender = channel.Sender(other, receiver.offer(), staging_slots=3)
        if awaited:
            assert asyncio.run(stream(sender, receiver)) == 24
            return
        thread = threading.Thread(target=feed, args=[sender])
        thread.start()
        assert [is_large(message, number) for number, message in enumerate(receiver)] == [True] * 24
        thread.join()
