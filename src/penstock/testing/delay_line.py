"""A line that takes its time: what comes in at one network interface leaves by another, so much later.

Run by `penstock.testing.hosts` in the namespace of its switch::

    python delay_line.py INTERFACE INTERFACE SECONDS QUEUE_BYTES

It says "ready" and then relays whole Ethernet frames both ways, until its standard input closes. Frames keep their
offload header, so that large TCP segments and checksums that nobody has filled in yet pass as they are. Frames that
would hold more than QUEUE_BYTES in one direction are dropped, as a real line does.
"""

from __future__ import annotations

import contextlib
import selectors
import socket
import sys
import time
from collections import deque

_EVERY_PROTOCOL = 0x0003
_SOL_PACKET = 263
_PACKET_VNET_HDR = 15
_PACKET_IGNORE_OUTGOING = 23
_FRAME_BYTES = 1 << 17
_BUFFER_BYTES = 8 << 20
_FRAMES_AT_ONCE = 64


class Direction:
    """Frames on their way from one interface to another, oldest first.

    Args:
        source: packet socket they come from.
        sink: packet socket they leave by.
        delay_s: how long each is held.
        queue_bytes: what is held at most.
    """

    def __init__(self, source: socket.socket, sink: socket.socket, delay_s: float, queue_bytes: int) -> None:
        self._source = source
        self._sink = sink
        self._delay_s = delay_s
        self._free_bytes = queue_bytes
        self._held: deque[tuple[float, bytes]] = deque()

    def take(self, now: float) -> None:
        """Takes what has arrived, as far as there is room."""
        for _ in range(_FRAMES_AT_ONCE):
            try:
                frame = self._source.recv(_FRAME_BYTES)
            except BlockingIOError:
                return
            if len(frame) <= self._free_bytes:
                self._free_bytes -= len(frame)
                self._held.append((now + self._delay_s, frame))

    def give(self, now: float) -> float | None:
        """Sends what has waited long enough; returns when the next is due, None where nothing waits."""
        while self._held and self._held[0][0] <= now:
            _, frame = self._held.popleft()
            self._free_bytes += len(frame)
            # A line that is down, or whose queue is full, loses frames.
            with contextlib.suppress(OSError):
                self._sink.send(frame)
        return self._held[0][0] if self._held else None


def _open(interface: str) -> socket.socket:
    opened = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
    opened.setsockopt(_SOL_PACKET, _PACKET_VNET_HDR, 1)
    opened.setsockopt(_SOL_PACKET, _PACKET_IGNORE_OUTGOING, 1)
    opened.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER_BYTES)
    opened.bind((interface, _EVERY_PROTOCOL))
    opened.setblocking(False)
    return opened


def relay(one: str, other: str, delay_s: float, queue_bytes: int) -> None:
    """Relays between two interfaces until standard input closes."""
    with _open(one) as near, _open(other) as far, selectors.DefaultSelector() as selector:
        directions = (Direction(near, far, delay_s, queue_bytes), Direction(far, near, delay_s, queue_bytes))
        selector.register(near, selectors.EVENT_READ, directions[0])
        selector.register(far, selectors.EVENT_READ, directions[1])
        selector.register(sys.stdin, selectors.EVENT_READ)
        sys.stdout.write("ready\n")
        sys.stdout.flush()
        while True:
            now = time.monotonic()
            due = [when for direction in directions if (when := direction.give(now)) is not None]
            for key, _ in selector.select(max(0.0, min(due) - now) if due else None):
                if key.data is None:
                    return
                # A frame that arrives on a line that was cut meanwhile is an error of the socket; the line stays.
                with contextlib.suppress(OSError):
                    key.data.take(time.monotonic())


if __name__ == "__main__":
    relay(sys.argv[1], sys.argv[2], float(sys.argv[3]), int(sys.argv[4]))
