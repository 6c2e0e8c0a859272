"""What HMC sessions say to each other when they meet: any bytes at all are an offer, or a typed error."""

import socket
import struct
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.compat.hmc import greeting, rendezvous
from penstock.compat.hmc.enums import ConnType, MemoryType
from penstock.compat.hmc.line import INT, STRUCT, Frame, Line, deadline_after
from penstock.compat.hmc.rendezvous import Offer
from penstock.errors import DeadlineExceeded, MetadataError, PeerLost, PeerRefused, PenstockError, TransferError

OFFERS = st.builds(
    Offer,
    conn=st.sampled_from(ConnType),
    mem_type=st.sampled_from(MemoryType),
    port=st.integers(0, 65535),
    device_id=st.integers(0, 7),
    address=st.integers(0, (1 << 63) - 1),
    size=st.integers(1, 1 << 63),
    metadata=st.binary(max_size=64),
)


def pair():
    left, right = socket.socketpair()
    return Line(left, "left's peer"), Line(right, "right's peer")


@given(OFFERS)
def test_an_offer_is_the_same_after_its_way(offer):
    assert Offer.from_bytes(offer.to_bytes()) == offer


@given(st.binary(max_size=80))
def test_any_bytes_are_an_offer_or_an_error(data):
    try:
        offer = Offer.from_bytes(data)
    except MetadataError:
        return
    assert offer.to_bytes() == data


@given(st.binary(max_size=200), st.sampled_from(["", "secret"]))
def test_any_bytes_let_nobody_in(data, token):
    ours, theirs = pair()
    admitted = []
    theirs._socket.sendall(data)
    theirs._socket.shutdown(socket.SHUT_WR)
    try:
        said, wanted = greeting.hello(ours, deadline_after(5))
        greeting.answer(ours, b"me", token, deadline_after(5), admit=lambda: not admitted.append(said), wanted=wanted)
    except TransferError:
        assert not admitted
    else:
        assert not token  # what happens to begin with HELLO is one
    finally:
        ours.close()
        theirs.close()


@given(st.binary(max_size=200), st.sampled_from(["", "secret"]))
def test_any_answer_is_a_welcome_or_an_error(data, token):
    ours, theirs = pair()
    theirs._socket.sendall(data)
    theirs._socket.shutdown(socket.SHUT_WR)
    try:
        greeting.dial(ours, b"me", token, deadline_after(5))
    except PenstockError:
        pass
    else:
        assert not token
    finally:
        ours.close()
        theirs.close()


def test_a_dialer_whose_proof_is_wrong_is_never_admitted():
    ours, theirs = pair()
    admitted = []
    theirs.send(Frame(STRUCT, greeting.HELLO | greeting.ANSWER, b"me"), deadline_after(5))
    theirs.send(Frame(STRUCT, greeting.PROOF, bytes(16) + bytes(32)), deadline_after(5))
    assert greeting.hello(ours, deadline_after(5)) == (b"me", True)
    with pytest.raises(PeerRefused, match="doesn't know the token"):
        greeting.answer(ours, b"us", "secret", deadline_after(5), admit=lambda: not admitted.append(1))
    assert not admitted
    assert theirs.receive(deadline_after(5), limit=100).flags == greeting.CHALLENGE
    assert theirs.receive(deadline_after(5), limit=100).flags == greeting.REFUSED
    ours.close()
    theirs.close()


def test_an_answerer_that_doesnt_know_the_token_is_found_out():
    ours, theirs = pair()
    theirs.send(Frame(STRUCT, greeting.CHALLENGE, bytes(16)), deadline_after(5))
    theirs.send(Frame(STRUCT, greeting.WELCOME, b"us" + bytes(32)), deadline_after(5))
    with pytest.raises(PeerRefused, match="doesn't know this session's token"):
        greeting.dial(ours, b"me", "secret", deadline_after(5))
    ours.close()
    theirs.close()


def test_a_proof_is_good_for_one_meeting_only():
    nonces = []
    for _ in range(2):
        ours, theirs = pair()
        theirs.send(Frame(STRUCT, greeting.PROOF, bytes(48)), deadline_after(5))
        with pytest.raises(PeerRefused):
            greeting.answer(ours, b"us", "secret", deadline_after(5), admit=lambda: True)
        nonces.append(theirs.receive(deadline_after(5), limit=100).payload)
        ours.close()
        theirs.close()
    assert nonces[0] != nonces[1]


@given(st.lists(st.binary(max_size=3000), min_size=1, max_size=10), st.integers(1, 500))
def test_frames_arrive_whole_however_they_are_cut(payloads, piece):
    ours, theirs = pair()
    wire = b"".join(map(_frame, payloads))

    def send():
        for at in range(0, len(wire), piece):
            theirs._socket.setblocking(True)
            theirs._socket.sendall(wire[at : at + piece])

    sender = threading.Thread(target=send)
    sender.start()
    found = [ours.receive(deadline_after(10), limit=3000) for _ in payloads]
    sender.join()
    assert found == [Frame(STRUCT, 7, payload) for payload in payloads]
    theirs.close()
    assert ours.ended
    ours.close()


def _frame(payload):
    return struct.pack("=HHI", STRUCT, 7, len(payload)) + payload


def test_a_deadline_in_the_middle_of_a_frame_loses_nothing():
    ours, theirs = pair()
    whole = _frame(b"0123456789")
    theirs._socket.sendall(whole[:11])
    with pytest.raises(DeadlineExceeded, match="nothing came from left's peer until the deadline"):
        ours.receive(deadline_after(0.01), limit=100)
    theirs._socket.sendall(whole[11:])
    assert ours.receive(deadline_after(5), limit=100).payload == b"0123456789"
    ours.close()
    theirs.close()


def test_a_frame_beyond_the_limit_ends_the_line_unread():
    ours, theirs = pair()
    theirs.send(Frame(INT, 0, bytes(101)), deadline_after(5))
    with pytest.raises(MetadataError, match="a frame of 101 bytes, where at most 100 are expected"):
        ours.receive(deadline_after(5), limit=100)
    assert ours.ended and theirs.ended
    theirs.close()


def test_a_peer_that_takes_nothing_ends_at_the_deadline_and_the_line_with_it():
    ours, theirs = pair()
    with pytest.raises(DeadlineExceeded, match="took no more frames"):
        ours.send(Frame(STRUCT, 0, bytes(1 << 24)), deadline_after(0.05))
    with pytest.raises(PeerLost, match="the line to left's peer was closed"):
        ours.send(Frame(INT, 0, b""), deadline_after(5))
    theirs.close()


def test_sessions_of_another_version_are_refused_and_told_so():
    ours, theirs = pair()
    theirs.send(Frame(STRUCT, greeting.HELLO | greeting.ANSWER, b"penstock hmc 2"), deadline_after(5))
    with pytest.raises(PeerRefused, match="is b'penstock hmc 2', this is b'penstock hmc 1'"):
        rendezvous.welcome(ours, "", deadline_after(5))
    assert b"use the same version" in theirs.receive(deadline_after(5), limit=1000).payload
    ours.close()
    theirs.close()
