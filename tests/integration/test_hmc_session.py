"""HMC sessions between real processes: v0.1's calls by ip, v2's by ip and port."""

import inspect
import socket
import threading
import time

import numpy as np
import pytest

from hmc_party import Party
from leftovers import held, left_since
from penstock.compat import hmc
from penstock.compat.hmc.connections import Connections
from penstock.errors import ConfigError, PenstockError, TransportUnavailable
from penstock.transfer.network_plane import has_rdma_device
from puppet import PuppetError

torch = pytest.importorskip("torch")

IP = "127.0.0.1"
UCX, RDMA = hmc.ConnType.UCX, hmc.ConnType.RDMA
SIZE = 1 << 20
IMPORTS = """
import numpy as np
from penstock.compat import hmc
UCX = hmc.ConnType.UCX
"""
SESSION = f"sess = hmc.create_session(buffer_size={SIZE}, timeout_s=10)\n"
SERVER = SESSION + f"sess.init_server({IP!r}, 0, conn=UCX)\n"
needs_no_rdma = pytest.mark.skipif(has_rdma_device(), reason="this machine has RDMA")


@pytest.fixture(scope="module")
def party():
    with Party(IMPORTS) as process:
        yield process


@pytest.fixture
def server(party):
    """Another process with a session that listens, and nobody connected yet."""
    party.do(SERVER)
    yield party
    party.do("sess.close()")


@pytest.fixture
def doomed():
    """The same in a process of this test's own."""
    with Party(IMPORTS + SERVER) as process:
        yield process


@pytest.fixture
def client():
    with hmc.create_session(buffer_size=SIZE, timeout_s=10) as session:
        yield session


@pytest.fixture
def port(server, client):
    number = server.value("sess.ports[UCX]")
    client.connect(IP, number, conn=UCX)
    return number


def refused(call, status=hmc.Status.ERROR, match="failed"):
    with pytest.raises(hmc.HMCStatusError, match=match) as found:
        call()
    assert found.value.status is status


def test_e2_118_put_writes_these_bytes_of_the_peer_and_no_others(server, client, port):
    server.do("sess.buf.put(b'\\xee' * sess.buf.size)")
    client.buf.put(b"\xdd" * SIZE)
    expected = {"ours": bytearray(b"\xdd" * SIZE), "theirs": bytearray(b"\xee" * SIZE)}
    payloads = [b"hello hmc", np.arange(1000, dtype=np.int32)[::2], torch.arange(100, dtype=torch.bfloat16)]
    for bias, payload in zip((0, 4096, SIZE - 200), payloads, strict=True):
        client.put(IP, payload, bias=bias, conn=UCX)
        data = hmc.IOBuffer.create(0, 4096, hmc.MemoryType.CPU)
        raw = data.buffer_get_cpu(nbytes=data.put(payload))
        for each in expected.values():
            each[bias : bias + len(raw)] = raw
    assert client.buf.buffer_get_cpu(nbytes=SIZE) == expected["ours"]
    assert server.value("sess.buf.buffer_get_cpu(nbytes=sess.buf.size)") == expected["theirs"]


def test_e2_118_a_size_takes_a_part_and_nothing_is_put_of_nothing(server, client, port):
    client.put(IP, b"hello hmc", size=5, bias=10)
    client.put(IP, b"", bias=SIZE)
    assert server.value("sess.buf.buffer_get_cpu(nbytes=20)") == bytes(10) + b"hello" + bytes(5)


def test_e2_119_get_and_get_into_pull_the_same_offset(server, client, port):
    server.do("sess.buf.put(np.arange(1024, dtype=np.int32), offset=4096)")
    expected = np.arange(1024, dtype=np.int32)
    pulled = client.get(IP, 4096, bias=4096)
    assert isinstance(pulled, bytes)
    assert pulled == client.get(4096, IP, bias=4096, conn=UCX) == expected.tobytes()
    array, tensor = np.empty((32, 32), np.int32), torch.empty(1024, dtype=torch.int32)
    client.get_into(IP, array, bias=4096)
    client.get_into(IP, tensor, bias=4096)
    assert array.ravel().tolist() == tensor.tolist() == expected.tolist()
    part = bytearray(8)
    client.get_into(IP, part, bias=4096 + 4, size=4)
    assert part == b"\1\0\0\0\0\0\0\0"
    assert client.buf.buffer_get_cpu(nbytes=4096, offset=4096) == expected.tobytes()
    for bad in ((IP, IP), (4, 4), (IP, 4.0), (IP, True), (True, IP)):
        with pytest.raises(TypeError, match="whole number"):
            client.get(*bad)


