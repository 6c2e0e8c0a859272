"""Blobs from peers: whatever is written is read; whatever else arrives is a ``MetadataError``, cheaply."""

import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.errors import MetadataError
from penstock.transfer.descriptors import Descriptors
from penstock.transfer.metadata import AgentMetadata, RegistrationRecord
from penstock.transfer.wire import Reader, Writer

TOP = (1 << 64) - 1
u32s = st.integers(0, (1 << 32) - 1)
u64s = st.integers(0, TOP)
names = st.text(min_size=1, max_size=60).filter(lambda text: text.isprintable() and len(text.encode()) <= 255)


@st.composite
def ranges(draw):
    address = draw(st.integers(0, TOP - 1))
    return address, draw(st.integers(1, TOP - address)), draw(u32s)


@st.composite
def descriptor_lists(draw):
    table = draw(st.lists(ranges(), max_size=6))
    registered = draw(st.booleans())
    count = len(table)
    slots = draw(st.lists(u32s, min_size=count, max_size=count)) if registered else None
    generations = draw(st.lists(st.integers(1, TOP), min_size=count, max_size=count)) if registered else None
    return Descriptors(draw(names), draw(st.sampled_from(["DRAM", "VRAM"])), table, slots, generations)


@st.composite
def records(draw, slot):
    edges = sorted(draw(st.sets(u64s, min_size=2, max_size=8)))
    pairs = list(zip(edges[0:-1:2], edges[1::2], strict=True))
    table = np.array([(first, last - first, draw(st.integers(0, 1 << 20)) if last < 1 << 63 else 0)
                      for first, last in pairs], np.uint64)  # fmt: skip
    lengths_fit = all(last - first < TOP - (1 << 20) for first, last in pairs)
    table = table if lengths_fit else np.array([(1, 2, 3)], np.uint64)
    memory = draw(st.sampled_from(["DRAM", "VRAM"]))
    return RegistrationRecord(slot, draw(st.integers(1, TOP)), memory, draw(u32s), draw(u64s), table)


@st.composite
def snapshots(draw):
    slots = draw(st.lists(u32s, unique=True, max_size=4))
    return AgentMetadata(
        name=draw(names),
        instance=draw(st.binary(min_size=16, max_size=16)),
        secret=draw(st.binary(min_size=16, max_size=16)),
        boot_id=draw(st.text("0123456789abcdef-", max_size=36)),
        netns=draw(u64s),
        socket_name=draw(names),
        network_address=draw(st.binary(max_size=300)),
        network_transports=draw(st.sampled_from(["", "tcp", "rc,ud,tcp"])),
        registrations=tuple(draw(records(slot)) for slot in slots),
        complete=draw(st.booleans()),
    )


KINDS = [(descriptor_lists(), Descriptors), (snapshots(), AgentMetadata)]
EXAMPLES = [
    Descriptors("trainer", "DRAM", [(4096, 64, 0), (8192, 64, 0)], [1, 2], [3, 4]),
    AgentMetadata(
        "trainer",
        bytes(16),
        bytes(16),
        "boot",
        1,
        "socket",
        b"address",
        "tcp",
        (RegistrationRecord(1, 2, "DRAM", 0, 9, np.array([(4096, 64, 0)], np.uint64)),),
    ),
]


@pytest.mark.parametrize(("things", "kind"), KINDS)
@given(data=st.data())
def test_what_is_written_is_read(things, kind, data):
    thing = data.draw(things)
    again = kind.from_bytes(thing.to_bytes())
    assert again == thing and again.to_bytes() == thing.to_bytes()


def refused_or_valid(kind, blob):
    """Reads a blob from a stranger: a MetadataError, or something that is again itself; little memory either way."""
    tracemalloc.start()
    try:
        found = kind.from_bytes(blob)
    except MetadataError as error:
        assert len(str(error)) < 600
        return None
    else:
        return found
    finally:
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert most < (1 << 19) + 40 * len(blob), f"{most} bytes of memory for a blob of {len(blob)}"


@pytest.mark.parametrize("kind", [Descriptors, AgentMetadata])
@given(blob=st.binary(max_size=300), header=st.booleans())
def test_random_bytes(kind, blob, header):
    magic = {Descriptors: b"PSds\1\0", AgentMetadata: b"PSmd\1\0"}[kind]
    found = refused_or_valid(kind, magic + blob if header else blob)
    assert found is None or kind.from_bytes(found.to_bytes()) == found


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: type(example).__name__)
@settings(max_examples=300)
@given(data=st.data())
def test_mutations_of_a_valid_blob(example, data):
    blob = bytearray(example.to_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(blob) - 1))
        change = data.draw(st.sampled_from(["byte", "cut", "double", "insert", "huge"]))
        if change == "byte":
            blob[at] = data.draw(st.integers(0, 255))
        elif change == "cut":
            del blob[at : at + data.draw(st.integers(1, 16))]
        elif change == "double":
            blob[at:at] = blob[at : at + 24]
        elif change == "insert":
            blob[at:at] = data.draw(st.binary(max_size=16))
        else:
            blob[at : at + 4] = b"\xff\xff\xff\xff"
        if not blob:
            break
    found = refused_or_valid(type(example), blob)
    assert found is None or type(example).from_bytes(found.to_bytes()) == found


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: type(example).__name__)
def test_every_prefix_and_every_longer_blob_is_refused(example):
    blob = example.to_bytes()
    for cut in range(len(blob)):
        assert refused_or_valid(type(example), blob[:cut]) is None, cut
    assert refused_or_valid(type(example), blob + b"\0") is None


def test_a_blob_over_the_limit_is_refused_before_it_is_copied():
    blob = bytearray((64 << 20) + 1)
    tracemalloc.start()
    for kind in (Descriptors, AgentMetadata):
        with pytest.raises(MetadataError, match="67108865 bytes, but at most 67108864"):
            kind.from_bytes(blob)
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
    tracemalloc.stop()


@given(st.lists(st.one_of(st.binary(max_size=20), names, u64s, st.lists(u64s, max_size=5)), max_size=8))
def test_any_sequence_of_parts(parts):
    writer = Writer("parts", b"part", 9)
    for part in parts:
        if isinstance(part, bytes):
            writer.sized(part, most=20)
        elif isinstance(part, str):
            writer.text(part, most=255)
        elif isinstance(part, int):
            writer.u64(part)
        else:
            writer.u64s(np.array(part, np.uint64))
    reader = Reader("parts", writer.done(), b"part", 9)
    for part in parts:
        if isinstance(part, bytes):
            assert reader.sized(most=20) == part
        elif isinstance(part, str):
            assert reader.text(most=255) == part
        elif isinstance(part, int):
            assert reader.u64() == part
        else:
            assert reader.u64s(most=5).tolist() == part
    reader.end()
