"""NIXL's notifications between two processes: order, who sees them, what fits a tag.

Names with a number are of the behaviours that a NIXL program counts on, in the order of their list.
"""

import threading
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.compat.nixl import nixl_agent
from penstock.compat.nixl.errors import nixlNotFoundError
from penstock.compat.nixl.messages import take_first


@pytest.fixture
def agent():
    with nixl_agent("here") as agent:
        yield agent


@pytest.fixture
def there(agent, other):
    """The other process, with an agent that knows us and is known."""
    other.agent("there", 4096)
    other("add_remote_agent", agent.get_agent_metadata())
    agent.add_remote_agent(other("get_agent_metadata"))
    return other


def send(there, *messages):
    for message in messages:
        there("send_notif", "here", message)


def test_102_the_notification_of_a_transfer_comes_when_all_of_its_data_is_there(agent, other):
    """The other side writes 1 MiB of one number after another; whoever has the note sees that number everywhere."""
    size, rounds = 1 << 20, 40
    buffer = np.zeros(size, np.uint8)
    registered = agent.register_memory([(buffer.ctypes.data, size, 0, "")], "DRAM")
    base = other.agent("there", size)[0]
    other("register_memory", [(base, size, 0, "")], "DRAM")
    other("add_remote_agent", agent.get_agent_metadata())
    other("initialize_xfer", "WRITE", [(base, size, 0)], list(registered.trim()), "here", b"landed", keep="handle")
    posted = threading.Thread(target=post_numbers, args=(other, size, rounds, agent))
    posted.start()
    for number in range(1, rounds + 1):
        until = time.monotonic() + 20
        while not agent.check_remote_xfer_done("there", b"landed"):
            assert time.monotonic() < until
        assert (buffer == number).all()
        agent.send_notif("here", b"seen")  # through ourselves, so that the poster may go on
    posted.join()
    assert agent.get_new_notifs() == {}


def post_numbers(other, size, rounds, agent):
    from nixl_target import Kept

    for number in range(1, rounds + 1):
        other.write(bytes([number]) * size)
        assert other("transfer", Kept("handle")) == "DONE"
        until = time.monotonic() + 20
        while not agent.check_notif("here", b"seen"):
            assert time.monotonic() < until


def test_103_an_empty_message_sends_the_stored_one_again_and_a_new_one_replaces_it(agent, there):
    buffer = np.zeros(64, np.uint8)
    registered = agent.register_memory([(buffer.ctypes.data, 64, 0, "")], "DRAM")
    base = there.agent("there", 64)[0]
    there("register_memory", [(base, 64, 0, "")], "DRAM")
    there("add_remote_agent", agent.get_agent_metadata())
    agent.remove_remote_agent("there")
    agent.add_remote_agent(there("get_agent_metadata"))
    local, remote = registered.trim(), [(base, 64, 0)]
    handle = agent.initialize_xfer("WRITE", local, remote, "there", b"first")
    for message, expected in ((b"", b"first"), (b"", b"first"), (b"second", b"second"), (b"", b"second")):
        assert agent.transfer(handle, message) == "DONE"
        assert there("get_new_notifs") == {"here": [expected]}
    silent = agent.initialize_xfer("WRITE", local, remote, "there")
    assert agent.transfer(silent) == "DONE"
    assert there("get_new_notifs") == {}
    assert agent.transfer(silent, "now with text") == "DONE"
    assert there("get_new_notifs") == {"here": [b"now with text"]}


def test_104_a_tag_is_a_prefix_or_else_a_part_of_the_message(agent, there):
    send(there, b"UUID1-first", b"x-UUID2-y", b"UUID1-second")
    assert not agent.check_remote_xfer_done("there", b"UUID2")
    assert agent.check_remote_xfer_done("there", b"UUID2", tag_is_prefix=False)
    assert not agent.check_remote_xfer_done("there", b"UUID2", tag_is_prefix=False)
    assert agent.check_remote_xfer_done("there", b"UUID1")  # only the first that fits is removed
    assert agent.notifs == {"there": [b"UUID1-second"]}
    assert not agent.check_remote_xfer_done("nobody", b"UUID1")
    assert agent.check_remote_xfer_done("there", b"")  # an empty tag fits any message
    assert not agent.check_remote_xfer_done("there", b"")
    assert agent.notifs == {}