def test_e2_119_destinations_are_looked_at_before_anything_moves(server, client, port):
    server.do("sess.buf.put(b'theirs')")
    client.buf.put(b"ours..")
    for bad, match in (
        (b"read-only", "read-only"),
        (np.empty(8)[::2], "not contiguous"),
        (torch.empty(2, 3).t(), "not contiguous"),
    ):
        with pytest.raises(ValueError, match=match):
            client.get_into(IP, bad)
    with pytest.raises(ValueError, match="Destination too small: have=3 need=4"):
        client.get_into(IP, bytearray(3), size=4)
    assert client.buf.buffer_get_cpu(nbytes=6) == b"ours.."


def test_e2_120_pushed_data_is_there_without_the_peer_doing_anything(server, client, port):
    client.put(IP, b"first!")  # a connection's beginning needs the other end
    server.stop()
    try:
        client.put(IP, b"pushed")
        assert client.get(IP, 6) == b"pushed"
    finally:
        server.go_on()
    assert server.value("bytes(sess.buf.buffer_get_cpu(nbytes=6))") == b"pushed"
    client.buf.put(b"pulled")
    server.do(f"dst = bytearray(6); sess.get_into({IP!r}, dst)")
    assert server.value("dst") == b"pulled"


def test_e2_121_whom_we_are_not_connected_with(server, client):
    number = server.value("sess.ports[UCX]")
    refused(lambda: client.put(IP, b"x"), match=r"not connected with 127.0.0.1 by UCX; connected with nobody")
    client.connect(IP, number, conn=UCX)
    client.connect(IP, number, UCX)  # again: nothing
    refused(lambda: client.put("10.1.2.3", b"x"), match=r"connected with 127.0.0.1:\d+ by UCX. The key is the ip")
    refused(lambda: client.put("localhost", b"x"))
    refused(lambda: client.put(IP, b"x", conn=RDMA), match="by RDMA; connected with .* by UCX.* and its conn")
    client.put(IP, b"x")
    client.disconnect(IP, UCX)
    client.disconnect(IP, UCX)  # again: nothing
    for call in (lambda: client.put(IP, b"x"), lambda: client.get(IP, 1), lambda: client.get_into(IP, bytearray(1))):
        refused(call, match="not connected with 127.0.0.1")
    assert client.check_conn(IP, number, UCX) is False
    client.connect(IP, number, conn=UCX)
    client.put(IP, b"again")
    assert server.value("bytes(sess.buf.buffer_get_cpu(nbytes=5))") == b"again"


def test_e2_121_a_server_learns_that_its_peer_has_left(server, client, port):
    client.buf.put(b"ours")
    assert server.value(f"sess.get({IP!r}, 4)") == b"ours"
    client.disconnect(IP, UCX)
    with pytest.raises(PuppetError, match=r"get failed \(status=ERROR\): not connected"):
        server.value(f"sess.get({IP!r}, 4)")


def test_e2_121_a_client_learns_that_its_server_was_killed(doomed, server, client):
    client.connect(IP, doomed.value("sess.ports[UCX]"), conn=UCX)
    client.put(IP, b"x")
    doomed.kill()
    refused(lambda: client.put(IP, b"x"), match="put failed")
    refused(lambda: client.put(IP, b"x"), match="not connected")
    client.connect(IP, server.value("sess.ports[UCX]"), conn=UCX)
    client.put(IP, b"new")
    assert server.value("bytes(sess.buf.buffer_get_cpu(nbytes=3))") == b"new"


def test_a_session_that_listens_waits_for_a_peer_that_has_yet_to_come(server, client):
    client.buf.put(b"late")
    waiting = server.begin("run", code=f"return acts.names['sess'].get({IP!r}, 4)")
    client.connect(IP, server.value("sess.ports[UCX]"), conn=UCX)
    assert waiting.result(10) == b"late"


