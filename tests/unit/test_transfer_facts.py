"""What ``penstock doctor`` says about memory transfers."""

import socket

import numpy as np
import pytest

from penstock.cli import transfer_facts as module
from penstock.cli.transfer_facts import huge_pages_at, transfer_facts, transports_in

UCX_INFO = """
# Memory domain: tcp
#      Transport: tcp
#         Device: eth0
#           Type: network
#      Transport: tcp
#         Device: lo
# Connection manager: tcp
# Memory domain: posix
#      Transport: posix
#         Device: memory
"""
SMAPS = """\
7f0000000000-7f0000400000 rw-s 00000000 00:01 1 /memfd:penstock (deleted)
Size:               4096 kB
ShmemPmdMapped:     2048 kB
7f0000400000-7f0000500000 rw-p 00000000 00:00 0
ShmemPmdMapped:        0 kB
"""


def test_transports_are_named_with_their_devices():
    assert transports_in(UCX_INFO) == ["tcp/eth0", "tcp/lo", "posix"]
    assert transports_in("") == []


def test_huge_pages_are_counted_where_the_address_lies():
    assert huge_pages_at(SMAPS, 0x7F0000200000) == 2 << 20
    assert huge_pages_at(SMAPS, 0x7F0000400000) == 0
    assert huge_pages_at(SMAPS, 0x1000) is None


def test_what_a_machine_has_is_said():
    found = {fact.name: fact for fact in transfer_facts()}
    assert found["on this host"].value.startswith("yes")
    assert {"other memory on this host", "RDMA", "locked memory", "huge pages, your arrays"} <= set(found)
    assert "MiB" in found["huge pages, allocate()"].value
    assert all(fact.topic == "transfers" and fact.health != "bad" for fact in found.values())


def test_the_ucx_that_will_be_used_is_named_with_its_version():
    pytest.importorskip("libucx")
    found = {fact.name: fact for fact in transfer_facts()}
    assert found["UCX (wheel)"].value.startswith("1.")
    assert any("will be used" in fact.value for fact in found.values())
    assert "tcp/" in found["UCX's transports"].value


def test_without_ucx_it_says_how_to_get_it(monkeypatch):
    monkeypatch.setattr(module, "find_ucx", list)
    found = {fact.name: fact for fact in transfer_facts()}
    assert found["between hosts"].health == "note"
    assert "pip install" in found["between hosts"].advice


def test_memory_that_the_kernel_keeps_to_itself_is_a_note(monkeypatch):
    monkeypatch.setattr(module, "_child", lambda code, *arguments: "False" if arguments[0].isdecimal() else "")
    found = {fact.name: fact for fact in transfer_facts()}
    assert found["other memory on this host"].health == "note"
    assert "ptrace_scope" in found["other memory on this host"].advice


def test_what_a_machine_lacks_for_one_host_is_a_note(monkeypatch):
    def refuse(*arguments):
        raise OSError("not here")

    monkeypatch.setattr(socket, "socket", refuse)
    (fact,) = [fact for fact in transfer_facts() if fact.name == "on this host"]
    assert fact.health == "note"
    assert "not here" in fact.value


def test_a_child_really_reaches_into_us():
    probe = np.zeros(1, np.uint8)
    reached = module._child(module._REACH, str(module.os.getpid()), str(probe.ctypes.data))
    beyond = module._child(module._REACH, str(module.os.getpid()), "0")
    assert reached in {"True", "False"}
    assert beyond == "False"
