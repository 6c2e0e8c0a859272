"""How NIXL agents in two processes learn of each other: blobs, parts of them, over sockets.

Names with a number are of the behaviours that a NIXL program counts on, in the order of their list.
"""

import numpy as np
import pytest

from penstock.compat.nixl import nixl_agent
from penstock.compat.nixl.errors import nixlMismatchError, nixlNotFoundError

SIZE = 4096


@pytest.fixture
def agent():
    with nixl_agent("here") as agent:
        yield agent


@pytest.fixture
def ours(agent):
    """Rows of our registered buffer, and the buffer."""
    buffer = np.arange(SIZE, dtype=np.uint64).astype(np.uint8)
    agent.register_memory([(buffer.ctypes.data, SIZE, 0, "")], "DRAM")
    return [(buffer.ctypes.data, 64, 0)], buffer


def part(base, offset, length=64):
    return [(base + offset, length, 0)]


def reg(base, offset, length=64):
    return [(base + offset, length, 0, "")]


def test_095_the_name_comes_back_as_bytes_and_loading_again_is_fine(agent, other):
    other.agent("there")
    blob = other("get_agent_metadata")
    assert isinstance(blob, bytes)
    assert [agent.add_remote_agent(blob) for _ in range(3)] == [b"there"] * 3
    assert agent.check_remote_metadata("there")
    assert not agent.check_remote_metadata("nobody")


def test_095_what_is_not_metadata_is_a_mismatch(agent, other):
    other.agent("there")
    blob = other("get_agent_metadata")
    for wrong in (b"", b"garbage", blob[:-1], blob + b"\0", bytes(1000)):
        with pytest.raises(nixlMismatchError, match="NIXL_ERR_MISMATCH"):
            agent.add_remote_agent(wrong)
    assert not agent.check_remote_metadata("there")


def test_096_memory_registered_after_the_exchange_is_not_found_until_the_next_one(agent, other, ours):
    base = other.agent("there", SIZE)[0]
    other("register_memory", reg(base, 0), "DRAM")
    agent.add_remote_agent(other("get_agent_metadata"))
    other("register_memory", reg(base, 1024), "DRAM")
    with pytest.raises(nixlNotFoundError):
        agent.initialize_xfer("WRITE", ours[0], part(base, 1024), "there")
    agent.add_remote_agent(other("get_agent_metadata"))
    assert agent.transfer(agent.initialize_xfer("WRITE", ours[0], part(base, 1024), "there")) == "DONE"
    assert other.read()[1024:1088] == ours[1][:64].tobytes()


@pytest.mark.parametrize("together", [True, False])
def test_096_parts_of_metadata_add_up(agent, other, ours, together):
    """Whether the parts were registered by one call or by several."""
    base = other.agent("there", SIZE)[0]
    rows = [row for offset in (0, 64, 512) for row in reg(base, offset)]
    for registered in [rows] if together else [[row] for row in rows]:
        other("register_memory", registered, "DRAM")
    lists = [agent.get_reg_descs([row], "DRAM") for row in rows]
    agent.add_remote_agent(other("get_partial_agent_metadata", None, inc_conn_info=True))
    assert agent.check_remote_metadata("there")
    for known in range(len(lists)):
        for number, each in enumerate(lists):
            assert agent.check_remote_metadata("there", each.trim()) == (number < known)
        with pytest.raises(nixlNotFoundError):
            agent.initialize_xfer("WRITE", ours[0], lists[known].trim(), "there")
        agent.add_remote_agent(other("get_partial_agent_metadata", lists[known]))
        assert agent.transfer(agent.initialize_xfer("WRITE", ours[0], lists[known].trim(), "there")) == "DONE"
    assert all(agent.check_remote_metadata("there", each.trim()) for each in lists)
    assert other.read()[512:576] == ours[1][:64].tobytes()


def test_096_a_part_that_is_not_registered_can_not_be_told(agent, ours):
    with pytest.raises(nixlNotFoundError):
        agent.get_partial_agent_metadata(agent.get_reg_descs([(64, 64, 0, "")], "DRAM"))


def test_109_an_agent_that_was_removed_is_not_known_and_may_be_added_again(agent, other):
    other.agent("there")
    blob = other("get_agent_metadata")
    for _ in range(3):
        name = agent.add_remote_agent(blob)
        assert agent.check_remote_metadata("there")
        agent.remove_remote_agent(name)  # as bytes, as it was returned
        assert not agent.check_remote_metadata("there")
        with pytest.raises(nixlNotFoundError):
            agent.send_notif("there", b"hello")
    agent.add_remote_agent(blob)
    agent.make_connection("there")
    agent.send_notif("there", b"hello")
    assert other("get_new_notifs") == {"here": [b"hello"]}