def test_and_not_for_longer_than_its_timeout():
    with hmc.create_session(buffer_size=SIZE, timeout_s=0.2) as session:
        session.init_server(IP, 0, conn=UCX)
        started = time.monotonic()
        refused(lambda: session.get(IP, 1), match="not connected")
        assert 0.2 <= time.monotonic() - started < 5


def test_sizes_are_held_against_both_buffers(server, client):
    with hmc.create_session(buffer_size=2 * SIZE, timeout_s=10) as larger:
        larger.connect(IP, server.value("sess.ports[UCX]"), conn=UCX)
        larger.put(IP, bytes(SIZE))
        for call in (
            lambda: larger.put(IP, bytes(SIZE + 1)),
            lambda: larger.put(IP, b"x", bias=SIZE),
            lambda: larger.get(IP, 1, bias=SIZE),
            lambda: larger.get_into(IP, bytearray(2), bias=SIZE - 1),
            lambda: larger.write_to(IP, SIZE, 1, UCX),
            lambda: larger.read_from(IP, SIZE, 1, UCX),
        ):
            refused(call, match=r"don't fit the buffer of 127.0.0.1, which has 1048576")
        with pytest.raises(RuntimeError, match="Buffer overflow: offset 2097151 [+] 2 bytes"):
            larger.put(IP, b"xx", bias=2 * SIZE - 1)
        refused(lambda: larger.write_to(IP, 2 * SIZE, 1, UCX), match="don't fit our buffer")
        for bad in (None, "1", 1.5):
            with pytest.raises(TypeError):
                larger.write_to(IP, bad, 1, UCX)


def test_write_to_and_read_from_move_the_buffers_themselves(server, client, port):
    client.buf.put(b"0123456789")
    client.write_to(IP, 2, 5, UCX)
    assert server.value("bytes(sess.buf.buffer_get_cpu(nbytes=10))") == b"\0\0" + b"23456" + b"\0\0\0"
    server.do("sess.buf.put(b'abcdefghij')")
    client.read_from(IP, 4, 3, UCX)
    assert client.buf.buffer_get_cpu(nbytes=10) == b"0123efg789"


def test_e2_122_kinds_of_connection_when_none_is_given():
    def default(call):
        return inspect.signature(getattr(hmc.Session, call)).parameters["conn"].default

    by_rdma = ["connect", "init_server", "disconnect", "write_to", "read_from", "put_torch_cuda", "get_torch_cuda"]
    by_rdma += ["check_conn", "put_remote", "get_remote", "put_nb", "get_nb", "buffer_put_then_put"]
    by_rdma += ["get_then_buffer_get_into"]
    assert {call: default(call) for call in by_rdma} == dict.fromkeys(by_rdma, RDMA)
    assert [default(call) for call in ("put", "get_into", "get")] == [UCX] * 3


def test_e2_122_what_is_given_by_name_and_by_position():
    for call, positional in (("put", ["self", "ip", "data"]), ("get_into", ["self", "ip", "dest"])):
        parameters = inspect.signature(getattr(hmc.Session, call)).parameters.values()
        assert [each.name for each in parameters if each.kind is each.POSITIONAL_OR_KEYWORD] == positional
    defaults = {name: each.default for name, each in inspect.signature(hmc.create_session).parameters.items()}
    assert defaults["buffer_size"] == 128 << 20
    assert (defaults["device_id"], defaults["mem_type"], defaults["num_chs"]) == (0, hmc.MemoryType.CPU, 1)


@needs_no_rdma
def test_e2_122_rdma_where_there_is_none_says_what_to_use(server, client):
    for call in (
        lambda: client.connect(IP, server.value("sess.ports[UCX]")),
        lambda: client.init_server(IP, 0),
    ):
        refused(call, hmc.Status.UNSUPPORT, "no RDMA device; use conn=ConnType.UCX")
    for call in (client.send_data_to, client.recv_data_from):
        refused(lambda call=call: call(IP, 1, 0, 1, hmc.MemoryType.CPU), hmc.Status.UNSUPPORT, "use put and get")


