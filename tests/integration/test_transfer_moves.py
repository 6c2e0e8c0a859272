"""Transfers and notifications between agents on one host: which bytes move, in which order, and what is refused."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from penstock.errors import ClosedError, ConfigError, NotRegistered, TransferActive, UnknownPeer
from penstock.transfer import Agent, Descriptors, Transfer
from puppet import Puppet, ready

SIZE = 4096


class Side:
    """An agent of this process with memory: a region, which others map, or memory of the user's."""

    def __init__(self, name: str, shared: bool, size: int = SIZE) -> None:
        self.agent = Agent(name)
        self.region = self.agent.allocate(size) if shared else np.zeros(size, np.uint8)
        self.bytes = np.asarray(self.region).view(np.uint8)
        self.registration = self.agent.register(self.region)

    def cut(self, ranges: list[tuple[int, int]]) -> list[np.ndarray]:
        return [self.bytes[begin:end] for begin, end in ranges]

    def described(self, ranges: list[tuple[int, int]]) -> Descriptors:
        return Descriptors.from_bytes(self.agent.descriptors(self.cut(ranges)).to_bytes())


@pytest.fixture(params=["region to region", "region to user's", "user's to region", "user's to user's"])
def pair(request: pytest.FixtureRequest) -> Iterator[tuple[Side, Side]]:
    """Two agents in this process that know each other."""
    ours, theirs = request.param.split(" to ")
    one, other = Side("one", ours == "region"), Side("other", theirs == "region")
    with one.agent, other.agent:
        one.agent.add_peer(other.agent.metadata())
        other.agent.add_peer(one.agent.metadata())
        yield one, other


def prepared(pair: tuple[Side, Side], local: list[tuple[int, int]], remote: list[tuple[int, int]]):
    one, other = pair
    return one.agent.prepare(one.cut(local)), one.agent.peers["other"].prepare(other.described(remote))


@st.composite
def moves(draw: st.DrawFn) -> list[tuple[int, int, int]]:
    """(local, remote, length) with disjoint targets on both sides, in any order, with gaps and neighbours."""
    lengths = draw(st.lists(st.integers(1, 300), min_size=1, max_size=8))
    begins = []
    for _ in range(2):
        order = draw(st.permutations(range(len(lengths))))
        at, found = 0, [0] * len(lengths)
        for index in order:
            at += draw(st.sampled_from([0, 0, 1, 7, 64]))
            found[index] = at
            at += lengths[index]
        begins.append(found)
    return list(zip(*begins, lengths, strict=True))


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(moves=moves(), write=st.booleans(), merge=st.booleans(), seed=st.integers(0, 2**32))
def test_exactly_the_bytes_that_were_named_move(
    pair: tuple[Side, Side], moves: list[tuple[int, int, int]], write: bool, merge: bool, seed: int
) -> None:
    one, other = pair
    random = np.random.default_rng(seed)
    one.bytes[:], other.bytes[:] = random.integers(0, 256, (2, SIZE), np.uint8)
    ours, theirs = one.bytes.copy(), other.bytes.copy()
    for local, remote, length in moves:
        if write:
            theirs[remote : remote + length] = one.bytes[local : local + length]
        else:
            ours[local : local + length] = other.bytes[remote : remote + length]
    local = [(local, local + length) for local, _, length in moves]
    remote = [(remote, remote + length) for _, remote, length in moves]
    transfer = one.agent.transfer("WRITE" if write else "READ", *prepared(pair, local, remote), merge=merge)
    assert transfer.post() == "DONE"
    assert transfer.total_bytes == sum(length for *_, length in moves)
    assert merge or transfer.descriptor_count == len(moves)
    np.testing.assert_array_equal(one.bytes, ours)
    np.testing.assert_array_equal(other.bytes, theirs)


def test_what_is_not_registered_or_not_known_yet_is_refused_until_it_is(pair: tuple[Side, Side]) -> None:
    one, other = pair
    peer = one.agent.peers["other"]
    late = other.agent.allocate(100)
    address = np.asarray(late).ctypes.data
    with pytest.raises(NotRegistered):
        one.agent.prepare([np.zeros(10, np.uint8)])
    with pytest.raises(NotRegistered):
        peer.prepare([(address, 100)])
    with other.agent.register(late) as registration:
        with pytest.raises(NotRegistered, match="newest metadata"):
            peer.prepare(registration.descriptors)
        assert one.agent.add_peer(other.agent.metadata([registration])) is peer  # a part of what there is
        one.bytes[:] = 7
        transfer = one.agent.write(one.agent.prepare([one.bytes[:100]]), peer.prepare(registration.descriptors))
        assert transfer.state == "DONE"
        assert (np.asarray(late).view(np.uint8) == 7).all()
        # What was known before still is; a range that begins in one registration and ends beyond it isn't.
        peer.prepare(other.described([(0, SIZE)]))
        with pytest.raises(NotRegistered):
            peer.prepare([(address, 101)])


