"""How NIXL agents in two processes learn of each other: blobs, parts of them, over sockets.

Names with a number are of the behaviours that a NIXL program counts on, in the order of their list.
"""

import socket
import time

import numpy as np
import pytest

from penstock.compat.nixl import nixl_agent, nixl_agent_config
from penstock.compat.nixl.errors import nixlBackendError, nixlInvalidParamError, nixlMismatchError, nixlNotFoundError
from penstock.errors import DeadlineExceeded
from penstock.transfer.exchange import WHOLE, EtcdExchange

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


def test_095_the_name_as_bytes_is_good_for_every_call(agent, other, ours):
    base = other.agent("there", SIZE)[0]
    other("register_memory", reg(base, 0), "DRAM")
    other("add_remote_agent", agent.get_agent_metadata())
    name = agent.add_remote_agent(other("get_agent_metadata"))
    agent.make_connection(name)
    assert agent.check_remote_metadata(name)
    remote = agent.prep_xfer_dlist(name, part(base, 0), "DRAM")
    local = agent.prep_xfer_dlist(b"NIXL_INIT_AGENT", ours[0], "DRAM")
    assert agent.transfer(agent.make_prepped_xfer("WRITE", local, [0], remote, [0], b"one")) == "DONE"
    assert agent.transfer(agent.initialize_xfer("WRITE", ours[0], part(base, 0), name, b"two")) == "DONE"
    agent.send_notif(name, b"three")
    assert other("get_new_notifs") == {"here": [b"one", b"two", b"three"]}
    other("send_notif", "here", b"four")
    other("send_notif", "here", b"five")
    assert agent.check_remote_xfer_done(name, b"four")
    assert agent.check_notif(name, b"five")
    agent.remove_remote_agent(name)


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


def test_096_memory_of_another_kind_is_not_found(agent, ours):
    rows = [(1 << 40, 64, 0)]
    with nixl_agent("there") as there:
        there.register_memory([(*rows[0], "")], "VRAM")  # it is only told of, and not looked at
        agent.add_remote_agent(there.get_agent_metadata())
        assert agent.check_remote_metadata("there", agent.get_xfer_descs(rows, "VRAM"))
        assert not agent.check_remote_metadata("there", agent.get_xfer_descs(rows, "DRAM"))
        with pytest.raises(nixlNotFoundError, match="not in DRAM"):
            agent.prep_xfer_dlist("there", rows, "DRAM")
        with pytest.raises(nixlNotFoundError, match="not in VRAM"):
            agent.prep_xfer_dlist("", ours[0], "VRAM")
        with pytest.raises(nixlBackendError, match="network plane"):  # and there is none open
            agent.initialize_xfer("WRITE", ours[0], agent.get_xfer_descs(rows, "VRAM"), "there")


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


