"""NIXL's transfers between two processes: which bytes move, when, and what is refused.

Names with a number are of the behaviours that a NIXL program counts on, in the order of their list.
"""

import time

import numpy as np
import pytest

from nixl_target import agent_with
from penstock.compat.nixl.errors import (
    nixlBackendError,
    nixlInvalidParamError,
    nixlNoTelemetryError,
    nixlNotFoundError,
    nixlNotPostedError,
    nixlRemoteDisconnectError,
    nixlRepostActiveError,
)
from penstock.errors import PeerLost, StaleDescriptor

SIZE = 4096


class Side:
    """Our end: an agent with one registered buffer, that knows the target and is known there."""

    def __init__(self, other, size=SIZE, params=None, **config):
        self.agent = agent_with("initiator", params or {}, config)
        self.buffer = np.random.default_rng(0).integers(0, 256, size, np.uint8)
        self.agent.register_memory([(self.address, size, 0, "")], "DRAM")
        self.other = other
        self.base = other.agent("target", size, params)[0]
        self.registered = other("register_memory", [(self.base, size, 0, "")], "DRAM")
        other("add_remote_agent", self.agent.get_agent_metadata())
        assert self.agent.add_remote_agent(other("get_agent_metadata")) == b"target"

    @property
    def address(self):
        return self.buffer.ctypes.data

    def rows(self, *parts):
        """(offset, length) of our buffer."""
        return [(self.address + offset, length, 0) for offset, length in parts]

    def theirs(self, *parts):
        return [(self.base + offset, length, 0) for offset, length in parts]

    def handle(self, operation, ours, theirs, **options):
        return self.agent.initialize_xfer(operation, self.rows(*ours), self.theirs(*theirs), "target", **options)

    def prepared(self, ours, theirs):
        local = self.agent.prep_xfer_dlist("NIXL_INIT_AGENT", self.rows(*ours), "DRAM")
        return local, self.agent.prep_xfer_dlist("target", self.theirs(*theirs), "DRAM")


@pytest.fixture
def side(other):
    side = Side(other)
    yield side
    side.agent.close()


def done(agent, handle):
    """Posted and waited for, as programs do."""
    state = agent.transfer(handle)
    until = time.monotonic() + 10
    while state == "PROC":
        assert time.monotonic() < until
        state = agent.check_xfer_state(handle)
    return state


def test_094_write_moves_local_bytes_to_remote_ones_and_no_other(side):
    assert done(side.agent, side.handle("WRITE", [(10, 100), (500, 7)], [(1000, 100), (2000, 7)])) == "DONE"
    expected = np.zeros(SIZE, np.uint8)
    expected[1000:1100] = side.buffer[10:110]
    expected[2000:2007] = side.buffer[500:507]
    assert side.other.read() == expected.tobytes()