def test_e2_123_close_server_frees_the_port_and_a_busy_one_is_an_error(server, client, port):
    refused(lambda: client.init_server(IP, port, conn=UCX), match=f"127.0.0.1:{port}: somebody listens there already")
    server.do("sess.close_server()")
    client.init_server(IP, port, conn=UCX)
    client.init_server(IP, port, conn=UCX)  # again: nothing
    client.put(IP, b"still")  # what was connected stays
    assert server.value("bytes(sess.buf.buffer_get_cpu(nbytes=5))") == b"still"
    client.close_server()
    client.close_server()
    with socket.create_server((IP, port)):
        pass
    refused(lambda: client.init_server("203.0.113.7", 0, conn=UCX), match="none of this machine's")


def test_connecting_where_nobody_listens_or_somebody_else_does(client):
    with socket.create_server((IP, 0)) as listener:
        unused = listener.getsockname()[1]
    refused(lambda: client.connect(IP, unused, conn=UCX), match="Connection refused.*; is init_server called there")

    def greet(listener):
        connection, _ = listener.accept()
        with connection:
            connection.recv(100)
            connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n" + bytes(200))

    with socket.create_server((IP, 0)) as listener:
        thread = threading.Thread(target=greet, args=(listener,))
        thread.start()
        refused(lambda: client.connect(IP, listener.getsockname()[1], conn=UCX))
        thread.join()
    with hmc.create_session(buffer_size=4096, timeout_s=0.2) as hasty, socket.create_server((IP, 0)) as silent:
        where = silent.getsockname()[1]
        refused(lambda: hasty.connect(IP, where, conn=UCX), hmc.Status.TIMEOUT)


@pytest.mark.parametrize("port", [0, 65536, -1])
def test_ports_are_numbers_from_1_to_65535(client, port):
    for call in (
        lambda: client.connect(IP, port, conn=UCX),
        lambda: client.disconnect(IP, port),
        lambda: client.check_conn(IP, port),
        lambda: client.put_remote(IP, port, 0, 0, 1),
    ):
        with pytest.raises(ValueError, match=rf"port is {port}; give 1 to 65535"):
            call()
    for bad in (None, "2025", 1.5, True):
        with pytest.raises(TypeError):
            client.check_conn(IP, bad)


def test_calls_have_two_forms_and_no_third(client):
    for call in (
        lambda: client.connect(),
        lambda: client.connect(IP),
        lambda: client.connect(IP, 1, peer_ip=IP),
        lambda: client.connect(peer_ip=IP, data_port=1),
        lambda: client.init_server(IP),
        lambda: client.init_server(bind_ip=IP, ucx_port=0),
    ):
        with pytest.raises(TypeError, match="takes ip, port and conn, or everything by name"):
            call()


@pytest.mark.parametrize(("theirs", "ours"), [("secret", ""), ("", "secret"), ("secret", "other")])
def test_who_doesnt_know_the_token_gets_nothing(theirs, ours):
    with (
        hmc.create_session(buffer_size=4096, token=theirs, timeout_s=10) as server,
        hmc.create_session(buffer_size=4096, token=ours, timeout_s=10) as client,
    ):
        server.init_server(IP, 0, conn=UCX)
        refused(lambda: client.connect(IP, server.ports[UCX], conn=UCX), match="token")


def test_the_token_may_come_from_the_environment(monkeypatch):
    monkeypatch.setenv("PENSTOCK_HMC_TOKEN", "secret")
    with (
        hmc.create_session(buffer_size=4096, timeout_s=10) as server,
        hmc.create_session(buffer_size=4096, token="secret", timeout_s=10) as client,
    ):
        server.init_server(IP, 0, conn=UCX)
        client.connect(IP, server.ports[UCX], conn=UCX)
        client.put(IP, b"let in")
        assert server.buf.buffer_get_cpu(nbytes=6) == b"let in"


def v2_server(folder):
    return SESSION + (
        f"sess.init_server(bind_ip={IP!r}, ucx_port=0, rdma_port=0, ctrl_tcp_port=0, self_id=0,"
        f" ctrl_uds_dir={str(folder)!r})\n"
    )


