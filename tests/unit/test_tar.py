from __future__ import annotations

import io
import tarfile

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.packing.tar import BLOCK_BYTES, TRAILER, extension_of, headers, member_bytes, padding_bytes

SIZES = st.one_of(st.integers(1, 1 << 12), st.integers(1, 1 << 40))


def one_header(sample_id: int, extension: bytes, size: int) -> bytes:
    return headers(sample_id, [extension], np.array([size], np.int64)).tobytes()


def test_header_byte_for_byte():
    header = one_header(42, b"jpg", 1000)
    expected = bytearray(512)
    expected[0:24] = b"00000000000000000042.jpg"
    expected[100:108] = b"0000644\0"
    expected[108:124] = b"0000000\0" * 2
    expected[124:136] = b"00000001750\0"
    expected[136:148] = b"00000000000\0"
    expected[148:156] = b" " * 8
    expected[156:157] = b"0"
    expected[257:265] = b"ustar\00000"
    expected[148:156] = b"%06o\0 " % sum(expected)
    assert header == bytes(expected)


@given(st.integers(0, 10**15), st.lists(SIZES, min_size=1, max_size=20))
def test_headers_read_back_by_tarfile(first_id, sizes):
    blocks = headers(first_id, [b"bin"] * len(sizes), np.array(sizes, np.int64))
    for index, size in enumerate(sizes):
        member = tarfile.TarInfo.frombuf(blocks[index].tobytes(), "utf-8", "strict")
        assert member.name == f"{first_id + index:020d}.bin"
        assert member.size == size
        assert (member.mode, member.uid, member.gid, member.mtime) == (0o644, 0, 0, 0)
        assert member.isreg()


@pytest.mark.parametrize("size", [(1 << 33) - 1, 1 << 33, (1 << 33) + 5, 1 << 50])
def test_sizes_beyond_eleven_octal_digits(size):
    member = tarfile.TarInfo.frombuf(one_header(0, b"bin", size), "utf-8", "strict")
    assert member.size == size


def test_an_archive_made_of_the_parts_opens():
    payload = b"x" * 700
    data = one_header(3, "jpé".encode(), 700) + payload + bytes(padding_bytes(700)) + TRAILER
    assert len(data) == member_bytes(700) + 1024
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        (member,) = archive.getmembers()
        assert member.name == "00000000000000000003.jpé"
        assert archive.extractfile(member).read() == payload


@pytest.mark.parametrize(("size", "padding"), [(0, 0), (1, 511), (511, 1), (512, 0), (513, 511), ((1 << 40) + 1, 511)])
def test_padding_fills_the_last_block(size, padding):
    assert padding_bytes(size) == padding
    assert member_bytes(size) == BLOCK_BYTES + size + padding


@pytest.mark.parametrize(
    ("path", "extension"),
    [
        (b"a/b.jpg", b"jpg"),
        (b"a/b.JPG", b"JPG"),
        (b"a/b.tar.gz", b"gz"),
        (b"noext", b"bin"),
        (b"a.b/noext", b"bin"),
        (b"trailing.", b"bin"),
        (b".hidden", b"hidden"),
        (b"x.12345678", b"12345678"),
        (b"x.123456789", b"bin"),
        ("x.éééé".encode(), "éééé".encode()),
        ("x.ééééé".encode(), b"bin"),
        (b"x.\xff\xfe", b"bin"),
        (b"a..b", b"b"),
        (b"..", b"bin"),
    ],
)
def test_e2_23_extension_of_a_name(path, extension):
    assert extension_of(path) == extension
