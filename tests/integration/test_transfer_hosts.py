"""Transfers between hosts (network namespaces): lines that lose, crawl, take long, break and heal; peers that end."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from penstock.testing.hosts import Network, unavailable
from puppet import Puppet, PuppetError

pytestmark = pytest.mark.hosts

SIZE = 1 << 20
LARGE = 16 << 20  # more than a kernel keeps of what a process has sent, and delivers after its death
# How long a silent peer is borne, and by when its loss must be known: beside it, a busy machine's time.
PEER_TIMEOUT_S = 1.5
KNOWN_S = PEER_TIMEOUT_S + 5


class Pair:
    """Two agents on two hosts: the initiator can write "w" and read "r" all of the target's memory."""

    def __init__(self, network: Network) -> None:
        self.network = network
        self.hosts = network.hosts
        options: dict[str, Any] = {"peer_timeout_s": PEER_TIMEOUT_S}
        self.initiator, self.target = (
            Puppet(name, host, network=host.address, **options)
            for name, host in zip(("initiator", "target"), network.hosts, strict=True)
        )

    def meet(self, nbytes: int = SIZE) -> None:
        self.target.call("allocate", key="kv", nbytes=nbytes)
        self.descriptors = self.target.call("register", key="kv")
        self.initiator.call("allocate", key="a", nbytes=nbytes)
        self.initiator.call("register", key="a")
        self.initiator.call("add_peer", blob=self.target.call("metadata"))
        self.target.call("add_peer", blob=self.initiator.call("metadata"))
        self.nbytes = nbytes
        self.prepare()
        self.check()

    def prepare(self) -> None:
        for key, operation in (("w", "WRITE"), ("r", "READ")):
            self.initiator.call(
                "prepare",
                key=key,
                operation=operation,
                peer="target",
                local=[["a", 0, self.nbytes]],
                remote=self.descriptors,
            )

    def move(self, key: str, patience_s: float = 25.0) -> str:
        self.initiator.call("post", key=key)
        return self.initiator.call("wait", key=key, timeout_s=patience_s)

    def check(self, seed: int = 1) -> None:
        """Bytes go there and back, and a word with them."""
        self.initiator.call("fill", key="a", seed=seed)
        assert self.move("w") == "DONE"
        assert self.target.call("wrong", key="kv", seed=seed) == 0
        self.target.call("fill", key="kv", seed=seed + 100)
        assert self.move("r") == "DONE"
        assert self.initiator.call("wrong", key="a", seed=seed + 100) == 0
        self.initiator.call("notify", peer="target", message=b"%d" % seed)
        assert self.target.call("wait_notification", timeout_s=20) == [["initiator", b"%d" % seed]]

    def mend(self) -> None:
        """The line is whole, and memory registered."""
        self.network.lose(0)
        self.network.heal()
        for host in self.hosts:
            host.plug()
            host.slow(None)
            host.delay(0)

    def register_again(self) -> None:
        self.descriptors = self.target.call("register", key="kv")
        self.initiator.call("add_peer", blob=self.target.call("metadata"))

    def connect_again(self) -> None:
        self.initiator.call("connect", peer="target", timeout_s=5.0)
        self.prepare()

    def recover(self) -> None:
        """Connects anew until bytes move again. The first connection after a break may still meet the old one's end."""
        deadline = time.monotonic() + 20
        while True:
            try:
                self.connect_again()
                self.target.call("notifications")
                self.check(int(time.monotonic()) % 100)
                return
            except PuppetError as error:
                if error.kind not in ("PeerLost", "PeerUnreachable") or time.monotonic() > deadline:
                    raise

    def lost(self) -> str:
        """Why the initiator takes the target for lost, which it must by now."""
        self.initiator.call("wait_lost", peer="target", timeout_s=KNOWN_S)
        return self.initiator.call("peer", name="target")["lost"]


@contextmanager
def made(nbytes: int = SIZE) -> Iterator[Pair]:
    with Network(2) as network:
        pair = Pair(network)
        with pair.initiator, pair.target:
            pair.meet(nbytes)
            yield pair
            pair.mend()


@pytest.fixture(scope="module")
def lasting() -> Iterator[Pair]:
    """Both processes outlive every test that asks for this."""
    if reason := unavailable():
        pytest.skip(reason)
    with made() as pair:
        yield pair