def test_sides_that_do_not_fit_are_refused(pair: tuple[Side, Side]) -> None:
    one, _ = pair
    local, remote = prepared(pair, [(0, 10), (20, 30)], [(0, 10), (20, 30)])
    longer = prepared(pair, [(0, 10), (20, 31)], [(0, 10)])[0]
    for ours, theirs, options in [
        (local, remote, {"local_indices": [0]}),
        (local, remote, {"local_indices": [0, 1], "remote_indices": [0]}),
        (local, remote, {"local_indices": [0, 2], "remote_indices": [0, 1]}),
        (local, remote, {"local_indices": [0, -1], "remote_indices": [0, 1]}),
        (local, remote, {"local_indices": [], "remote_indices": []}),
        (local, remote, {"local_indices": [0.5], "remote_indices": [0]}),
        (local, remote, {"remote_indices": [2**32], "local_indices": [0]}),
        (longer, remote, {}),
        (remote, local, {}),
        (local, local, {}),
        (remote, remote, {}),
    ]:
        with pytest.raises(ConfigError):
            one.agent.transfer("WRITE", ours, theirs, **options)
    with pytest.raises(ConfigError, match="MOVE"):
        one.agent.transfer("MOVE", local, remote)
    with pytest.raises(ConfigError, match="list as the remote side; give what peer.prepare"):
        one.agent.transfer("WRITE", local, [(1, 2, 0)])  # type: ignore[arg-type]


def test_indices_pair_what_they_name(pair: tuple[Side, Side]) -> None:
    one, other = pair
    one.bytes[:20] = np.arange(20)
    other.bytes[:] = 0
    local, remote = prepared(pair, [(0, 10), (10, 20)], [(0, 10), (10, 20)])
    one.agent.write(local, remote, local_indices=[0, 1], remote_indices=[1, 0]).wait()
    assert other.bytes[:20].tolist() == [*range(10, 20), *range(10)]
    one.agent.write(local, remote, local_indices=[0, 0], remote_indices=np.array([1, 0], np.int8)).wait()
    assert other.bytes[:20].tolist() == [*range(10), *range(10)]


def test_the_life_of_a_transfer(pair: tuple[Side, Side]) -> None:
    one, other = pair
    local, remote = prepared(pair, [(0, SIZE)], [(0, SIZE)])
    transfer = one.agent.transfer("WRITE", local, remote)
    assert (transfer.state, transfer.done, transfer.error) == ("IDLE", False, None)
    with pytest.raises(ClosedError, match="post"):
        transfer.wait(0.1)
    for turn in range(300):
        one.bytes[:] = turn % 251
        assert transfer.post() == transfer.state == transfer.poll() == "DONE"
        transfer.wait()
        assert other.bytes[0] == other.bytes[-1] == turn % 251
    assert (transfer.state, transfer.done, transfer.error) == ("DONE", True, None)
    transfer.close()
    transfer.close()
    for use in (transfer.post, transfer.poll, transfer.wait, lambda: transfer.state, lambda: transfer.total_bytes):
        with pytest.raises(ClosedError, match="closed"):
            use()


def test_a_transfer_that_runs_is_neither_posted_again_nor_closed() -> None:
    one, other = Side("one", True, 64 << 20), Side("other", True, 64 << 20)
    with one.agent, other.agent:
        one.agent.add_peer(other.agent.metadata())
        local, remote = prepared((one, other), [(0, 64 << 20)], [(0, 64 << 20)])
        refused = set()

        def meddle(transfer: Transfer, what: str) -> None:
            while transfer.state == "IDLE":
                pass
            with contextlib.suppress(TransferActive):
                getattr(transfer, what)()
                return
            refused.add(what)

        for turn in range(200):
            transfer = one.agent.transfer("WRITE", local, remote)
            thread = threading.Thread(target=meddle, args=(transfer, ("post", "close")[turn % 2]))
            thread.start()
            transfer.post()
            thread.join()
            if len(refused) == 2:
                break
        assert refused == {"post", "close"}


