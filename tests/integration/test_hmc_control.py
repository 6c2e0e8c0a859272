"""The control plane of HMC's sessions: tags between real processes, by TCP and by Unix sockets."""

import os
import socket
import struct
import threading
import time
from contextlib import contextmanager

import pytest

from hmc_party import Party
from leftovers import held, left_since
from penstock.compat.hmc.control import Control, CtrlLink, choose_transport, uds_path
from penstock.compat.hmc.enums import CtrlTransport
from penstock.errors import (
    ClosedError,
    ConfigError,
    DeadlineExceeded,
    MetadataError,
    PeerLost,
    PeerRefused,
    PeerUnreachable,
    PenstockError,
    TransferError,
    UnknownPeer,
)
from waiting import wait_until

TCP, UDS = CtrlTransport.TCP, CtrlTransport.UDS


@contextmanager
def ending(*planes):
    try:
        yield planes
    finally:
        for plane in planes:
            plane.close()


def listening(self_id=0, path="", **settings):
    plane = Control(**{"timeout_s": 10.0, **settings})
    return plane, CtrlLink(UDS if path else TCP, "127.0.0.1", plane.listen(self_id, "127.0.0.1", 0, path), path)


@pytest.mark.parametrize("by", [TCP, UDS])
def test_e2_124_tags_are_first_in_first_out_for_each_peer(by, tmp_path):
    path = str(uds_path(str(tmp_path), 0)) if by is UDS else ""
    plane, link = listening(0, path)
    setup = f"""
from penstock.compat.hmc.control import Control, CtrlLink
from penstock.compat.hmc.enums import CtrlTransport
plane = Control(timeout_s=10)
link = CtrlLink(CtrlTransport.{by.name}, "127.0.0.1", {link.port}, {path!r})
"""
    with ending(plane), Party(setup) as one, Party(setup) as two:
        sending = []
        for peer, process in ((7, one), (1 << 31, two)):
            process.do(f"plane.connect(0, {peer}, link)")
            sending.append(process.start(f"for n in range(2000): plane.send(0, n * n + {peer})"))
        for peer in (1 << 31, 7):  # whoever is first, the other's wait
            assert [plane.receive(peer) for _ in range(2000)] == [n * n + peer for n in range(2000)]
        for each in sending:
            each.result(10)
        for tag in (0, 5, (1 << 64) - 1):
            plane.send(7, tag)
        assert one.value("[plane.receive(0) for _ in range(3)]") == [0, 5, (1 << 64) - 1]


def test_e2_124_an_unknown_peer_fails():
    plane, link = listening(0, timeout_s=0.2)
    other = Control(timeout_s=10.0)
    with ending(plane, other):
        other.connect(0, 4, link)
        for call in (lambda: other.send(9, 1), lambda: other.receive(9), lambda: plane.send(9, 1)):
            started = time.monotonic()
            with pytest.raises(UnknownPeer, match="no control line with peer 9; there are:"):
                call()
            assert time.monotonic() - started < 5
        with pytest.raises(UnknownPeer):
            plane.receive(9)  # it may still come, so it is waited for
        with pytest.raises(DeadlineExceeded):
            other.receive(0, timeout_s=0.05)


def test_e2_124_the_path_of_a_peers_socket():
    assert str(uds_path("/run/x", 3)) == "/run/x/hmc_ctrl_rank_3.sock"
    for bad in (-1, 1 << 32):
        with pytest.raises(ConfigError):
            uds_path("/tmp", bad)
    with pytest.raises(TypeError):
        uds_path("/tmp", "3")


@pytest.mark.parametrize(
    ("variable", "local", "peer", "chosen"),
    [
        (None, "10.0.0.1", "10.0.0.1", UDS),
        (None, "10.0.0.1", "10.0.0.2", TCP),
        (None, "", "10.0.0.2", TCP),
        (None, "", "", TCP),
        (None, "0.0.0.0", "0.0.0.0", TCP),
        ("tcp", "10.0.0.1", "10.0.0.1", TCP),
        ("UDS", "10.0.0.1", "10.0.0.2", UDS),
    ],
)
def test_e2_124_how_tcp_or_a_unix_socket_is_chosen(variable, local, peer, chosen, monkeypatch):
    monkeypatch.delenv("CTRL_TRANSPORT", raising=False)
    if variable:
        monkeypatch.setenv("CTRL_TRANSPORT", variable)
    assert choose_transport(local, peer) is chosen


def test_a_transport_that_there_is_none_of_is_refused(monkeypatch):
    monkeypatch.setenv("CTRL_TRANSPORT", "pigeon")
    with pytest.raises(ConfigError, match=r"CTRL_TRANSPORT='pigeon'; choose one of tcp, uds"):
        choose_transport("", "")