@pytest.fixture
def pair(lasting: Pair) -> Iterator[Pair]:
    """Two agents whose line is whole again after the test, and who then still move bytes."""
    yield lasting
    lasting.mend()
    lasting.recover()


@pytest.fixture
def mortal() -> Iterator[Pair]:
    """Two agents for one test."""
    with made() as pair:
        yield pair


@pytest.fixture
def mortal_in_long() -> Iterator[Pair]:
    """Two agents for one test, whose transfers take long."""
    with made(LARGE) as pair:
        yield pair


def failure(pair: Pair, key: str) -> str:
    with pytest.raises(PuppetError) as caught:
        pair.initiator.call("wait", key=key, timeout_s=KNOWN_S)
    return caught.value.kind


def test_hosts_do_not_share_memory(pair: Pair) -> None:
    assert pair.initiator.call("peer", name="target") == {"connected": True, "lost": None, "transport": "ucx:tcp/eth0"}


def test_what_a_lossy_line_drops_comes_again(pair: Pair) -> None:
    pair.network.lose(0.03)  # of 10 % five in a row come so often that TCP waits for longer than a silent peer is borne
    for seed in range(2, 6):
        pair.check(seed)
    assert pair.initiator.call("peer", name="target")["lost"] is None


def test_a_slow_line_is_waited_for(pair: Pair) -> None:
    pair.hosts[1].slow(1 << 20)
    started = time.monotonic()
    pair.check(2)
    assert time.monotonic() - started > 1.2  # it did carry two times 1 MiB
    assert pair.initiator.call("peer", name="target")["lost"] is None


def test_a_long_line_delivers(pair: Pair) -> None:
    pair.hosts[1].delay(0.03)
    started = time.monotonic()
    pair.check(2)
    assert time.monotonic() - started > 0.2


def test_a_deadline_ends_a_transfer_that_the_line_does_not(pair: Pair) -> None:
    pair.initiator.call(
        "prepare", key="hasty", operation="WRITE", peer="target", local=[["a", 0, SIZE]], remote=pair.descriptors,
        timeout_s=0.3,
    )  # fmt: skip
    pair.hosts[1].slow(1 << 20)
    started = time.monotonic()
    pair.initiator.call("post", key="hasty")
    assert failure(pair, "hasty") == "DeadlineExceeded"
    assert 0.25 < time.monotonic() - started < 5
    pair.hosts[1].slow(None)
    pair.check(3)


@pytest.mark.parametrize(
    ("cause", "key"), [("cut", "w"), ("partition", "r"), ("one way", "w"), ("other way", "w"), ("one way", "r")]
)
def test_a_line_that_breaks_fails_what_is_under_way(pair: Pair, cause: str, key: str) -> None:
    one, other = pair.hosts
    pair.hosts[1].slow(1 << 20)
    pair.initiator.call("post", key=key)  # a second's work
    started = time.monotonic()
    if cause == "cut":
        other.unplug()
    else:
        ends = ([other], [one]) if cause == "other way" else ([one], [other])
        pair.network.partition(*ends, one_way=cause != "partition")
    assert failure(pair, key) == "PeerLost"
    assert time.monotonic() - started < KNOWN_S
    assert pair.lost()
    # The owner's memory is its own again: nobody is in it.
    pair.target.call("deregister", key="kv", timeout_s=KNOWN_S)
    pair.mend()
    pair.target.call("poison", key="kv")
    assert pair.target.call("touched", key="kv", for_s=0.3) == 0
    pair.register_again()


@pytest.mark.parametrize("cause", ["cut", "partition"])
def test_silence_is_noticed_in_time_and_healed_by_connecting_again(pair: Pair, cause: str) -> None:
    one, other = pair.hosts
    if cause == "cut":
        other.unplug()
    else:
        pair.network.partition([one], [other])
    started = time.monotonic()
    assert "nothing was heard" in pair.lost()
    took_s = time.monotonic() - started
    assert PEER_TIMEOUT_S / 2 < took_s < KNOWN_S
    with pytest.raises(PuppetError) as caught:
        pair.initiator.call("connect", peer="target", timeout_s=0.5)
    assert caught.value.kind == "PeerUnreachable"
    other.plug()
    pair.network.heal()
    pair.recover()


