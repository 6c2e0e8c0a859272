"""A channel between two real processes, one of which is slow, stopped, or killed at any moment."""

import contextlib
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from channel_child import payload

from penstock.errors import DeadlineExceeded, PeerLost
from penstock.transfer import Agent, channel

SLOT_BYTES = 5000
SOON_S = 5.0  # 0.3 s on a quiet machine


@pytest.fixture
def agent():
    with Agent("test", timeout_s=20.0) as made:
        yield made


@contextlib.contextmanager
def child(role, *arguments):
    script = Path(__file__).with_name("channel_child.py")
    command = [sys.executable, script, role, f"child-{role}", *map(str, arguments)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def offer_to(process, receiver):
    process.stdin.write(receiver.offer().hex() + "\n")
    process.stdin.flush()


def is_right(message, array):
    return np.array_equal(array, payload(message.sequence, SLOT_BYTES))


def test_ten_thousand_messages_of_any_size_in_order_and_never_one_under_a_reader(agent):
    """The receiver is slow: it holds a random number of messages, and looks at each again before it lets go."""
    rng = random.Random(5)
    with channel.Receiver(agent, 16, SLOT_BYTES) as receiver, child("send", 10_000) as sender:
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
        assert count == 9_999
        assert all(is_right(*each) for each in held)
        assert sender.communicate(timeout=20)[0] == "began\nsent 10000\n"


def test_the_sender_is_held_up_by_a_receiver_that_is_stopped(agent):
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


@pytest.mark.parametrize("seed", range(4))
def test_a_sender_that_is_killed(agent, seed):
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


@pytest.mark.parametrize("seed", range(4))
def test_a_receiver_that_is_killed(agent, seed):
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


def test_a_sender_that_is_killed_while_it_waits_for_a_slot(agent):
    with channel.Receiver(agent, 2, SLOT_BYTES) as receiver, child("send", 10**9) as sender:
        offer_to(sender, receiver)
        first, second = receiver.receive(), receiver.receive()
        sender.kill()
        with pytest.raises(PeerLost):
            receiver.receive(SOON_S)
        assert is_right(first, first.array()) and is_right(second, second.array())