def test_e2_125_offsets_of_the_two_buffers_are_their_own(server, client, port):
    client.buf.put(b"0123456789")
    client.put_remote(IP, port, 2, 100, 5, UCX)
    assert server.value("bytes(sess.buf.buffer_get_cpu(nbytes=7, offset=99))") == b"\0" + b"23456" + b"\0"
    client.get_remote(IP, port, 1000, 101, 3, UCX)
    assert client.buf.buffer_get_cpu(nbytes=5, offset=999) == b"\0" + b"345" + b"\0"
    assert client.buffer_put_then_put(IP, port, b"abc", local_off=7, remote_off=200, conn=UCX) == 3
    got = bytearray(3)
    assert client.get_then_buffer_get_into(IP, port, got, local_off=50, remote_off=200, conn=UCX) == 3
    assert got == client.buf.buffer_get_cpu(nbytes=3, offset=50) == b"abc"
    for local, remote in ((SIZE, 0), (0, SIZE), (-1, 0), (0, -1)):
        for call in (client.put_remote, client.get_remote, client.put_nb, client.get_nb):
            refused(lambda call=call, local=local, remote=remote: call(IP, port, local, remote, 1, UCX), match="fit")


def test_e2_125_waiting_for_what_was_started(server, client, port):
    client.buf.put(b"0123456789")
    started = [client.put_nb(IP, port, at, 10 * at, 1, UCX) for at in range(10)]
    client.wait(started)
    assert server.value("bytes(sess.buf.buffer_get_cpu(nbytes=91)[::10])") == b"0123456789"
    client.wait(client.get_nb(IP, port, 100, 0, 91, UCX))
    assert client.buf.buffer_get_cpu(nbytes=91, offset=100)[::10] == b"0123456789"
    client.wait(0)
    client.wait([])
    client.wait([0, 0])
    for unknown in (77, [77], [0, 77]):
        refused(lambda unknown=unknown: client.wait(unknown), hmc.Status.NOT_FOUND, "no transfer has the number")


def test_v2_data_and_control_by_one_call(server, tmp_path):
    server.do("sess.close()\n" + v2_server(tmp_path))
    with hmc.create_session(buffer_size=SIZE, local_ip=IP, timeout_s=10) as client:
        data, control = server.value("[sess.ports[UCX], sess.ctrl_port]")
        assert (tmp_path / "hmc_ctrl_rank_0.sock").is_socket()
        address = {"peer_ip": IP, "data_port": data, "ctrl_tcp_port": control, "uds_dir": str(tmp_path), "conn": UCX}
        client.connect(peer_id=0, self_id=7, **address)
        client.connect(peer_id=0, self_id=7, **address)
        assert client.id == 7
        assert client.check_conn(IP, data, UCX) is True
        client.buffer_put_then_put(IP, data, b"data", conn=UCX)
        client.ctrl_send(0, 4)
        assert server.value("bytes(sess.buf.buffer_get_cpu(nbytes=sess.ctrl_recv(7)))") == b"data"
        server.do("sess.ctrl_send(7, 99)")
        assert client.ctrl_recv(0) == 99
        refused(lambda: client.ctrl_send(5, 1), hmc.Status.NOT_FOUND, "no control line with peer 5")
        refused(lambda: client.ctrl_recv(0, timeout_s=0.05), hmc.Status.TIMEOUT)
        client.disconnect(IP, data, UCX)
        assert client.check_conn(IP, data, UCX) is False


def test_v2_a_control_plane_that_cant_be_reached_leaves_no_half_connection(server, client):
    data = server.value("sess.ports[UCX]")
    with socket.create_server((IP, 0)) as listener:
        unused = listener.getsockname()[1]
    address = {"peer_ip": IP, "data_port": data, "ctrl_tcp_port": unused}
    refused(lambda: client.connect(peer_id=0, self_id=1, **address, conn=UCX), match="no control plane")
    assert client.check_conn(IP, data, UCX) is False


def test_v2_a_busy_control_port_is_an_error_and_nothing_is_left_open(tmp_path, client):
    with socket.create_server((IP, 0)) as busy:
        refused(
            lambda: client.init_server(
                bind_ip=IP, ucx_port=0, rdma_port=0, ctrl_tcp_port=busy.getsockname()[1], self_id=0,
                ctrl_uds_dir=str(tmp_path),
            ),
            match="somebody listens there already",
        )  # fmt: skip
    assert client.ports == {}
    assert not list(tmp_path.iterdir())