def test_frames_are_those_that_hmc_sends():
    plane, link = listening(3)
    with ending(plane), socket.create_connection((link.ip, link.port)) as peer:
        peer.sendall(struct.pack("=HHII", 2, 0x8000, 4, 77))
        peer.sendall(struct.pack("=HHIQ", 1, 0, 8, 1234567890123))
        assert plane.receive(77) == 1234567890123
        plane.send(77, 42)
        assert peer.recv(100) == struct.pack("=HHIQ", 1, 0, 8, 42)


def test_a_new_hello_of_an_id_replaces_the_old_line_and_wakes_who_waits():
    plane, link = listening(3)
    got = []
    with ending(plane), socket.create_connection((link.ip, link.port)) as old:
        old.sendall(struct.pack("=HHII", 2, 0x8000, 4, 77) + struct.pack("=HHIQ", 1, 0, 8, 1))
        assert plane.receive(77) == 1
        waiting = threading.Thread(target=lambda: got.append(plane.receive(77)))
        waiting.start()
        with socket.create_connection((link.ip, link.port)) as new:
            new.sendall(struct.pack("=HHII", 2, 0x8000, 4, 77) + struct.pack("=HHIQ", 1, 0, 8, 2))
            waiting.join(10)
            assert got == [2]
            old.settimeout(5)
            assert old.recv(1) == b""


@pytest.mark.parametrize(
    "garbage",
    [
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        struct.pack("=HHI", 2, 0x8000, 1 << 30),
        struct.pack("=HHII", 1, 0, 4, 77),
        struct.pack("=HHIH", 2, 0x8000, 2, 7),
    ],
)
def test_strangers_are_let_out_again_and_nobody_else_notices(garbage):
    plane, link = listening(3)
    friend = Control(timeout_s=10.0)
    with ending(plane, friend), socket.create_connection((link.ip, link.port), timeout=10) as stranger:
        stranger.sendall(garbage)
        with_error = b""
        while some := stranger_read(stranger):
            with_error += some
        assert plane.peers == []
        friend.connect(3, 1, link)
        friend.send(3, 5)
        assert plane.receive(1) == 5


def stranger_read(connection):
    try:
        return connection.recv(100)
    except ConnectionResetError:
        return b""


def test_what_is_no_tag_ends_the_line():
    plane, link = listening(3)
    with ending(plane), socket.create_connection((link.ip, link.port)) as peer:
        peer.sendall(struct.pack("=HHII", 2, 0x8000, 4, 77) + struct.pack("=HHII", 1, 0, 4, 0))
        with pytest.raises(MetadataError, match="peer 77 sent kind 1 of 4 bytes, not a tag"):
            plane.receive(77)
        assert plane.peers == []


def test_what_was_sent_before_the_end_is_still_received():
    plane, link = listening(0)
    with (
        ending(plane),
        Party("from penstock.compat.hmc.control import *\nplane = Control(timeout_s=10)") as other,
    ):
        other.do(f"plane.connect(0, 4, CtrlLink(ip='127.0.0.1', port={link.port}))")
        other.do("for n in range(100): plane.send(0, n)")
        other.kill()
        assert [plane.receive(4) for _ in range(100)] == list(range(100))
        with pytest.raises(PeerLost, match="control of peer 4 closed the line, or ended"):
            plane.receive(4)


@pytest.mark.parametrize(("theirs", "ours"), [("secret", ""), ("", "secret"), ("secret", "another")])
def test_who_doesnt_know_the_token_is_refused_and_told_so(theirs, ours):
    plane, link = listening(0, token=theirs)
    other = Control(token=ours, timeout_s=10.0)
    with ending(plane, other):
        with pytest.raises(PeerRefused, match="token"):
            other.connect(0, 1, link)
        assert other.peers == []
        assert not (theirs and plane.peers)


@pytest.mark.parametrize("by", [TCP, UDS])
def test_who_knows_the_token_is_let_in(by, tmp_path):
    plane, link = listening(0, str(tmp_path / "socket") if by is UDS else "", token="secret")
    other = Control(token="secret", timeout_s=10.0)
    with ending(plane, other):
        other.connect(0, 1, link)
        other.send(0, 9)
        assert plane.receive(1) == 9


def test_hmcs_plain_hello_is_not_enough_where_there_is_a_token():
    plane, link = listening(3, token="secret")
    with ending(plane), socket.create_connection((link.ip, link.port), timeout=10) as peer:
        peer.sendall(struct.pack("=HHII", 2, 0x8000, 4, 77))
        while stranger_read(peer):
            pass
        assert plane.peers == []


def test_connecting_twice_is_a_no_op_and_the_wrong_id_is_found_out():
    plane, link = listening(0)
    other = Control(timeout_s=10.0)
    with ending(plane, other):
        other.connect(0, 1, link)
        other.send(0, 5)
        other.connect(0, 1, link)
        assert plane.receive(1) == 5
        with pytest.raises(PeerRefused, match="the peer there is 0, not 6"):
            other.connect(6, 1, link)
        with pytest.raises(ConfigError, match="self_id is 2, and this session is 1 already"):
            other.connect(0, 2, link)


