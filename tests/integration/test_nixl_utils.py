"""The key-value server, metadata and descriptors as NIXL's examples use them: contracts C7, E2 111."""

from __future__ import annotations

import inspect
import os
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from penstock.compat.nixl import nixl_agent, utils
from penstock.errors import ConfigError, MetadataError, PeerRefused, PeerUnreachable
from server_process import free_ports


@pytest.fixture
def port(monkeypatch):
    """Where this process's server listens for the length of a test."""
    (port,) = free_ports(1)
    monkeypatch.setattr(utils, "_server", None)
    assert utils.start_server(port) is True
    server = utils._server
    yield port
    server.close()


@pytest.fixture
def agents():
    made = []

    def make(name):
        made.append(nixl_agent(name))
        return made[-1]

    yield make
    for agent in made:
        agent.close()


def test_set_get_missing_clear(port):
    assert utils.set_metadata("k", {"any": ["json", 1, None]}, port=port) is True
    assert utils.get_metadata("k", port=port) == {"any": ["json", 1, None]}
    assert utils.get_metadata("missing", "127.0.0.1", port) is None
    assert utils.set_metadata("null", None, port=port) is True
    assert utils.get_metadata("null", port=port) is None
    assert utils.clear_metadata(port=port) is True
    assert utils.get_metadata("k", port=port) is None


def test_started_twice_is_false(port):
    assert utils.start_server(port) is False
    assert utils.start_server(port + 1) is False
    with pytest.raises(ConnectionRefusedError):
        utils.get_metadata("k", port=port + 1)


def test_a_port_of_another_process_is_false_and_serves(port, monkeypatch):
    monkeypatch.setattr(utils, "_server", None)
    program = f"""
from penstock.compat.nixl import utils
print(utils.start_server({port}), utils.set_metadata('k', 1, port={port}))
"""
    said = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    assert said.stdout == "False True\n"
    assert utils.get_metadata("k", port=port) == 1
    assert utils.start_server(port) is False