def test_v2_both_ends_serve_and_name_each_other_by_address_and_port(tmp_path):
    sides = []
    with hmc.create_session(buffer_size=SIZE, timeout_s=10) as one, hmc.create_session(buffer_size=SIZE) as two:
        for number, session in enumerate((one, two)):
            session.init_server(
                bind_ip=IP, ucx_port=0, rdma_port=0, ctrl_tcp_port=0, self_id=number, ctrl_uds_dir=str(tmp_path)
            )
            sides.append(session.ports[UCX])
        two.connect(
            peer_id=0, self_id=1, peer_ip=IP, data_port=sides[0], ctrl_tcp_port=1, uds_dir=str(tmp_path), conn=UCX
        )
        one.buffer_put_then_put(IP, sides[1], b"to two", conn=UCX)
        two.buffer_put_then_put(IP, sides[0], b"to one", local_off=500, remote_off=100, conn=UCX)
        assert two.buf.buffer_get_cpu(nbytes=6) == b"to two"
        assert one.buf.buffer_get_cpu(nbytes=6, offset=100) == b"to one"


def test_the_raw_communicator_answers_with_a_status(server):
    port = server.value("sess.ports[UCX]")
    buffer = hmc.IOBuffer.create(0, SIZE, hmc.MemoryType.CPU)
    raw = hmc.Communicator(buffer.core, 1)
    S = hmc.Status
    assert raw.checkConn(IP, UCX) is S.ERROR
    assert raw.connectTo(IP, port, UCX) is raw.connectTo(IP, port, UCX) is raw.checkConn(IP, UCX) is S.SUCCESS
    buffer.put(b"0123456789")
    assert raw.writeTo(IP, 2, 3, UCX) is raw.put(IP, port, 0, 100, 4, UCX) is S.SUCCESS
    assert server.value("bytes(sess.buf.buffer_get_cpu(nbytes=105))") == bytes(2) + b"234" + bytes(95) + b"0123" + b"\0"
    assert raw.get(IP, port, 50, 100, 4, UCX) is raw.readFrom(IP, 0, 2, UCX) is S.SUCCESS
    assert buffer.buffer_get_cpu(nbytes=4, offset=50) == b"0123"
    status, number = raw.putNB(IP, port, 0, 0, 1, UCX)
    assert status is raw.wait(number) is raw.wait([0]) is S.SUCCESS
    assert raw.getNB(IP, port, 0, SIZE, 1, UCX) == (S.ERROR, 0)
    assert "don't fit" in str(raw.last_error)
    assert raw.wait(12345) is S.NOT_FOUND
    assert raw.writeTo("10.1.2.3", 0, 1, UCX) is S.ERROR
    assert raw.writeTo(IP, 0, 1, 9) is S.INVALID_CONFIG
    assert raw.sendDataTo(IP, 0, 1, 1, UCX) is raw.recvDataFrom(IP, 0, 1, 1, 0, UCX) is S.UNSUPPORT
    assert raw.ctrlSend(3, 1) is S.NOT_FOUND
    assert raw.ctrlRecv(3) == (S.NOT_FOUND, 0)
    assert raw.disConnect(IP, UCX) is raw.disConnect(IP, UCX) is raw.closeServer() is S.SUCCESS
    raw.close()
    buffer.close()


def test_raw_control_planes_meet(tmp_path):
    def communicator():
        return hmc.Communicator(hmc.IOBuffer.create(0, 4096, hmc.MemoryType.CPU), timeout_s=10)

    one, two = communicator(), communicator()
    path = hmc.Communicator.udsPathFor(str(tmp_path), 5)
    S = hmc.Status
    assert one.initCtrlServer(IP, 0, path) is S.SUCCESS
    link = hmc.CtrlLink(hmc.CtrlTransport.UDS, uds_path=path)
    assert two.connectCtrl(5, 6, link) is two.ctrlSend(5, 1 << 40) is S.SUCCESS
    assert one.ctrlRecv(6) == (S.SUCCESS, 1 << 40)
    assert two.closeCtrlPeer(5) is one.closeCtrl() is S.SUCCESS
    assert two.ctrlSend(5, 1) is S.NOT_FOUND
    one.close()
    two.close()