def until(condition, seconds=10.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


@pytest.fixture
def listener():
    """Us, with a listen thread on a free port."""
    with nixl_agent("here", nixl_agent_config(enable_listen_thread=True, listen_port=0)) as agent:
        yield agent


def test_110_metadata_is_sent_and_taken_back_by_address_and_port(listener, other):
    base = other.agent("there", SIZE)[0]
    other("register_memory", reg(base, 0), "DRAM")
    assert not listener.check_remote_metadata("there")
    other("send_local_metadata", "127.0.0.1", listener.listen_port)
    until(lambda: listener.check_remote_metadata("there"))
    rows = listener.get_xfer_descs(part(base, 0), "DRAM")
    assert listener.check_remote_metadata("there", rows)
    assert not listener.check_remote_metadata("there", listener.get_xfer_descs(part(base, 64), "DRAM"))
    listener.send_notif("there", b"hello")
    assert other("get_new_notifs") == {"here": [b"hello"]}
    other("invalidate_local_metadata", "127.0.0.1", listener.listen_port)
    until(lambda: not listener.check_remote_metadata("there"))


def test_110_metadata_is_fetched_by_address_and_port(listener, other):
    other.agent("there")
    for _ in range(3):  # one is on its way, others are not needed
        other("fetch_remote_metadata", "here", "127.0.0.1", listener.listen_port)
    until(lambda: other("check_remote_metadata", "here"))
    other("send_notif", "here", b"found you")
    assert listener.get_new_notifs() == {"there": [b"found you"]}


def test_110_parts_are_sent_by_address_and_port(listener, other):
    base = other.agent("there", SIZE)[0]
    for offset in (0, 1024):
        other("register_memory", reg(base, offset), "DRAM")
        rows = listener.get_reg_descs(reg(base, offset), "DRAM")
        other("send_partial_agent_metadata", rows, True, ["UCX"], "127.0.0.1", listener.listen_port)
        until(lambda rows=rows: listener.check_remote_metadata("there", rows.trim()))


def test_110_what_can_not_be_sent_or_fetched_is_logged_and_not_raised(agent, caplog, other):
    with socket.create_server(("127.0.0.1", 0)) as nobody:
        port = nobody.getsockname()[1]
    agent.send_local_metadata("127.0.0.1", port)
    agent.fetch_remote_metadata("there", "127.0.0.1", port)
    until(lambda: len([record for record in caplog.records if record.levelname == "ERROR"]) == 2)
    assert "sending the metadata of 'here' failed" in caplog.text
    assert "fetching the metadata of 'there' failed" in caplog.text


def test_110_what_is_being_fetched_is_not_fetched_twice(agent, caplog):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        for _ in range(5):
            agent.fetch_remote_metadata("there", "127.0.0.1", port)
        silent.accept()[0].close()
        until(lambda: "fetching the metadata of 'there' failed" in caplog.text)
        silent.settimeout(0.2)
        with pytest.raises(TimeoutError):  # nobody else asked
            silent.accept()


def test_110_without_an_address_and_a_store_there_is_nowhere_to_send_to(agent):
    for call in (
        agent.send_local_metadata,
        agent.invalidate_local_metadata,
        lambda: agent.fetch_remote_metadata("there"),
        lambda: agent.send_partial_agent_metadata(None, label="part"),
        lambda: agent.send_partial_agent_metadata(None),
    ):
        with pytest.raises(nixlInvalidParamError):
            call()


def test_a_busy_port_is_an_error_to_the_caller(listener):
    with pytest.raises(nixlInvalidParamError, match=str(listener.listen_port)):
        nixl_agent("second", nixl_agent_config(enable_listen_thread=True, listen_port=listener.listen_port))


def test_listeners_answer_only_those_who_know_the_token(monkeypatch, other, caplog):
    other.agent("there")
    monkeypatch.setenv("PENSTOCK_EXCHANGE_TOKEN", "a secret of ours")
    with nixl_agent("here", nixl_agent_config(enable_listen_thread=True, listen_port=0)) as agent:
        other("send_local_metadata", "127.0.0.1", agent.listen_port)
        other.run("import os; os.environ['PENSTOCK_EXCHANGE_TOKEN'] = 'a secret of ours'")
        try:
            other("fetch_remote_metadata", "here", "127.0.0.1", agent.listen_port)
            until(lambda: other("check_remote_metadata", "here"))
        finally:
            other.run("del os.environ['PENSTOCK_EXCHANGE_TOKEN']")
        assert not agent.check_remote_metadata("there")


def test_a_closed_agent_listens_no_more():
    agent = nixl_agent("here", nixl_agent_config(enable_listen_thread=True, listen_port=0))
    port = agent.listen_port
    agent.close()
    with pytest.raises(OSError, match="refused"):
        socket.create_connection(("127.0.0.1", port))
    agent = nixl_agent("here", nixl_agent_config(enable_listen_thread=True, listen_port=port))
    del agent
    with pytest.raises(OSError, match="refused"):
        socket.create_connection(("127.0.0.1", port))


@pytest.fixture
def store(etcd_server, etcd_namespace, monkeypatch, other):
    """Both processes with an agent that knows etcd."""
    settings = {"NIXL_ETCD_ENDPOINTS": etcd_server.endpoint, "NIXL_ETCD_NAMESPACE": etcd_namespace}
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    other.run(f"import os; os.environ.update({settings})")
    base = other.agent("there", SIZE)[0]
    with nixl_agent("here") as agent:
        yield agent, base
    other.run(f"import os; [os.environ.pop(name) for name in {list(settings)}]")


def test_etcd_carries_metadata_and_its_removal(store, other):
    agent, base = store
    agent.fetch_remote_metadata("there")  # before it is there
    other("register_memory", reg(base, 0), "DRAM")
    other("send_local_metadata")
    until(lambda: agent.check_remote_metadata("there", agent.get_xfer_descs(part(base, 0), "DRAM")))
    agent.send_notif("there", b"hello")
    assert other("get_new_notifs") == {"here": [b"hello"]}
    other("invalidate_local_metadata")
    until(lambda: not agent.check_remote_metadata("there"))


def test_etcd_carries_parts_under_their_labels(store, other):
    agent, base = store
    for number, offset in enumerate((0, 1024)):
        other("register_memory", reg(base, offset), "DRAM")
        rows = agent.get_reg_descs(reg(base, offset), "DRAM")
        other("send_partial_agent_metadata", rows, True, ["UCX"], label=f"part-{number}")
        agent.fetch_remote_metadata("there", label=f"part-{number}")
        until(lambda rows=rows: agent.check_remote_metadata("there", rows.trim()))


def test_what_is_published_without_descriptors_is_everything(store, other):
    agent, base = store
    other("register_memory", reg(base, 0), "DRAM")
    other("send_partial_agent_metadata", None, True, ["UCX"], label="label")
    agent.fetch_remote_metadata("there", label="label")
    until(lambda: agent.check_remote_metadata("there", agent.get_xfer_descs(part(base, 0), "DRAM")))


def test_an_address_wins_over_etcd(store, other):
    with nixl_agent("listener", nixl_agent_config(enable_listen_thread=True, listen_port=0)) as listener:
        other("send_local_metadata", "127.0.0.1", listener.listen_port)
        until(lambda: listener.check_remote_metadata("there"))
    with EtcdExchange.from_environment() as etcd, pytest.raises(DeadlineExceeded, match="nobody published it"):
        etcd.retrieve("there", WHOLE, timeout_s=0.5)