def test_104_an_empty_message_is_removed_as_any_other(agent, there):
    send(there, b"", b"next")
    assert agent.check_remote_xfer_done("there", b"")
    assert agent.notifs == {"there": [b"next"]}


def test_105_get_new_takes_and_update_keeps(agent, there):
    send(there, b"1", b"2")
    assert agent.get_new_notifs() == {"there": [b"1", b"2"]}
    assert agent.get_new_notifs() == {}
    send(there, b"3")
    assert agent.update_notifs() == {"there": [b"3"]}
    send(there, b"4")
    assert agent.update_notifs() == agent.notifs == {"there": [b"3", b"4"]}
    assert agent.get_new_notifs() == {}  # what a check or an update drained is hidden from it
    send(there, b"5")
    assert not agent.check_remote_xfer_done("there", b"9")
    assert agent.get_new_notifs() == {}
    send(there, b"6")
    assert agent.get_new_notifs() == {"there": [b"6"]}
    assert not agent.check_remote_xfer_done("there", b"6")  # and the other way round


def test_106_messages_arrive_whole_and_in_order(agent, there):
    sent = [b"\0", b"a\0b", bytes(65536), bytes(range(256)) * 256, *(str(number).encode() for number in range(500))]
    send(there, *sent)
    found = []
    while len(found) < len(sent):
        found += agent.get_new_notifs().get("there", [])
    assert found == sent


def test_106_text_arrives_as_utf_8(agent, there):
    send(there, "grüße")
    assert agent.get_new_notifs() == {"there": ["grüße".encode()]}
    send(there, "grüße")
    assert agent.check_remote_xfer_done("there", "grü")


def test_107_check_notif_wants_the_whole_message_unless_it_is_told_otherwise(agent, there):
    send(there, b"ACK", b"ERROR: disk full", b"ACK2")
    assert not agent.check_notif("there", b"AC")
    assert agent.check_notif("there", b"ACK")
    assert not agent.check_notif("there", b"ACK")
    assert not agent.check_notif("there", b"disk", tag_is_prefix=True)
    assert agent.check_notif("there", b"ERROR", tag_is_prefix=True)
    assert agent.notifs == {"there": [b"ACK2"]}
    assert not agent.check_notif("nobody", b"ACK2")


def test_108_a_message_to_nobody_is_refused_and_a_backend_may_be_named(agent, there):
    with pytest.raises(nixlNotFoundError, match="nobody"):
        agent.send_notif("nobody", b"hello")
    agent.send_notif("there", b"hello", backend="UCX")
    assert there("get_new_notifs", backends=["UCX"]) == {"here": [b"hello"]}
    for wrong in (lambda: agent.send_notif("there", b"", backend="GDS"), lambda: agent.get_new_notifs(["GDS"])):
        with pytest.raises(nixlNotFoundError, match="'GDS' wasn't created"):
            wrong()


def test_each_of_many_threads_that_check_takes_a_message_of_its_own(agent, there):
    send(there, *[b"job"] * 200)
    taken = []

    def take():
        while agent.check_notif("there", b"job"):
            taken.append(1)

    threads = [threading.Thread(target=take) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(taken) == 200


MESSAGES = st.lists(st.binary(max_size=3), max_size=6)


@given(MESSAGES, st.binary(max_size=2), st.booleans(), st.booleans())
def test_taking_a_message_leaves_all_others_in_order(messages, tag, prefix, inside):
    waiting = {"there": list(messages), "else": [tag]} if messages else {"else": [tag]}
    fits = [
        message.startswith(tag) if prefix else (tag in message if inside else message == tag) for message in messages
    ]
    assert take_first(waiting, "there", tag, prefix=prefix, inside=inside) == any(fits)
    left = messages[:]
    if any(fits):
        del left[fits.index(True)]
    assert waiting.get("there", []) == left
    assert "there" not in waiting or waiting["there"]
    assert waiting["else"] == [tag]