def test_letting_go_of_a_session_ends_it(server):
    session = hmc.create_session(buffer_size=SIZE, timeout_s=10)
    session.init_server(IP, 0, conn=UCX)
    session.connect(IP, server.value("sess.ports[UCX]"), conn=UCX)
    mine = session.ports[UCX]
    del session
    with socket.create_server((IP, mine)):
        pass
    with pytest.raises(PuppetError, match="not connected"):
        server.value(f"sess.get({IP!r}, 1)")


def test_close_wakes_who_waits_and_every_use_after_it_says_so(client):
    client.init_server(IP, 0, conn=UCX)
    errors = []

    def wait():
        try:
            client.get(IP, 1)
        except PenstockError as error:
            errors.append(str(error))

    thread = threading.Thread(target=wait)
    thread.start()
    client.close()
    client.close()
    thread.join(10)
    assert len(errors) == 1 and "closed" in errors[0]
    for call in (lambda: client.put(IP, b"x"), lambda: client.connect(IP, 1, conn=UCX)):
        with pytest.raises(PenstockError, match="closed|refused"):
            call()


def test_connecting_and_leaving_a_hundred_times_leaves_nothing_behind(server, client):
    number = server.value("sess.ports[UCX]")
    census = []
    for at in range(120):
        client.connect(IP, number, conn=UCX)
        client.put(IP, b"%d" % at)
        client.disconnect(IP, UCX)
        if at in (20, 119):
            census.append(server.call("census"))
        if at == 20:
            ours = held()
    before, after = census
    assert after["fds"] <= before["fds"] + 3
    assert after["threads"] <= before["threads"] + 2
    left = left_since(ours)
    assert len(left) <= 3 and all(each.startswith("descriptor ") for each in left), left


def test_peers_that_only_come_and_go_are_forgotten(server):
    number = server.value("sess.ports[UCX]")
    for _ in range(30):
        with hmc.create_session(buffer_size=4096, timeout_s=10) as visitor:
            visitor.connect(IP, number, conn=UCX)
    assert server.value("len(sess.comm.connections._connections)") <= 2


def test_threads_that_use_one_session_dont_mix_their_bytes(client):
    """All of them at the same offset of one buffer, each to a peer of its own."""
    servers = [hmc.create_session(buffer_size=SIZE, timeout_s=10) for _ in range(3)]
    wrong = []

    def work(server, letter):
        for _ in range(60):
            client.buffer_put_then_put(IP, server.ports[UCX], letter * SIZE, conn=UCX)
            if server.buf.buffer_get_cpu(nbytes=SIZE) != letter * SIZE:
                wrong.append(letter)

    for server in servers:
        server.init_server(IP, 0, conn=UCX)
        client.connect(IP, server.ports[UCX], conn=UCX)
    threads = [threading.Thread(target=work, args=(servers[at], b"abc"[at : at + 1])) for at in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for server in servers:
        server.close()
    assert not wrong


def test_without_ucx_sessions_of_one_host_still_meet_by_its_address(monkeypatch, caplog):
    real = Connections._new_agent.__globals__["Agent"]

    def agent(name, *, network=None, **options):
        if network is not None:
            raise TransportUnavailable("no UCX was found")
        return real(name, **options)

    monkeypatch.setitem(Connections._new_agent.__globals__, "Agent", agent)
    address = own_address()
    if address is None:
        pytest.skip("this machine has no address but loopback")
    with (
        hmc.create_session(buffer_size=4096, timeout_s=10) as server,
        hmc.create_session(buffer_size=4096, timeout_s=10) as client,
    ):
        server.init_server(address, 0, conn=UCX)
        client.connect(address, server.ports[UCX], conn=UCX)
        client.put(address, b"near")
        assert server.buf.buffer_get_cpu(nbytes=4) == b"near"
    assert "only sessions on this host can be reached: no UCX was found" in caplog.text


def own_address():
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))
        except OSError:
            return None
        return probe.getsockname()[0]


@pytest.mark.parametrize("bad", [0, -1, float("nan"), "1", None])
def test_deadlines_are_seconds(bad):
    with pytest.raises((ConfigError, TypeError)):
        hmc.create_session(buffer_size=4096, timeout_s=bad)
