"""``nixl_agent`` by itself: names, backends, registering, asking about files.

Names with a number are of the behaviours that a NIXL program counts on, in the order of their list.
"""

import subprocess
import sys

import numpy as np
import pytest
import torch

from penstock.compat import nixl
from penstock.compat.nixl import _api, nixl_agent, nixl_agent_config, nixl_thread_sync_t
from penstock.compat.nixl.errors import (
    nixlBackendError,
    nixlInvalidParamError,
    nixlNotAllowedError,
    nixlNotFoundError,
    nixlNotSupportedError,
)
from penstock.errors import PenstockError


@pytest.fixture
def agent():
    with nixl_agent("one") as agent:
        yield agent


def rows_of(*arrays):
    return [(array.ctypes.data, array.nbytes, 0, "") for array in arrays]


def test_the_package_exports_nixls_names():
    assert set(nixl.__all__) == set(_api.__all__)
    assert (nixl.DEFAULT_COMM_PORT, nixl.nixl_backend_handle) == (8888, int)


def test_importing_it_imports_neither_torch_nor_ucx():
    code = (
        "import sys; import penstock.compat.nixl; "
        "maps = open('/proc/self/maps').read(); print('torch' in sys.modules, 'libucp' in maps)"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout == "False False\n"


def test_a_configuration_has_nixls_defaults_and_attributes():
    config = nixl_agent_config()
    found = {name: value for name, value in vars(config).items() if name != "sync_mode"}
    assert found == {
        "enable_pthread": True,
        "enable_listen": False,
        "port": 8888,
        "capture_telemetry": False,
        "num_threads": 0,
        "backends": ["UCX"],
    }
    assert config.sync_mode is nixl_thread_sync_t.NIXL_THREAD_SYNC_NONE
    assert nixl_agent_config(enable_listen_thread=True).sync_mode is nixl_thread_sync_t.NIXL_THREAD_SYNC_STRICT
    assert nixl_thread_sync_t.NIXL_THREAD_SYNC_DEFAULT is nixl_thread_sync_t.NIXL_THREAD_SYNC_NONE
    with pytest.raises(TypeError, match="sync_mode must be a nixl_thread_sync_t"):
        nixl_agent_config(sync_mode="strict")


def test_087_an_agent_needs_a_name_and_goes_without_backends_that_there_are_none_of(caplog):
    with pytest.raises(ValueError, match="name"):
        nixl_agent("")
    with nixl_agent("one", nixl_agent_config(backends=["GDS", "UCX"])) as agent:
        assert list(agent.backends) == ["UCX"]
        assert (agent.name, agent.notifs, agent.plugin_list) == ("one", {}, agent.get_plugin_list())
    assert [record.levelname for record in caplog.records if "'GDS'" in record.getMessage()] == ["WARNING"]


def test_087_everything_can_be_created_at_once_but_not_beside_a_configuration(caplog):
    with nixl_agent("all", instantiate_all=True) as agent:
        assert list(agent.backends) == agent.get_plugin_list() == ["UCX", "POSIX"]
    assert not caplog.records
    with nixl_agent("some", nixl_agent_config(), instantiate_all=True) as agent:
        assert list(agent.backends) == ["UCX"]
    assert "instantiate_all" in caplog.text


def test_088_backends_are_created_once_and_by_their_name():
    with nixl_agent("later", nixl_agent_config(backends=[])) as agent:
        assert agent.backends == {}
        with pytest.raises(nixlNotFoundError, match="choose one of UCX, POSIX"):
            agent.create_backend("GDS")
        with pytest.raises(nixlInvalidParamError):
            agent.get_agent_metadata()
        with pytest.raises(nixlNotFoundError):
            agent.register_memory(torch.zeros(4))
        with pytest.raises(nixlBackendError, match=r"create_backend\('UCX'\)"):
            agent.send_notif("other", b"")
        agent.create_backend("UCX", {"num_threads": "2"})
        assert agent.get_backend_params("UCX")["num_threads"] == "2"
        with pytest.raises(nixlInvalidParamError):
            agent.create_backend("UCX")
        agent.register_memory(torch.zeros(4))


def test_088_a_backend_that_can_not_be_set_up_is_not_there_afterwards():
    with nixl_agent("later", nixl_agent_config(backends=[])) as agent:
        with pytest.raises(PenstockError):
            agent.create_backend("UCX", {"ucx_devices": "no-such-interface"})
        with pytest.raises(PenstockError, match="timeout_s"):
            agent.create_backend("UCX", {"timeout_s": "soon"})
        assert (agent.agent, agent.backends) == (None, {})
        agent.create_backend("UCX")


def test_what_backends_are_asked_about_is_told_or_warned_of(agent, caplog):
    assert agent.get_plugin_mem_types("UCX") == agent.get_backend_mem_types("UCX") == ["DRAM_SEG", "VRAM_SEG"]
    assert agent.get_plugin_mem_types("POSIX") == ["FILE_SEG"]
    assert agent.get_plugin_params("UCX") == agent.get_backend_params("UCX")
    assert not caplog.records
    assert (agent.get_plugin_mem_types("GDS"), agent.get_plugin_params("GDS")) == ([], {})
    assert (agent.get_backend_mem_types("POSIX"), agent.get_backend_params("POSIX")) == ([], {})
    assert [record.levelname for record in caplog.records] == ["WARNING"] * 4


def test_089_an_unknown_operation_is_a_key_error_before_anything_else_is_looked_at(agent):
    with pytest.raises(KeyError):
        agent.initialize_xfer("COPY", None, None, None)
    with pytest.raises(KeyError):
        agent.make_prepped_xfer("write", None, None, None, None)


def test_093_memory_is_registered_and_deregistered(agent):
    first, second = np.zeros(64, np.uint8), np.zeros(64, np.uint8)
    registered = agent.register_memory(rows_of(first, second), "DRAM")
    assert registered == agent.get_reg_descs(rows_of(first, second), "DRAM")
    agent.prep_xfer_dlist("", registered.trim())
    agent.deregister_memory(agent.get_reg_descs(rows_of(first, second), "DRAM"))  # any equal list will do
    with pytest.raises(nixlNotFoundError):
        agent.prep_xfer_dlist("", registered.trim())
    with pytest.raises(nixlNotFoundError, match="aren't registered"):
        agent.deregister_memory(registered)


def test_093_memory_registered_twice_is_registered_until_both_are_taken_back(agent):
    array = np.zeros(64, np.uint8)
    registered = [agent.register_memory(rows_of(array), "DRAM") for _ in range(2)]
    agent.deregister_memory(registered[0])
    agent.prep_xfer_dlist("", registered[1].trim())
    agent.deregister_memory(registered[1])
    with pytest.raises(nixlNotFoundError):
        agent.deregister_memory(registered[1])


def test_093_a_part_of_what_was_registered_can_be_taken_back(agent):
    arrays = [np.zeros(64, np.uint8) for _ in range(3)]
    agent.register_memory(rows_of(*arrays), "DRAM")
    part = agent.get_reg_descs(rows_of(arrays[1]), "DRAM")
    agent.deregister_memory(part)
    agent.prep_xfer_dlist("", [row[:3] for row in rows_of(arrays[0], arrays[2])], "DRAM")
    with pytest.raises(nixlNotFoundError):
        agent.prep_xfer_dlist("", part.trim())
    with pytest.raises(nixlNotFoundError):  # one of them isn't, so none of them is taken back
        agent.deregister_memory(agent.get_reg_descs(rows_of(*arrays), "DRAM"))
    agent.deregister_memory(agent.get_reg_descs(rows_of(arrays[2], arrays[0]), "DRAM"))


def test_093_rows_of_several_registrations_can_be_taken_back_together(agent):
    arrays = [np.zeros(64, np.uint8) for _ in range(3)]
    for array in arrays:
        agent.register_memory(rows_of(array), "DRAM")
    agent.deregister_memory(agent.get_reg_descs(rows_of(*arrays), "DRAM"))
    with pytest.raises(nixlNotFoundError):
        agent.prep_xfer_dlist("", [row[:3] for row in rows_of(arrays[0])], "DRAM")


def test_093_memory_that_no_backend_moves_is_not_found(agent):
    for kind in ("FILE", "BLOCK", "OBJ"):
        with pytest.raises(nixlNotFoundError, match="UCX takes DRAM and VRAM"):
            agent.register_memory([(0, 4096, 3, "/a")], kind)
    agent.create_backend("POSIX")
    with pytest.raises(nixlNotFoundError):
        agent.register_memory([(4096, 64, 0, "")], "DRAM", backends=["POSIX"])
    with pytest.raises(nixlNotFoundError, match="wasn't created"):
        agent.register_memory([(4096, 64, 0, "")], "DRAM", backends=["GDS"])


def test_memory_of_tensors_lives_as_long_as_it_is_registered(agent):
    import weakref

    tensor = torch.ones(1000)
    alive = weakref.ref(tensor)
    registered = agent.register_memory(tensor)
    del tensor
    assert alive() is not None
    agent.deregister_memory(registered)
    assert alive() is None


def test_what_can_not_be_read_is_not_registered(agent):
    for wrong in (torch.zeros(4, 4).T, np.zeros(4), "text", [(1, 2, 3)]):
        with pytest.raises(nixlInvalidParamError, match="can't be read as descriptors"):
            agent.register_memory(wrong, "DRAM")


def test_113_files_are_asked_about(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(bytes(1234))
    found = path.stat()
    with nixl_agent("files", instantiate_all=True) as agent:
        assert agent.query_memory([], "POSIX") == []
        rows = [(0, 0, 0, str(path)), (0, 0, 0, str(tmp_path / "absent")), (0, 0, 0, b"")]
        here, *absent = agent.query_memory(rows, "POSIX", "FILE")
        assert here == {"size": "1234", "mode": str(found.st_mode), "mtime": str(int(found.st_mtime))}
        assert absent == [None, None]
        assert agent.query_memory(agent.get_reg_descs(rows, "FILE"), "POSIX") == [here, None, None]
        with pytest.raises(nixlNotSupportedError):
            agent.query_memory(torch.zeros(3), "UCX")
        with pytest.raises(nixlNotSupportedError):
            agent.query_memory(rows, "POSIX", "DRAM")


def test_113_a_backend_that_was_not_created_is_a_value_error(agent):
    with pytest.raises(ValueError, match="'POSIX' wasn't created"):
        agent.query_memory([], "POSIX")


def test_descriptors_are_made_and_carried_as_bytes(agent):
    rows = agent.get_xfer_descs([(1, 2, 3)], "DRAM")
    blob = agent.get_serialized_descs(rows)
    assert isinstance(blob, bytes)
    assert agent.deserialize_descs(blob) == rows
    assert list(agent.get_remote_descs([(1, 2, 3, "other")], "DRAM")) == [(1, 2, 3, b"other")]
    with pytest.raises(nixlInvalidParamError, match="get_xfer_descs"):
        agent.get_serialized_descs([(1, 2, 3)])


def test_nothing_listens_for_one_host(monkeypatch):
    import psutil

    def listening():
        return {found.laddr for found in psutil.Process().net_connections("inet") if found.status == "LISTEN"}

    before = listening()
    with nixl_agent("quiet"):
        assert listening() == before
    with nixl_agent("listens", nixl_agent_config(enable_listen_thread=True, listen_port=0)) as agent:
        assert listening() - before == {("127.0.0.1", agent.listen_port)}


def test_an_agent_that_nobody_has_any_more_is_closed():
    agent = nixl_agent("left")
    inner = agent.agent
    socket_name = inner.planes.host.socket_name
    del agent, inner
    with open("/proc/net/unix") as sockets:
        assert socket_name not in sockets.read()


def test_a_closed_agent_says_so():
    agent = nixl_agent("closed")
    agent.close()
    agent.close()
    with pytest.raises(PenstockError, match="closed"):
        agent.get_new_notifs()
    with pytest.raises(PenstockError, match="closed"):
        agent.register_memory(torch.zeros(4))


def test_109_a_name_that_nobody_knows_can_be_removed(agent):
    agent.remove_remote_agent("nobody")
    agent.remove_remote_agent(b"nobody")
    with pytest.raises(nixlNotFoundError):
        agent.make_connection("nobody")
    with pytest.raises(nixlNotFoundError):
        agent.prep_xfer_dlist("nobody", [(1, 2, 0)], "DRAM")


def test_095_metadata_of_ones_own_name_is_not_loaded(agent):
    with pytest.raises(nixlInvalidParamError):
        agent.add_remote_agent(agent.get_agent_metadata())


def test_095_two_agents_of_one_name_are_not_mistaken_for_each_other(agent):
    first = nixl_agent("two")
    assert agent.add_remote_agent(first.get_agent_metadata()) == b"two"
    with nixl_agent("two") as second, first:
        with pytest.raises(nixlNotAllowedError, match="remove_remote_agent"):
            agent.add_remote_agent(second.get_agent_metadata())
        agent.remove_remote_agent("two")
        assert agent.add_remote_agent(second.get_agent_metadata()) == b"two"


def test_agents_that_nobody_closed_end_in_silence_with_their_process():
    """In dev mode Python complains of what is left open."""
    code = """
import numpy as np
from penstock.compat.nixl import nixl_agent, nixl_agent_config
buffer = np.zeros(64, np.uint8)
rows = [(buffer.ctypes.data, 64, 0, "")]
one = nixl_agent("one", nixl_agent_config(enable_listen_thread=True, listen_port=0))
two = nixl_agent("two")
for agent, other in ((one, two), (two, one)):
    agent.register_memory(rows, "DRAM")
    agent.add_remote_agent(other.get_agent_metadata())
two.fetch_remote_metadata("one", "127.0.0.1", one.listen_port)
handle = two.initialize_xfer("WRITE", [rows[0][:3]], [rows[0][:3]], "one")
assert two.transfer(handle) == "DONE"
"""
    for last in ("", "del two", "del handle, two, agent, other; import gc; gc.collect()"):
        done = subprocess.run(
            [sys.executable, "-X", "dev", "-W", "error", "-c", code + last], capture_output=True, text=True, timeout=60
        )
        assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(("variable", "value"), [("UCX_NET_DEVICES", "lo"), ("PENSTOCK_TRANSFER_NETWORK", "loopback")])
def test_a_network_is_opened_where_the_environment_says(monkeypatch, variable, value):
    monkeypatch.setenv(variable, value)
    try:
        agent = nixl_agent("on a network")
    except nixlBackendError as error:
        pytest.skip(f"no network plane here: {error}")
    with agent:
        assert agent.agent.has_network


def test_an_interface_that_there_is_not_is_refused(monkeypatch):
    monkeypatch.setenv("UCX_NET_DEVICES", "no-such0")
    with pytest.raises(nixlInvalidParamError, match="no-such0"):
        nixl_agent("nowhere")
