"""The other end of a channel, in a process that tests may stop and kill.

``send COUNT`` reads an offer from stdin and sends messages 0 .. COUNT - 1; ``receive SLOTS SLOT_BYTES`` prints its
offer and checks what comes. Both say on stdout how it went. ``PLANES`` are the ways in which the two may be connected.
"""

import sys

import numpy as np

from penstock.errors import PenstockError
from penstock.transfer import Agent, channel

PLANES = {"host": {}, "network": {"network": "loopback", "require": "tcp", "peer_timeout_s": 1.0}}


def payload(sequence, slot_bytes):
    """Message ``sequence`` of the stream that all tests send: of any size from 0 to ``slot_bytes``."""
    size = (sequence * 7919) % (slot_bytes + 1)
    return (np.arange(size, dtype=np.uint32) * 3 + sequence * 5).astype(np.uint8)


def send(agent, count):
    with channel.Sender(agent, bytes.fromhex(sys.stdin.readline())) as sender:
        for sequence in range(count):
            sender.send(payload(sequence, sender.slot_bytes))
            if sequence == 0:
                print("began", flush=True)
    print("sent", count, flush=True)


def receive(agent, slots, slot_bytes):
    with channel.Receiver(agent, slots, slot_bytes) as receiver:
        print(receiver.offer().hex(), flush=True)
        for message in receiver:
            with message:
                expected = payload(message.sequence, slot_bytes)
                if not np.array_equal(message.array(), expected):
                    print("wrong", message.sequence, flush=True)
                    return
            if message.sequence == 0:
                print("began", flush=True)
    print("received", receiver._window.next, flush=True)


if __name__ == "__main__":
    role, plane, *numbers = sys.argv[1:]
    with Agent(f"child-{role}", timeout_s=20.0, **PLANES[plane]) as ours:
        try:
            (send if role == "send" else receive)(ours, *map(int, numbers))
        except PenstockError as error:
            print(type(error).__name__, error, flush=True)
