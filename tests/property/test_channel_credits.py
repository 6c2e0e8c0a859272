"""Flow control of a channel as a model: whatever the order of events, no slot is filled before it was freed."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.errors import MetadataError
from penstock.transfer.channel.credits import Allowance, Window
from penstock.transfer.channel.notes import Kind, Note, Offer, stride_of
from penstock.transfer.descriptors import Descriptors
from penstock.transfer.mail import new_topic

EVENTS = ["send", "land", "take", "free", "grant", "deliver", "again"]


class Model:
    """Two ends and what is between them: messages under way that land in any order, grants that come late or twice."""

    def __init__(self, slots):
        self.slots = slots
        self.window, self.allowance = Window(slots), Allowance(slots)
        self.under_way, self.held, self.grants, self.old = [], [], [], [0]
        self.ring = [None] * slots
        self.taken = 0

    def possible(self):
        return {
            "send": self.allowance.left > 0,
            "land": bool(self.under_way),
            "take": True,
            "free": bool(self.held),
            "grant": self.window.owed > 0,
            "deliver": bool(self.grants),
            "again": True,
        }

    def do(self, event, pick):
        if event == "send":
            sequence = self.allowance.take()
            slot = sequence % self.slots
            assert self.ring[slot] is None, f"message {sequence} fills a slot that holds {self.ring[slot]}"
            self.ring[slot] = sequence
            self.under_way.append(sequence)
        elif event == "land":
            sequence = self.under_way.pop(pick % len(self.under_way))
            self.window.arrive(sequence, sequence * 3)
        elif event == "take":
            found = self.window.take()
            if found is not None:
                assert found == (self.taken, self.taken * 3)
                self.held.append(self.taken)
                self.taken += 1
        elif event == "free":
            sequence = self.held.pop(pick % len(self.held))
            self.ring[sequence % self.slots] = None
            self.window.free(sequence)
            self.window.free(sequence)
        elif event == "grant":
            self.grants.append(self.window.grant())
        elif event == "deliver":
            self.old.append(self.grants.pop(0))
            self.allowance.grant(self.old[-1])
        else:
            self.allowance.grant(self.old[pick % len(self.old)])
        assert self.window.held_count == len(self.held)


@given(
    st.integers(1, 5), st.lists(st.tuples(st.sampled_from(EVENTS), st.integers(0, 9)), max_size=120), st.integers(0, 9)
)
def test_no_slot_is_filled_twice_and_it_never_gets_stuck(slots, events, pick):
    model = Model(slots)
    for event, which in events:
        if model.possible()[event]:
            model.do(event, which)
    # Whatever happened: when all is delivered and freed, the sender has the whole ring again.
    for event in ("land", "take", "free", "grant", "deliver"):
        for _ in range(2 * slots + len(model.grants)):
            if model.possible()[event]:
                model.do(event, pick)
    assert model.allowance.left == slots and model.taken == model.allowance.next


def test_what_a_peer_out_of_its_mind_may_not_do():
    window, allowance = Window(2), Allowance(2)
    with pytest.raises(MetadataError, match="message 0 arrived, but only those below 0 were granted"):
        window.arrive(0, 1)
    window.grant()
    window.arrive(1, 1)
    assert window.take() is None
    window.arrive(0, 1)
    assert window.take() == (0, 1)
    for sequence in (0, 1):
        with pytest.raises(MetadataError, match=f"message {sequence} arrived twice"):
            window.arrive(sequence, 1)
    with pytest.raises(MetadataError, match="only those below 2 were granted"):
        window.arrive(2, 1)
    with pytest.raises(MetadataError, match="a grant of 3 after 0 messages into 2 slots; at most 2"):
        allowance.grant(3)
    window.free(7)
    assert window.limit == 2


def offer(slots=4, slot_bytes=100, length=None, topic=None, registered=True):
    length = slots * stride_of(slot_bytes) if length is None else length
    registration = ([1], [2]) if registered else ()
    ring = Descriptors("r", "DRAM", [(4096, length)], *registration)
    return Offer(topic or new_topic(), slots, slot_bytes, ring, b"meta")


def test_offers_and_notes_round_trip():
    assert Offer.from_bytes((one := offer()).to_bytes()) == one
    for note in (Note(Kind.GRANT, 2**64 - 1), Note(Kind.DATA, 1, 2), Note(Kind.SHUT, tail=b"why"), Note(Kind.END, 3)):
        assert Note.from_bytes(note.to_bytes()) == note


@pytest.mark.parametrize(
    "make",
    [
        lambda: offer(slots=0, length=64),
        lambda: offer(slots=4097),
        lambda: offer(slot_bytes=0, length=64),
        lambda: offer(length=64),
        lambda: offer(topic=b"x" * 16),
        lambda: offer(registered=False),
        lambda: Note.from_bytes(b"\1"),
        lambda: Note.from_bytes(b"\x63" + bytes(16)),
        lambda: Note.from_bytes(bytes(200_000)),
    ],
)
def test_what_is_no_offer_and_no_note(make):
    with pytest.raises(MetadataError):
        make()


@given(st.binary(max_size=200), st.integers(0, 300), st.integers(0, 255))
def test_strangers_bytes(noise, at, byte):
    changed = bytearray(offer().to_bytes())
    changed[at % len(changed)] = byte
    for read, blob in ((Offer.from_bytes, noise), (Offer.from_bytes, changed), (Note.from_bytes, noise)):
        try:
            read(bytes(blob))
        except MetadataError as error:
            assert str(error)