def test_094_read_moves_remote_bytes_to_local_ones_and_no_other(side):
    content = bytes(range(256)) * (SIZE // 256)
    side.other.write(content)
    expected = side.buffer.copy()
    expected[300:400] = np.frombuffer(content, np.uint8)[5:105]
    assert done(side.agent, side.handle("READ", [(300, 100)], [(5, 100)])) == "DONE"
    assert side.buffer.tobytes() == expected.tobytes()
    assert side.other.read() == content


@pytest.mark.parametrize("form", ["tuples", "lists", "arrays"])
def test_094_descriptors_may_be_given_in_any_form(side, form):
    ours, theirs = side.rows((0, 64), (64, 64)), side.theirs((64, 64), (0, 64))
    if form != "tuples":
        if form == "arrays":
            ours, theirs = np.array(ours, np.uint64), np.array(theirs, np.int64)
        ours, theirs = side.agent.get_xfer_descs(ours, "DRAM"), side.agent.get_xfer_descs(theirs, "DRAM")
    assert done(side.agent, side.agent.initialize_xfer("WRITE", ours, theirs, "target")) == "DONE"
    assert side.other.read()[:128] == side.buffer[64:128].tobytes() + side.buffer[:64].tobytes()


def test_094_a_list_that_the_other_side_made_and_sent_is_taken(side):
    blob = side.other("get_serialized_descs", side.registered.trim())
    theirs = side.agent.deserialize_descs(blob)
    handle = side.agent.initialize_xfer(
        "WRITE", side.agent.get_xfer_descs(side.rows((0, SIZE)), "DRAM"), theirs, "target"
    )
    assert done(side.agent, handle) == "DONE"
    assert side.other.read() == side.buffer.tobytes()


def test_096_memory_that_is_not_registered_is_not_found(side):
    for offset, length in ((SIZE, 8), (SIZE - 4, 8), (-8, 8)):
        with pytest.raises(nixlNotFoundError):
            side.handle("WRITE", [(0, length)], [(offset, length)])
        with pytest.raises(nixlNotFoundError):
            side.handle("WRITE", [(offset, length)], [(0, length)])
        with pytest.raises(nixlNotFoundError):
            side.agent.prep_xfer_dlist("target", side.theirs((offset, length)), "DRAM")
        with pytest.raises(nixlNotFoundError):
            side.agent.prep_xfer_dlist("", side.rows((offset, length)), "DRAM")
    with pytest.raises(nixlNotFoundError):
        side.agent.initialize_xfer("WRITE", side.rows((0, 8)), side.theirs((0, 8)), "nobody")


def test_097_counts_and_lengths_that_differ_are_refused(side):
    for theirs in ([(0, 64)], [(0, 64), (64, 63)], [(0, 64), (64, 64), (128, 64)]):
        with pytest.raises(nixlInvalidParamError):
            side.handle("WRITE", [(0, 64), (64, 64)], theirs)
    with pytest.raises(nixlInvalidParamError):  # checked before the name
        side.agent.initialize_xfer("WRITE", side.rows((0, 64)), side.theirs((0, 63)), "nobody")
    empty = side.agent.get_xfer_descs(side.rows((0, 64)), "DRAM")
    empty.clear()
    with pytest.raises(nixlInvalidParamError):
        side.agent.initialize_xfer("WRITE", empty, empty, "target")


BAD_INDICES = [
    ([2], [0]),
    ([0], [2]),
    ([-1], [0]),
    ([0], [-1]),
    ([], []),
    ([0, 1], [0]),
    ([0], [1]),  # lengths differ
    ([0.0], [0]),
    (["0"], [0]),
    (np.zeros((1, 1), np.int32), [0]),
    ([2**32], [0]),
    (np.array([0], np.float32), [0]),
]


@pytest.mark.parametrize(("ours", "theirs"), BAD_INDICES, ids=repr)
def test_097_indices_that_do_not_fit_are_refused(side, ours, theirs):
    local, remote = side.prepared([(0, 64), (64, 64)], [(0, 64), (64, 32)])
    with pytest.raises(nixlInvalidParamError):
        side.agent.make_prepped_xfer("WRITE", local, ours, remote, theirs)


def test_097_sides_that_are_exchanged_are_refused(side):
    local, remote = side.prepared([(0, 64)], [(0, 64)])
    for first, second in ((remote, local), (local, local), (remote, remote)):
        with pytest.raises(nixlInvalidParamError, match="local side"):
            side.agent.make_prepped_xfer("WRITE", first, [0], second, [0])


@pytest.mark.parametrize("merge", [True, False])
@pytest.mark.parametrize("dtype", [list, np.int32, np.uint32, np.int64])
def test_098_local_index_i_goes_with_remote_index_i(side, dtype, merge):
    parts = [(0, 64), (64, 64), (128, 64)]
    local, remote = side.prepared(parts, parts)
    ours, theirs = ([0, 1, 2], [1, 0, 2])
    if dtype is not list:
        ours, theirs = np.array(ours, dtype), np.array(theirs, dtype)
    handle = side.agent.make_prepped_xfer("WRITE", local, ours, remote, theirs, skip_desc_merge=not merge)
    assert done(side.agent, handle) == "DONE"
    assert handle.transfer.descriptor_count == 3  # no two are neighbours on both sides
    in_order = side.agent.make_prepped_xfer("WRITE", local, [0, 1], remote, [0, 1], skip_desc_merge=not merge)
    assert in_order.transfer.descriptor_count == (1 if merge else 2)
    expected = np.concatenate([side.buffer[64:128], side.buffer[:64], side.buffer[128:192]])
    assert side.other.read()[:192] == expected.tobytes()


def test_098_our_own_name_is_the_remote_side_of_ourselves(side):
    local = side.agent.prep_xfer_dlist("", side.rows((0, 64)), "DRAM")
    remote = side.agent.prep_xfer_dlist("initiator", side.rows((2048, 64)), "DRAM")
    handle = side.agent.make_prepped_xfer("WRITE", local, [0], remote, [0], b"to myself")
    assert done(side.agent, handle) == "DONE"
    assert side.buffer[2048:2112].tobytes() == side.buffer[:64].tobytes()
    assert side.agent.check_remote_xfer_done("initiator", b"to myself")


def test_099_the_state_is_idle_before_the_first_post_and_done_stays_done(side):
    handle = side.handle("WRITE", [(0, 64)], [(0, 64)])
    assert side.agent.check_xfer_state(handle) == "IDLE"
    assert side.agent.transfer(handle) in ("PROC", "DONE")
    assert done(side.agent, handle) == "DONE"
    assert [side.agent.check_xfer_state(handle) for _ in range(3)] == ["DONE"] * 3
    assert handle.error is None


def test_100_a_transfer_may_be_posted_again_and_moves_what_is_there_then(side):
    handle = side.handle("WRITE", [(0, 8)], [(0, 8)])
    for number in range(200):
        side.buffer[:8] = np.frombuffer(number.to_bytes(8, "little"), np.uint8)
        assert done(side.agent, handle) == "DONE"
    assert int.from_bytes(side.other.read()[:8], "little") == 199


NETWORK = {"ucx_devices": "loopback", "require": "tcp"}


@pytest.fixture
def distant(other):
    """Both sides as if on two hosts: over the network plane, where a transfer takes its time."""
    try:
        side = Side(other, size=32 << 20, params=NETWORK)
    except nixlBackendError as error:
        pytest.skip(f"no network plane here: {error}")
    yield side
    other.go_on()
    side.agent.close()


def test_094_over_a_network_bytes_move_as_well(distant):
    parts = [(0, 1 << 20), (3 << 20, 8), (5 << 20, 12345)]
    handle = distant.handle("WRITE", parts, parts, notif_msg=b"there")
    assert handle.transfer.transport.startswith("ucx:tcp")
    assert distant.agent.transfer(handle) in ("PROC", "DONE")
    until = time.monotonic() + 20
    while not distant.other("check_remote_xfer_done", "initiator", b"there"):
        assert time.monotonic() < until
    expected = np.zeros_like(distant.buffer)
    for offset, length in parts:
        expected[offset : offset + length] = distant.buffer[offset : offset + length]
    assert distant.other.read() == expected.tobytes()
    distant.buffer[:] = 0
    assert done(distant.agent, distant.handle("READ", [(7, 2 << 20)], [(0, 2 << 20)])) == "DONE"
    assert distant.buffer[7 : 7 + (2 << 20)].tobytes() == expected[: 2 << 20].tobytes()


def test_100_and_101_a_transfer_in_progress_is_not_posted_again_and_not_released(distant):
    agent = distant.agent
    handle = distant.handle("WRITE", [(0, 32 << 20)], [(0, 32 << 20)])
    agent.make_connection("target")
    distant.other.stop()  # so that it takes until we say so
    assert agent.transfer(handle) == agent.check_xfer_state(handle) == "PROC"
    with pytest.raises(nixlRepostActiveError):
        agent.transfer(handle)
    for release in (handle.release, lambda: agent.release_xfer_handle(handle)):
        with pytest.raises(nixlRepostActiveError):
            release()
    assert "released" not in repr(handle)
    distant.other.go_on()
    until = time.monotonic() + 20
    while (state := agent.check_xfer_state(handle)) == "PROC":
        assert time.monotonic() < until
    assert state == "DONE"
    assert distant.other.read() == distant.buffer.tobytes()
    assert done(agent, handle) == "DONE"
    handle.release()


def test_a_transfer_that_fails_over_a_network_says_err_as_well(distant):
    handle = distant.handle("WRITE", [(0, 64)], [(0, 64)])
    assert done(distant.agent, handle) == "DONE"
    distant.other("deregister_memory", distant.registered)
    assert done(distant.agent, handle) == "ERR"
    assert isinstance(handle.error, nixlNotFoundError)
    assert isinstance(handle.error.__cause__, StaleDescriptor)


def test_a_handle_that_is_dropped_in_progress_takes_nothing_with_it(distant):
    agent = distant.agent
    handle = distant.handle("WRITE", [(0, 32 << 20)], [(0, 32 << 20)], notif_msg=b"dropped")
    distant.other.stop()
    assert agent.transfer(handle) == "PROC"
    del handle
    distant.other.go_on()
    assert done(agent, distant.handle("WRITE", [(0, 8)], [(0, 8)])) == "DONE"


def test_101_a_handle_may_be_released_twice_and_says_so_when_it_is_used_after_that(side):
    local, remote = side.prepared([(0, 64)], [(0, 64)])
    handle = side.agent.make_prepped_xfer("WRITE", local, [0], remote, [0])
    for each, release in ((local, side.agent.release_dlist_handle), (handle, side.agent.release_xfer_handle)):
        assert "released" not in repr(each)
        release(each)
        release(each)
        each.release()
        assert "released" in repr(each)
    agent = side.agent
    for use in (agent.transfer, agent.check_xfer_state, agent.get_xfer_telemetry, agent.query_xfer_backend):
        with pytest.raises(nixlInvalidParamError, match="can't be used any more"):
            use(handle)
    with pytest.raises(nixlInvalidParamError, match="can't be used any more"):
        agent.make_prepped_xfer("WRITE", local, [0], remote, [0])


def test_101_a_transfer_outlives_the_lists_that_it_was_made_from(side):
    local, remote = side.prepared([(0, 64)], [(0, 64)])
    handle = side.agent.make_prepped_xfer("WRITE", local, [0], remote, [0])
    local.release()
    remote.release()
    del local, remote
    assert done(side.agent, handle) == "DONE"
    assert side.other.read()[:64] == side.buffer[:64].tobytes()


def test_109_nothing_is_posted_to_an_agent_that_was_removed_even_if_it_is_added_again(side):
    local, remote = side.prepared([(0, 64)], [(0, 64)])
    handle = side.agent.make_prepped_xfer("WRITE", local, [0], remote, [0])
    assert done(side.agent, handle) == "DONE"
    side.agent.remove_remote_agent("target")
    for _ in range(2):
        with pytest.raises(nixlNotFoundError):
            side.agent.transfer(handle)
        with pytest.raises(nixlNotFoundError):
            side.agent.make_prepped_xfer("WRITE", local, [0], remote, [0])
        side.agent.add_remote_agent(side.other("get_agent_metadata"))
    assert done(side.agent, side.handle("WRITE", [(0, 64)], [(64, 64)])) == "DONE"


def test_a_transfer_that_fails_says_err_and_the_handle_why(side):
    handle = side.handle("WRITE", [(0, 64)], [(0, 64)])
    assert done(side.agent, handle) == "DONE"
    side.other("deregister_memory", side.registered)
    assert side.agent.transfer(handle) == side.agent.check_xfer_state(handle) == "ERR"
    assert isinstance(handle.error, nixlNotFoundError)
    assert isinstance(handle.error.__cause__, StaleDescriptor)


def test_an_agent_that_is_gone_is_a_disconnect_and_is_forgotten():
    from nixl_target import OtherProcess

    process = OtherProcess()
    side = Side(process)
    with side.agent:
        handle = side.handle("WRITE", [(0, 64)], [(0, 64)])
        assert done(side.agent, handle) == "DONE"
        process.kill()
        until = time.monotonic() + 5
        with pytest.raises(nixlRemoteDisconnectError) as raised:
            while time.monotonic() < until:  # noticed at once, but not within this very call
                side.agent.transfer(handle)
        assert isinstance(raised.value.__cause__, PeerLost)
        assert not side.agent.check_remote_metadata("target")
        with pytest.raises(nixlNotFoundError):
            side.agent.transfer(handle)


def test_an_agent_that_is_killed_in_the_middle_of_a_transfer_is_an_error_of_it():
    from nixl_target import OtherProcess

    process = OtherProcess()
    try:
        side = Side(process, size=32 << 20, params=NETWORK)
    except nixlBackendError as error:
        process.end()
        pytest.skip(f"no network plane here: {error}")
    with side.agent:
        handle = side.handle("WRITE", [(0, 32 << 20)], [(0, 32 << 20)])
        process.stop()
        assert side.agent.transfer(handle) == "PROC"
        process.kill()
        until = time.monotonic() + 20
        while (state := side.agent.check_xfer_state(handle)) == "PROC":
            assert time.monotonic() < until
            time.sleep(0.01)
        assert state == "ERR"
        assert isinstance(handle.error, nixlRemoteDisconnectError)
        handle.release()


def test_112_telemetry_is_off_unless_it_is_asked_for(side, monkeypatch):
    handle = side.handle("WRITE", [(0, 64)], [(0, 64)])
    done(side.agent, handle)
    with pytest.raises(nixlNoTelemetryError, match="NIXL_ERR_NO_TELEMETRY"):
        side.agent.get_xfer_telemetry(handle)


@pytest.mark.parametrize(("word", "configured"), [(None, True), ("yes", False), ("1", False), ("what", True)])
def test_112_telemetry_counts_descriptors_bytes_and_time(other, monkeypatch, word, configured):
    if word is not None:
        monkeypatch.setenv("NIXL_TELEMETRY_ENABLE", word)
    side = Side(other, capture_telemetry=configured)
    with side.agent:
        handle = side.handle("WRITE", [(0, 64), (64, 64)], [(0, 64), (64, 64)])
        with pytest.raises(nixlNotPostedError):
            side.agent.get_xfer_telemetry(handle)
        for _ in range(3):
            before = time.time()
            done(side.agent, handle)
            found = side.agent.get_xfer_telemetry(handle)
            assert (found.descCount, found.totalBytes) == (2, 128)
            assert 0 <= found.postDuration <= found.xferDuration
            assert before * 1e6 - 1 <= found.startTime <= time.time() * 1e6
        handle.release()
        with pytest.raises(nixlInvalidParamError):
            side.agent.get_xfer_telemetry(handle)


def test_112_off_in_the_environment_wins_over_the_configuration(other, monkeypatch):
    monkeypatch.setenv("NIXL_TELEMETRY_ENABLE", "off")
    side = Side(other, capture_telemetry=True)
    with side.agent:
        handle = side.handle("WRITE", [(0, 64)], [(0, 64)])
        done(side.agent, handle)
        with pytest.raises(nixlNoTelemetryError):
            side.agent.get_xfer_telemetry(handle)


def test_a_handle_says_what_moves_it(side):
    handle = side.handle("WRITE", [(0, 64)], [(0, 64)])
    assert side.agent.query_xfer_backend(handle) == "UCX"
    assert handle.transfer.transport.startswith("shm")
    assert side.agent.estimate_xfer_cost(handle) == (0, 0, "UNKNOWN")