def test_only_one_of_many_threads_starts_it(monkeypatch):
    (port,) = free_ports(1)
    monkeypatch.setattr(utils, "_server", None)
    started = []
    threads = [threading.Thread(target=lambda: started.append(utils.start_server(port))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(started) == [False] * 7 + [True]
    utils._server.close()


def test_the_server_doesnt_keep_its_process():
    (port,) = free_ports(1)
    program = f"from penstock.compat.nixl.utils import start_server; print(start_server({port}))"
    said = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    assert (said.stdout, said.stderr) == ("True\n", "")


@pytest.mark.parametrize("size", [4096, 5000, 8 << 20])
def test_values_beyond_4_kib_survive(port, size):
    assert utils.set_metadata("k", "x" * size, port=port)
    assert utils.get_metadata("k", port=port) == "x" * size


def test_a_value_that_the_server_doesnt_take_is_false_with_the_reason(port, caplog):
    assert utils.set_metadata("k", "x" * (16 << 20), port=port) is False
    assert "Line longer than 16777216 bytes" in caplog.text


def test_a_server_that_isnt_there_is_refused_at_once_as_ever(agents):
    (port,) = free_ports(1)
    agent = agents("a")
    began = time.monotonic()
    for call in (
        lambda: utils.set_metadata("k", 1, port=port),
        lambda: utils.get_metadata("k", port=port),
        lambda: utils.clear_metadata(port=port),
        lambda: utils.publish_agent_metadata(agent, "k", port=port),
        lambda: utils.retrieve_agent_metadata(agent, "k", port=port),
        lambda: utils.publish_descriptors(agent, b"x", "k", port=port),
        lambda: utils.retrieve_descriptors(agent, "k", port=port),
    ):
        with pytest.raises(ConnectionRefusedError, match=f"nothing answers at 127.0.0.1:{port}") as caught:
            call()
        assert isinstance(caught.value, PeerUnreachable)
    assert time.monotonic() - began < 5


def test_beyond_loopback_only_with_a_token(monkeypatch):
    (port,) = free_ports(1)
    monkeypatch.setattr(utils, "_server", None)
    monkeypatch.setenv("PENSTOCK_EXCHANGE_HOST", "0.0.0.0")
    with pytest.raises(ConfigError, match="token"):
        utils.start_server(port)
    monkeypatch.setenv("PENSTOCK_EXCHANGE_TOKEN", "s3cret")
    assert utils.start_server(port)
    try:
        assert utils.set_metadata("k", 1, "127.0.0.2", port)
        monkeypatch.setenv("PENSTOCK_EXCHANGE_TOKEN", "guess")
        assert utils.set_metadata("k", 2, "127.0.0.2", port) is False
        assert utils.clear_metadata("127.0.0.2", port) is False
        with pytest.raises(PeerRefused, match="Wrong or missing token"):
            utils.get_metadata("k", "127.0.0.2", port)
    finally:
        utils._server.close()


def test_metadata_that_nobody_published_is_none_after_the_time_out(agents, port, caplog):
    agent = agents("a")
    began = time.monotonic()
    assert utils.retrieve_agent_metadata(agent, "missing", port=port, timeout=0.4, role_name="sender") is None
    assert 0.35 < time.monotonic() - began < 1.5
    assert "sender: no metadata under 'missing' within 0.4 s" in caplog.text
    assert inspect.signature(utils.retrieve_agent_metadata).parameters["timeout"].default == 10.0


def test_metadata_is_waited_for_and_loaded(agents, port):
    a, b = agents("a"), agents("b")
    names = []
    waiting = threading.Thread(target=lambda: names.append(utils.retrieve_agent_metadata(a, "b's", port=port)))
    waiting.start()
    waiting.join(0.2)
    assert utils.publish_agent_metadata(b, "b's", port=port) is None
    waiting.join(10)
    assert names == ["b"]
    assert a.check_remote_metadata("b")


def test_what_isnt_metadata_is_said(agents, port):
    agent = agents("a")
    for value in (5, "no base64!", ["x"]):
        utils.set_metadata("k", value, port=port)
        with pytest.raises(MetadataError, match="'k'"):
            utils.retrieve_agent_metadata(agent, "k", port=port)
    utils.set_metadata("k", "Zm9v", port=port)
    with pytest.raises(Exception, match="NIXL_ERR_MISMATCH"):
        utils.retrieve_agent_metadata(agent, "k", port=port)


def test_descriptors_come_as_they_were_or_as_none_at_once(agents, port):
    agent = agents("a")
    buffer = np.zeros(4096, np.uint8)
    descs = agent.get_xfer_descs([(buffer.ctypes.data, 1024, 0), (buffer.ctypes.data + 2048, 1024, 0)], "DRAM")
    began = time.monotonic()
    assert utils.retrieve_descriptors(agent, "d", port=port) is None
    assert time.monotonic() - began < 1.0
    utils.publish_descriptors(agent, descs, "d", port=port)
    assert utils.retrieve_descriptors(agent, "d", port=port) == descs
    utils.publish_descriptors(agent, agent.get_serialized_descs(descs), "e", port=port)
    assert utils.retrieve_descriptors(agent, "e", port=port) == descs


def test_numbers_in_memory():
    numbers = np.zeros(2, np.uint64)
    utils.write_uint64(numbers.ctypes.data + 8, 2**64 - 2)
    assert numbers.tolist() == [0, 2**64 - 2]
    assert utils.read_uint64(numbers.ctypes.data + 8) == 2**64 - 2


OTHER_PROCESS = """
import sys, numpy
from penstock.compat.nixl import nixl_agent
from penstock.compat.nixl.utils import *
port = int(sys.argv[1])
agent = nixl_agent("target")
memory = numpy.zeros(4096, numpy.uint8)
agent.register_memory(agent.get_reg_descs([(memory.ctypes.data, 4096, 0, "")], "DRAM"))
publish_agent_metadata(agent, "target_meta", port=port)
publish_descriptors(agent, agent.get_xfer_descs([(memory.ctypes.data, 8, 0)], "DRAM"), "target_descs", port=port)
assert retrieve_agent_metadata(agent, "initiator_meta", port=port) == "initiator"
while not agent.check_remote_xfer_done("initiator", b"DONE"):
    pass
print(read_uint64(memory.ctypes.data))
agent.close()
"""


def test_two_processes_meet_as_in_the_guide(agents, port):
    agent = agents("initiator")
    memory = np.zeros(4096, np.uint8)
    agent.register_memory(agent.get_reg_descs([(memory.ctypes.data, 4096, 0, "")], "DRAM"))
    process = subprocess.Popen(
        [sys.executable, "-c", OTHER_PROCESS, str(port)], stdout=subprocess.PIPE, text=True, env={**os.environ}
    )
    try:
        utils.publish_agent_metadata(agent, "initiator_meta", port=port)
        name = utils.retrieve_agent_metadata(agent, "target_meta", port=port, timeout=60.0)
        descs = None
        while descs is None and process.poll() is None:
            descs = utils.retrieve_descriptors(agent, "target_descs", port=port)
        utils.write_uint64(memory.ctypes.data, 0x1122334455667788)
        local = agent.get_xfer_descs([(memory.ctypes.data, 8, 0)], "DRAM")
        handle = agent.initialize_xfer("WRITE", local, descs, name, b"DONE")
        state = agent.transfer(handle)
        while state == "PROC":
            state = agent.check_xfer_state(handle)
        assert state == "DONE"
        said, _ = process.communicate(timeout=60)
        assert int(said) == 0x1122334455667788
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


@pytest.fixture
def etcd(etcd_server, etcd_namespace, monkeypatch):
    monkeypatch.setenv("NIXL_ETCD_ENDPOINTS", etcd_server.endpoint)
    monkeypatch.setenv("NIXL_ETCD_NAMESPACE", etcd_namespace)


def test_builtin_publishes_all_of_it_under_the_label(agents, etcd):
    """The decision in docs/design.md, and the guide's call as it is written there."""
    a, b = agents("a"), agents("b")
    memory = np.zeros(4096, np.uint8)
    b.register_memory(b.get_reg_descs([(memory.ctypes.data, 4096, 0, "")], "DRAM"))
    utils.publish_agent_metadata(b, "my_label", use_nixl_builtin=True)
    found = utils.retrieve_agent_metadata(a, "my_label", use_nixl_builtin=True, remote_agent_name="b")
    assert found == "b"
    assert a.check_remote_metadata("b", b.get_xfer_descs([(memory.ctypes.data, 4096, 0)], "DRAM"))


def test_builtin_publishes_a_part_under_the_label(agents, etcd):
    a, b = agents("a"), agents("b")
    memories = np.zeros((2, 4096), np.uint8)
    lists = [b.get_reg_descs([(memory.ctypes.data, 4096, 0, "")], "DRAM") for memory in memories]
    for each in lists:
        b.register_memory(each)
    utils.publish_agent_metadata(b, "second", use_nixl_builtin=True, reg_descs=lists[1])
    assert utils.retrieve_agent_metadata(a, "second", use_nixl_builtin=True, remote_agent_name="b") == "b"
    known = [a.check_remote_metadata("b", each.trim()) for each in lists]
    assert known == [False, True]


def test_builtin_needs_a_name_and_ends_with_its_time_out(agents, etcd, caplog):
    agent = agents("a")
    assert utils.retrieve_agent_metadata(agent, "label", use_nixl_builtin=True) is None
    assert "remote_agent_name" in caplog.text
    began = time.monotonic()
    found = utils.retrieve_agent_metadata(
        agent, "label", timeout=0.5, use_nixl_builtin=True, remote_agent_name="nobody"
    )
    assert found is None
    assert 0.4 < time.monotonic() - began < 2.0


def test_the_servers_protocol_is_the_examples(port):
    """Another client of the examples' protocol: one JSON object on a line."""
    import json
    import socket

    def ask(line):
        with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
            connection.sendall(line + b"\n")
            return json.loads(connection.makefile().readline())

    assert ask(b'{"cmd": "SET", "key": "k", "value": "v"}') == {"status": "OK"}
    assert ask(b'{"cmd": "GET", "key": "k"}') == {"status": "OK", "value": "v"}
    assert ask(b'{"cmd": "GET", "key": "x"}') == {"status": "ERROR", "message": "Key 'x' not found"}
    assert ask(b'{"cmd": "WHAT"}') == {"status": "ERROR", "message": "Unknown command: WHAT"}
    assert ask(b"{") == {"status": "ERROR", "message": "Invalid JSON"}
    assert ask(b'{"cmd": "CLEAR"}') == {"status": "OK"}