def test_what_a_notification_announces_is_there() -> None:
    """The target looks at the data as soon as it has the notification, thousands of times."""
    with Puppet("target") as target, Puppet("initiator") as initiator:
        ready(initiator, target)
        target.call("add_peer", blob=initiator.call("metadata"))
        looking = target.begin(
            "run",
            code="""
memory, seen, wrong = acts.memory["kv"], 0, 0
while seen < 3000:
    for one in agent.wait_notification(20):
        number = int(one.message)
        wrong += number != seen or memory[0] != number % 251 or memory[-1] != number % 251
        seen += 1
        agent.notify("initiator", one.message)
return wrong""",
        )
        wrong_echoes = initiator.call(
            "run",
            code="""
memory, transfer, wrong = acts.memory["a"], acts.transfers["t"], 0
for number in range(3000):
    memory[:] = number % 251
    assert transfer.post(str(number).encode()) == "DONE"
    wrong += [one.message for one in agent.wait_notification(20)] != [str(number).encode()]
return wrong""",
        )
        assert target.result(looking) == 0
        assert wrong_echoes == 0


def test_a_repost_says_the_same_again_unless_it_is_told_otherwise(pair: tuple[Side, Side]) -> None:
    one, other = pair
    transfer = one.agent.transfer("WRITE", *prepared(pair, [(0, 9)], [(0, 9)]), notify=b"first")
    transfer.post()
    transfer.post()
    transfer.post(b"second")
    transfer.post()
    one.agent.write(*prepared(pair, [(0, 9)], [(0, 9)]))  # tells nobody
    transfer.post(b"")
    assert [each.message for each in other.agent.notifications()] == [b"first", b"first", b"second", b"second", b""]
    assert other.agent.notifications() == []


@pytest.mark.parametrize("wait", [False, True])
def test_messages_arrive_whole_in_order_and_once(wait: bool) -> None:
    """Three senders at once, with payloads from nothing to 64 KiB, through rings that are often full."""
    sizes = [0, 1, 3, 4, 5, 1000, 65536, 131072]
    sending = """
sizes = {sizes}
for number in range(200):
    body = b"\\0%d\\0" % number + b"\\xff" * sizes[number % len(sizes)]
    agent.notify("target", body[:131072], timeout_s=20)
"""
    with Puppet("target") as target, Puppet("a") as a, Puppet("b") as b, Puppet("c") as c:
        blob = target.call("metadata")
        running = []
        for sender in (a, b, c):
            sender.call("add_peer", blob=blob)
            running.append((sender, sender.begin("run", code=sending.format(sizes=sizes))))
        take = "agent.wait_notification(20)" if wait else "agent.notifications()"
        answer = target.call(
            "run",
            code=f"""
sizes, heard, wrong = {sizes}, dict(a=0, b=0, c=0), []
deadline = time.monotonic() + 25
while min(heard.values()) < 200 and time.monotonic() < deadline:
    for sender, message in {take}:
        number = heard[sender]
        if message != (b"\\0%d\\0" % number + b"\\xff" * sizes[number % len(sizes)])[:131072]:
            wrong.append((sender, number))
        heard[sender] += 1
time.sleep(0.05)
return heard, wrong, len(agent.notifications())""",
        )
        assert answer == [{"a": 200, "b": 200, "c": 200}, [], 0]
        for sender, future in running:
            sender.result(future)


def test_messages_that_can_not_be_sent_are_refused(pair: tuple[Side, Side]) -> None:
    one, other = pair
    with pytest.raises(UnknownPeer, match="nobody"):
        one.agent.notify("nobody", b"x")
    with pytest.raises(ConfigError, match="at most"):
        one.agent.notify("other", bytes((128 << 10) + 1))
    with pytest.raises(ConfigError, match=r"type str; give bytes"):
        one.agent.notify("other", "text")  # type: ignore[arg-type]
    local, remote = prepared(pair, [(0, 10)], [(0, 10)])
    with pytest.raises(ConfigError, match=r"type str; give bytes"):
        one.agent.write(local, remote, notify="text")
    transfer = one.agent.transfer("WRITE", local, remote)
    with pytest.raises(ConfigError, match=r"type bytearray; give bytes"):
        transfer.post(bytearray(b"x"))  # type: ignore[arg-type]
    assert transfer.state == "IDLE"
    one.agent.notify("other", b"after")
    assert [each.message for each in other.agent.notifications()] == [b"after"]