def test_two_that_connect_with_each_other_at_once_lose_no_tag():
    for _ in range(20):
        (one, to_one), (two, to_two) = listening(1), listening(2)
        with ending(one, two):
            errors, together = [], threading.Barrier(2)

            def meet(plane, peer, me, link, together=together, errors=errors):
                try:
                    together.wait(10)
                    plane.connect(peer, me, link)
                    for tag in range(20):
                        plane.send(peer, tag)
                except (PenstockError, threading.BrokenBarrierError) as error:
                    errors.append(error)

            threads = [
                threading.Thread(target=meet, args=(one, 2, 1, to_two)),
                threading.Thread(target=meet, args=(two, 1, 2, to_one)),
            ]
            for thread in threads:
                thread.start()
            assert [one.receive(2) for _ in range(20)] == [two.receive(1) for _ in range(20)] == list(range(20))
            for thread in threads:
                thread.join()
            assert not errors


def test_busy_ports_and_paths_are_errors_and_free_again_after_close(tmp_path):
    path = str(tmp_path / "socket")
    plane, link = listening(0, path)
    other = Control(timeout_s=10.0)
    with ending(plane, other):
        with pytest.raises(TransferError, match=rf"127.0.0.1:{link.port}: somebody listens there already"):
            other.listen(1, "127.0.0.1", link.port)
        with pytest.raises(TransferError, match="socket: somebody listens there already"):
            other.listen(1, "127.0.0.1", 0, path)
        plane.close()
        assert not os.path.exists(path)
        other.listen(1, "127.0.0.1", link.port, path)
    with ending(Control()) as (third,), pytest.raises(TransferError, match="none of this machine's"):
        third.listen(0, "203.0.113.7", 0)


def test_a_socket_whose_owner_was_killed_is_replaced(tmp_path):
    path = str(tmp_path / "socket")
    with Party("from penstock.compat.hmc.control import *\nplane = Control()") as dying:
        dying.do(f"plane.listen(0, '127.0.0.1', 0, {path!r})")
        dying.kill()
    assert os.path.exists(path)
    plane, link = listening(0, path)
    other = Control(timeout_s=10.0)
    with ending(plane, other):
        other.connect(0, 1, link)


def test_a_file_in_the_way_of_a_socket_is_left_alone(tmp_path):
    path = tmp_path / "socket"
    path.write_text("mine")
    with ending(Control()) as (plane,), pytest.raises(TransferError):
        plane.listen(0, "127.0.0.1", 0, str(path))
    assert path.read_text() == "mine"


def test_sockets_are_this_users_alone(tmp_path):
    plane, link = listening(0, str(tmp_path / "socket"))
    with ending(plane):
        assert os.stat(link.uds_path).st_mode & 0o077 == 0


def test_nobody_there_says_where_and_what_to_do(tmp_path):
    with ending(Control(timeout_s=1.0)) as (plane,):
        with pytest.raises(PeerUnreachable, match=r"no control plane at .*socket: .*CTRL_TRANSPORT=tcp"):
            plane.connect(0, 1, CtrlLink(UDS, uds_path=str(tmp_path / "socket")))
        with socket.create_server(("127.0.0.1", 0)) as silent, pytest.raises(DeadlineExceeded):
            plane.connect(0, 1, CtrlLink(TCP, "127.0.0.1", silent.getsockname()[1]))


def test_close_wakes_whoever_waits():
    plane, link = listening(0, timeout_s=60.0)
    other = Control(timeout_s=60.0)
    with ending(plane, other):
        other.connect(0, 1, link)
        errors = []

        def wait(peer):
            try:
                plane.receive(peer)
            except PenstockError as error:
                errors.append(type(error))

        threads = [threading.Thread(target=wait, args=(peer,)) for peer in (1, 2)]
        for thread in threads:
            thread.start()
        plane.close()
        for thread in threads:
            thread.join(10)
            assert not thread.is_alive()
        assert sorted(error.__name__ for error in errors) in (["ClosedError", "PeerLost"], ["ClosedError"] * 2)
        with pytest.raises(ClosedError):
            plane.send(1, 1)


def test_a_thousand_peers_leave_nothing_behind():
    plane, link = listening(0)
    with ending(plane):
        for round_ in range(1000):
            other = Control(timeout_s=10.0)
            other.connect(0, 1, link)
            if round_ == 100:
                before = held()
            other.close()
        wait_until(lambda: all(each.startswith("descriptor ") for each in left_since(before)), "its threads end")
        assert len(left_since(before)) <= 2


@pytest.mark.parametrize("tag", [-1, 1 << 64, "7", 1.5, None, True])
def test_a_tag_is_a_number_of_64_bits(tag):
    with ending(Control()) as (plane,), pytest.raises((TypeError, ConfigError), match="a tag is"):
        plane.send(0, tag)
