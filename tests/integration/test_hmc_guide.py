"""Programs of HMC's Python guide run with only their import line changed.

Where a folder of the guides is at hand (``PENSTOCK_GUIDES``, or ``../shared/guides`` beside this checkout), each of its
Python blocks runs verbatim: the server's in one process and the client's in another, on two hosts that have the
guide's very addresses, and once more on this host by loopback.
"""

import os
import re
from pathlib import Path

import pytest

from hmc_party import PATIENCE_S, Party
from penstock import _core
from penstock.testing.hosts import Network
from penstock.transfer.network_plane import has_rdma_device
from puppet import PuppetError
from server_process import free_ports

torch = pytest.importorskip("torch")

GUIDES = Path(os.environ.get("PENSTOCK_GUIDES") or Path(__file__).parents[3] / "shared" / "guides")
GUIDE = GUIDES / "hmc-python-guide.md"
SERVER_IP, CLIENT_IP = "192.168.2.244", "192.168.2.248"

pytestmark = pytest.mark.skipif(not GUIDE.is_file(), reason="no folder of guides; set PENSTOCK_GUIDES")


def blocks():
    """Its Python blocks, in order, with nothing changed but the import."""
    found = re.findall(r"^```python\n(.*?)^```", GUIDE.read_text(), re.MULTILINE | re.DOTALL)
    return [block.replace("import hmc", "from penstock.compat import hmc") for block in found]


def of_the_server(block):
    return "init_server" in block


def of_a_gpu(block):
    return "_cuda(" in block


def play(server, client, changes=()):
    """Runs the guide's blocks where they belong, and looks at both buffers after each."""

    def adapted(block):
        for old, new in changes:
            block = block.replace(old, new)
        return block

    found = [adapted(block) for block in blocks()]
    (serving,) = filter(of_the_server, found)
    for block in found[: found.index(serving)]:  # what every program begins with
        client.do(block)
        server.do(block)
    assert client.value("(sess.buf.size, hmc.Status.SUCCESS, hmc.MemoryType.CPU, hmc.ConnType.UCX)") == [
        1 << 27,
        0,
        1,
        1,
    ]
    server.do("import threading\nready = threading.Event()\ndef print(*words): ready.set()")
    serves = server.start(serving)  # it says that it is ready, and waits for the client
    assert server.value(f"ready.wait({PATIENCE_S})")
    steps = [block for block in found[found.index(serving) + 1 :] if not of_a_gpu(block)]
    assert len(steps) == 6
    client.do(steps[0])
    serves.result(PATIENCE_S)
    # The server reads the client's buffer over its own as soon as there is a connection, so by the guide it is a matter
    # of chance whether it sees what the client puts, and whether it writes over that: put again, and nothing is.
    client.do(next(line for line in steps[0].splitlines() if line.startswith("sess.put(")))
    assert server.value("sess.buf.buffer_get_cpu(nbytes=9)") == b"hello hmc"
    server.do(serving[serving.index("dst = ") :])  # by now the client's bytes are there
    assert server.value("dst[:16]") == b"hello hmc" + bytes(7)
    client.do(steps[1])
    assert server.value("sess.buf.buffer_get_cpu(nbytes=4096)") == client.value("x.tobytes()")
    client.do(steps[2])
    assert client.value("(y == x).all()") == 1
    client.do(steps[3])
    client.do(steps[4])
    assert client.value("torch.equal(t, out)")
    client.do(steps[5])
    assert server.value("sess.buf.buffer_get_cpu(nbytes=9, offset=4096)") == b"hello hmc"
    assert client.value("sess.get(server_ip, 9, bias=4096)") == b"hello hmc"


@pytest.fixture(scope="module")
def client():
    with Party() as process:
        yield process


def test_every_block_runs_on_one_host(client):
    here = [(SERVER_IP, "127.0.0.1"), (CLIENT_IP, "127.0.0.1"), ("port = 2025", f"port = {free_ports(1)[0]}")]
    with Party() as server:
        play(server, client, here)
        client.do("sess.close()")


@pytest.fixture
def two_hosts():
    """Two hosts with the guide's addresses."""
    with Network(2) as network:
        for host, address in zip(network.hosts, (SERVER_IP, CLIENT_IP), strict=True):
            for command in ("ip addr flush dev eth0", f"ip addr add {address}/24 dev eth0"):
                assert host.popen(command.split()).wait(20) == 0
        yield network.hosts


@pytest.mark.hosts
@pytest.mark.skipif(not hasattr(_core, "Network"), reason="the core has no network plane: no UCX when it was built")
def test_every_block_runs_between_two_hosts(two_hosts):
    with Party(host=two_hosts[0]) as server, Party(host=two_hosts[1]) as client:
        play(server, client)
        assert client.value("sess.comm.connections._connections[0].peer.transport").startswith("ucx:")


@pytest.mark.skipif(has_rdma_device(), reason="this machine has RDMA")
def test_the_blocks_for_gpus_say_what_to_use_where_there_is_no_rdma(client):
    sending, receiving = filter(of_a_gpu, blocks())
    assert "connect" in sending and "connect" not in receiving
    with pytest.raises(PuppetError, match=r"connect failed \(status=UNSUPPORT\).* use conn=ConnType.UCX"):
        client.do(sending)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_the_blocks_for_gpus_run():
    by = "RDMA" if has_rdma_device() else "UCX"
    (port,) = free_ports(1)
    changes = [(SERVER_IP, "127.0.0.1"), ("port = 2025", f"port = {port}"), ("ConnType.RDMA", f"ConnType.{by}")]
    sending, receiving = filter(of_a_gpu, blocks())
    with Party() as server, Party() as client:
        server.do("from penstock.compat import hmc\nsess = hmc.create_session(mem_type=hmc.MemoryType.DEFAULT)")
        server.do(f"sess.init_server('127.0.0.1', {port}, conn=hmc.ConnType.{by})")
        for block in (sending, receiving):
            for old, new in changes:
                block = block.replace(old, new)
            client.do(block)
        assert client.value("torch.equal(t, recv)")