def test_a_short_silence_is_borne(pair: Pair) -> None:
    one, other = pair.hosts
    pair.network.partition([one], [other])
    pair.initiator.call("post", key="w")
    time.sleep(PEER_TIMEOUT_S / 3)
    pair.network.heal()
    assert pair.initiator.call("wait", key="w", timeout_s=20) == "DONE"
    pair.check(2)


@pytest.mark.parametrize("key", ["w", "r"])
def test_a_peer_killed_in_the_middle(mortal_in_long: Pair, key: str) -> None:
    pair = mortal_in_long
    pair.hosts[1].slow(1 << 20)
    pair.initiator.call("post", key=key)
    pair.target.kill()
    assert failure(pair, key) == "PeerLost"
    assert pair.lost()


def test_an_initiator_killed_in_the_middle_gives_the_memory_back(mortal: Pair) -> None:
    mortal.hosts[1].slow(1 << 20)
    mortal.initiator.call("post", key="w")
    mortal.initiator.kill()
    mortal.target.call("deregister", key="kv", timeout_s=KNOWN_S)
    mortal.hosts[1].slow(None)
    mortal.target.call("poison", key="kv")
    assert mortal.target.call("touched", key="kv", for_s=1.0) == 0


@pytest.mark.parametrize("key", ["w", "r"])
def test_a_peer_that_stops_is_lost_and_found_again(pair: Pair, key: str) -> None:
    pair.target.stop()
    pair.initiator.call("post", key=key)
    assert failure(pair, key) == "PeerLost"
    pair.target.go_on()
    pair.recover()


def test_a_stopped_initiator_holds_memory_no_longer_than_it_is_borne(pair: Pair) -> None:
    pair.hosts[1].slow(1 << 20)
    pair.initiator.call("post", key="w")
    pair.initiator.stop()
    try:
        pair.target.call("deregister", key="kv", timeout_s=2 * KNOWN_S)
    except PuppetError as error:
        # UCX sometimes keeps what is under way until the stopped process says something. Then so do we.
        assert error.kind == "DeadlineExceeded"
        pair.target.call("run", code="acts.registrations.clear(); acts.memory.clear(); acts.held.clear()")
        pair.target.call("allocate", key="kv", nbytes=SIZE)
    pair.hosts[1].slow(None)
    pair.target.call("poison", key="kv")
    pair.initiator.go_on()
    assert pair.target.call("touched", key="kv", for_s=0.3) == 0
    try:  # all of it may have been on its way already
        assert pair.initiator.call("wait", key="w", timeout_s=KNOWN_S) == "DONE"
    except PuppetError as error:
        assert error.kind in ("PeerLost", "StaleDescriptor")
    pair.register_again()


def test_stale_descriptors_are_refused_by_their_owner(pair: Pair) -> None:
    pair.target.call("renew", key="kv")
    for key in ("w", "r"):
        pair.initiator.call("post", key=key)
        assert failure(pair, key) == "StaleDescriptor"
    pair.initiator.call("add_peer", blob=pair.target.call("metadata"))
    with pytest.raises(PuppetError) as caught:
        pair.prepare()
    assert caught.value.kind in ("StaleDescriptor", "NotRegistered")
    pair.descriptors = pair.target.call("run", code="return acts.registrations['kv'].descriptors.to_bytes()")


def test_a_host_that_comes_back_under_its_name_is_another(mortal: Pair) -> None:
    mortal.target.kill()
    assert mortal.lost()
    host = mortal.hosts[1]
    with Puppet("target", host, network=host.address) as again:
        again.call("allocate", key="kv", nbytes=SIZE)
        descriptors = again.call("register", key="kv")
        mortal.initiator.call("add_peer", blob=again.call("metadata"))
        mortal.initiator.call("post", key="w")
        assert failure(mortal, "w") == "PeerLost"
        with pytest.raises(PuppetError):
            mortal.prepare()
        mortal.target, mortal.descriptors = again, descriptors
        again.call("add_peer", blob=mortal.initiator.call("metadata"))
        mortal.prepare()
        mortal.check(7)
