"""Transfers' binary form: what doesn't fit is refused on both sides, with numbers."""

import numpy as np
import pytest

from penstock.errors import MetadataError
from penstock.transfer.wire import Reader, Writer

MAGIC = b"test"


def written():
    return Writer("a test", MAGIC, 3)


def reader(blob, **limits):
    return Reader("a test", blob, MAGIC, 3, **limits)


def test_what_is_written_is_read():
    table = np.arange(6, dtype=np.uint64).reshape(2, 3)
    blob = written().u8(255).u16(65535).u32(1 << 31).u64((1 << 64) - 1).raw(b"ab").sized(b"\0x", most=2)
    blob = blob.text("häuser", most=9).u32s([1, 2]).u64s(table).done()
    read = reader(blob)
    assert (read.u8(), read.u16(), read.u32(), read.u64()) == (255, 65535, 1 << 31, (1 << 64) - 1)
    assert (read.raw(2), read.sized(most=2), read.text(most=9)) == (b"ab", b"\0x", "häuser")
    slots, again = read.u32s(most=2), read.u64s(most=6, width=3)
    assert slots.tolist() == [1, 2] and slots.dtype == np.uint32
    assert np.array_equal(again, table) and again.dtype == np.uint64 and again.flags.writeable
    read.end()


def test_the_form_is_little_endian_and_begins_with_magic_and_version():
    assert written().u32(1).text("a", most=1).done() == b"test\3\0" + b"\1\0\0\0" + b"\1\0\0\0a"


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: written().u8(256), "256 isn't a number from 0 to 2**8 - 1"),
        (lambda: written().u64(-1), "-1 isn't a number from 0 to 2**64 - 1"),
        (lambda: written().sized(b"abc", most=2), "3 bytes, but at most 2 are allowed"),
        (lambda: written().text("\ud800", most=9), "can't be said in UTF-8"),
        (lambda: written().raw(b"abcd").done(most=9), "10 bytes, but at most 9"),
        (lambda: reader(b"tes"), "ends too early"),
        (lambda: reader(b"best\3\0"), "begins with b'best', but b'test' was expected"),
        (lambda: reader(b"test\4\0"), "is in version 4 of its form, but this Penstock reads version 3"),
        (lambda: reader(b"test\3\0", most=5), "6 bytes, but at most 5"),
        (lambda: reader(b"test\3\0\1").u16(), "2 bytes should come after byte 6, but 1 are left"),
        (lambda: reader(b"test\3\0\1").end(), "goes on for 1 bytes after its end at byte 6"),
        (lambda: reader(written().sized(b"abc", most=3).done()).sized(most=2), "3 bytes, but at most 2"),
        (lambda: reader(written().text("", most=3).done()).text(least=1, most=2), "0 bytes, but from 1 to 2"),
        (lambda: reader(written().sized(b"\xff", most=3).done()).text(most=2), "isn't text in UTF-8"),
        (lambda: reader(written().u64s([1, 2]).done()).u64s(most=1), "2 numbers, but at most 1"),
        (lambda: reader(written().u64s([1, 2]).done()).u64s(most=9, width=3), "2 numbers aren't whole rows of 3"),
        (lambda: reader(b"test\3\0" + b"\xff\xff\xff\x7f").u64s(most=1 << 31), "but 0 are left"),
    ],
)
def test_what_does_not_fit_is_refused(make, said):
    with pytest.raises(MetadataError) as caught:
        make()
    assert str(caught.value).startswith("a test: ") and said in str(caught.value)


def test_a_reader_is_not_fooled_by_a_buffer_that_changes_under_it():
    blob = bytearray(written().u32(7).done())
    read = reader(blob)
    blob[6] = 8
    assert read.u32() == 7
