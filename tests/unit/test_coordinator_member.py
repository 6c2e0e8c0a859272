"""A node that waits for the others says so."""

from __future__ import annotations

from penstock.coordinator.events import Register, Registered
from penstock.coordinator.member import join
from penstock.coordinator.state import Caps


class Gathering:
    """A client whose coordinator has all nodes at the third question."""

    def __init__(self) -> None:
        self.asked: list[Register] = []

    def register(self, register: Register) -> Registered:
        self.asked.append(register)
        count = len(self.asked)
        return Registered(0, 3, "ab" * 32, 1.0, 10.0, registered=count, ready=count == 3)


def test_who_waits_long_says_for_how_many(caplog):
    client = Gathering()
    assert join(client, "job", "a", Caps(), within_s=60, say_after_s=0.1).registered.ready
    assert len({register.instance for register in client.asked}) == 1
    (said,) = caplog.messages
    assert said.startswith("2 of 3 nodes registered within") and "node 'a' waits" in said


def test_who_waits_shortly_says_nothing(caplog):
    assert join(Gathering(), "job", "a", Caps(), within_s=60).registered.ready
    assert not caplog.messages
