"""HMC sessions on different hosts: data by UCX, control by TCP, lines that are cut; and processes that fork."""

import pytest

from hmc_party import Party
from penstock import _core
from penstock.testing.hosts import Network
from puppet import PuppetError

pytestmark = [
    pytest.mark.hosts,
    pytest.mark.skipif(not hasattr(_core, "Network"), reason="the core has no network plane: no UCX when it was built"),
]

SIZE = 32 << 20
IMPORTS = """
import numpy as np
from penstock.compat import hmc
UCX = hmc.ConnType.UCX
data = np.random.default_rng(7).integers(0, 256, 20_000_000, dtype=np.uint8)
"""


@pytest.fixture(scope="module")
def network():
    with Network(2) as made:
        yield made


@pytest.fixture(scope="module")
def parties(network):
    with Party(IMPORTS, host=network.hosts[0]) as one, Party(IMPORTS, host=network.hosts[1]) as two:
        yield one, two


@pytest.fixture
def pair(network, parties):
    """A server on one host and a client on the other, connected: both parties, and the server's address and ports."""
    server, client = parties
    ip = network.hosts[0].address
    server.do(f"sess = hmc.create_session(buffer_size={SIZE}, timeout_s=10)")
    server.do(f"sess.init_server(bind_ip={ip!r}, ucx_port=0, rdma_port=0, ctrl_tcp_port=0, self_id=0)")
    port, control = server.value("(sess.ports[UCX], sess.ctrl_port)")
    client.do(f"sess = hmc.create_session(buffer_size={SIZE}, timeout_s=10, local_ip={network.hosts[1].address!r})")
    client.do(
        f"sess.connect(peer_id=0, self_id=1, peer_ip={ip!r}, data_port={port}, ctrl_tcp_port={control}, conn=UCX)"
    )
    yield server, client, ip, port
    network.heal()
    for party in parties:
        party.do("sess.close()")


def test_data_goes_by_ucx_and_tags_by_tcp(pair, network):
    server, client, ip, port = pair
    client.do(f"sess.put({ip!r}, data, bias=12345)")
    assert client.value("sess.comm.connections._connections[0].peer.transport").startswith("ucx:")
    assert server.value("(np.asarray(sess.buf.core.shared)[12345:][:data.size] == data).all()")
    client.do(f"back = np.empty_like(data); sess.get_into({ip!r}, back, bias=12345)")
    assert client.value("(back == data).all()")
    client.do(f"started = [sess.put_nb({ip!r}, {port}, 12345 + n, n * 100, 1, UCX) for n in range(200)]")
    client.do("sess.wait(started); sess.ctrl_send(0, 77)")
    assert server.value("sess.ctrl_recv(1)") == 77
    assert server.value("(np.asarray(sess.buf.core.shared)[:20000:100] == data[:200]).all()")
    server.do(f"sess.buf.put(b'by the server'); sess.put({network.hosts[1].address!r}, b'by the server')")
    assert client.value("sess.buf.buffer_get_cpu(nbytes=13)") == b"by the server"


def test_offsets_beyond_a_buffer_are_refused_and_sizes_are_held(pair):
    _, client, ip, port = pair
    with pytest.raises(PuppetError, match=f"don't fit the buffer of {ip}"):
        client.do(f"sess.put_remote({ip!r}, {port}, 0, {SIZE - 1}, 2, UCX)")
    client.do(f"sess.put_remote({ip!r}, {port}, 0, {SIZE - 1}, 1, UCX)")


def test_a_partition_is_a_timeout_and_when_it_heals_the_session_goes_on(pair, network):
    server, client, ip, _ = pair
    client.do(f"sess.put({ip!r}, data)")
    client.do("sess.comm.connections.timeout_s = sess._timeout_s = 1.0")
    client.do("for agent in sess.comm.connections._agents.values(): agent.timeout_s = 1.0")
    network.partition([network.hosts[0]], [network.hosts[1]])
    with pytest.raises(PuppetError, match=r"put failed \(status=(TIMEOUT|ERROR)\)"):
        client.do(f"sess.put({ip!r}, data)")
    network.heal()
    client.do("for agent in sess.comm.connections._agents.values(): agent.timeout_s = 20.0")
    client.do(f"sess.put({ip!r}, b'after.')")
    assert server.value("sess.buf.buffer_get_cpu(nbytes=6)") == b"after."


def test_a_server_that_is_killed_is_an_error_soon(network, parties):
    client = parties[1]
    ip = network.hosts[0].address
    with Party(IMPORTS, host=network.hosts[0]) as doomed:
        doomed.do(f"sess = hmc.create_session(buffer_size={SIZE}, timeout_s=10)")
        doomed.do(f"sess.init_server({ip!r}, 0, conn=UCX)")
        client.do(f"sess = hmc.create_session(buffer_size={SIZE}, timeout_s=10)")
        client.do(f"sess.connect({ip!r}, {doomed.value('sess.ports[UCX]')}, conn=UCX)")
        client.do(f"sess.put({ip!r}, data)")
        doomed.kill()
        for _ in range(2):
            with pytest.raises(PuppetError, match=r"put failed \(status=ERROR\)"):
                client.do(f"sess.put({ip!r}, data)")
        client.do("sess.close()")


def test_a_forked_child_leaves_its_parents_sessions_alone(pair, network):
    server, client, ip, port = pair
    leave = """
import gc, os, sys
child = os.fork()
if child == 0:
    try:
        sess.close()
        del sess
        gc.collect()
    finally:
        os._exit(0)
"""
    for party in (client, server):
        party.do(leave)
        assert party.value("os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])") == 0
    client.do(f"sess.put({ip!r}, b'still here'); sess.ctrl_send(0, 5)")
    assert server.value("sess.ctrl_recv(1)") == 5
    assert server.value("sess.buf.buffer_get_cpu(nbytes=10)") == b"still here"
    client.do(f"other = hmc.create_session(buffer_size=4096, timeout_s=10); other.connect({ip!r}, {port}, conn=UCX)")
    client.do("other.close()")
