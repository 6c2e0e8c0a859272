"""A small binary form for what agents tell each other: bounded, versioned, little-endian; never pickle.

Everything begins with a *magic* of four bytes and a version (u16). Then come numbers of fixed width, bytes and text
behind their length (u32), and columns of numbers behind their count (u32). A reader believes nothing: what is short,
long, over a limit or left over is a ``MetadataError`` that says what was given and what was allowed, and no length is
trusted with memory before that many bytes are seen to be there.
"""

from __future__ import annotations

import struct
from typing import Any, Final, TypeAlias

import numpy as np
import numpy.typing as npt
from typing_extensions import Buffer

from penstock.errors import MetadataError

__all__ = ["MOST_BYTES", "Reader", "UInt32s", "UInt64s", "Writer"]

UInt32s: TypeAlias = npt.NDArray[np.uint32]
UInt64s: TypeAlias = npt.NDArray[np.uint64]

MOST_BYTES: Final = 64 << 20
"""The largest message that is written or read, unless a reader is told another limit."""

_VERSION: Final = struct.Struct("<H")
_NUMBERS: Final = {bits: struct.Struct("<" + letter) for bits, letter in ((8, "B"), (16, "H"), (32, "I"), (64, "Q"))}
_COLUMNS: Final[dict[int, np.dtype[Any]]] = {32: np.dtype("<u4"), 64: np.dtype("<u8")}


class Writer:
    """Puts one message together; every method returns the writer itself.

    Args:
        what: the message's name in errors, such as ``"metadata"``.
        magic: four bytes that tell this kind of message from others.
        version: of the form, from 0 to 65535.
    """

    def __init__(self, what: str, magic: bytes, version: int) -> None:
        assert len(magic) == 4
        self._what = what
        self._pieces: list[bytes] = [magic, _VERSION.pack(version)]

    def u8(self, value: int) -> Writer:
        """A number below 2**8."""
        return self._number(value, 8)

    def u16(self, value: int) -> Writer:
        """A number below 2**16."""
        return self._number(value, 16)

    def u32(self, value: int) -> Writer:
        """A number below 2**32."""
        return self._number(value, 32)

    def u64(self, value: int) -> Writer:
        """A number below 2**64."""
        return self._number(value, 64)

    def raw(self, value: Buffer) -> Writer:
        """Bytes whose number the reader knows."""
        self._pieces.append(bytes(value))
        return self

    def sized(self, value: Buffer, *, most: int) -> Writer:
        """Bytes behind their number.

        Raises:
            MetadataError: more than ``most``.
        """
        data = bytes(value)
        _check_size(self._what, len(data), most)
        return self._number(len(data), 32).raw(data)

    def text(self, value: str, *, most: int) -> Writer:
        """Text as UTF-8 behind its number of bytes.

        Raises:
            MetadataError: more than ``most`` bytes, or surrogates, which UTF-8 can't say.
        """
        try:
            data = value.encode()
        except UnicodeEncodeError as error:
            raise MetadataError(f"{self._what}: {value!r} can't be said in UTF-8: {error.reason}") from error
        return self.sized(data, most=most)

    def u32s(self, column: npt.ArrayLike) -> Writer:
        """A column of numbers below 2**32 behind their count, rows one after another."""
        return self._column(column, 32)

    def u64s(self, column: npt.ArrayLike) -> Writer:
        """A column of numbers below 2**64 behind their count, rows one after another."""
        return self._column(column, 64)

    def done(self, *, most: int = MOST_BYTES) -> bytes:
        """The message.

        Raises:
            MetadataError: longer than ``most`` bytes.
        """
        data = b"".join(self._pieces)
        _check_size(self._what, len(data), most)
        return data

    def _number(self, value: int, bits: int) -> Writer:
        try:
            self._pieces.append(_NUMBERS[bits].pack(value))
        except struct.error as error:
            raise MetadataError(f"{self._what}: {value!r} isn't a number from 0 to 2**{bits} - 1") from error
        return self

    def _column(self, column: npt.ArrayLike, bits: int) -> Writer:
        data = np.ascontiguousarray(column, _COLUMNS[bits])
        return self._number(data.size, 32).raw(data.tobytes())


class Reader:
    """Takes one message apart, in the order in which it was written; ``end()`` says that this was all.

    Args:
        what: the message's name in errors.
        data: the whole message; copied if it isn't ``bytes``, for others could change it while it is read.
        magic: what it must begin with.
        version: the version that is understood.
        most: bytes that it may have.

    Raises:
        MetadataError: it is too long, or another kind of message, or of another version.
    """

    def __init__(self, what: str, data: Buffer, magic: bytes, version: int, *, most: int = MOST_BYTES) -> None:
        self._what = what
        _check_size(what, memoryview(data).nbytes, most)
        self._data = bytes(data)
        self._at = 0
        if (found := self.raw(len(magic))) != magic:
            raise MetadataError(f"{what}: begins with {found!r}, but {magic!r} was expected: it is something else")
        (theirs,) = _VERSION.unpack(self.raw(_VERSION.size))
        if theirs != version:
            raise MetadataError(
                f"{what}: is in version {theirs} of its form, but this Penstock reads version {version}; "
                "run the same release of Penstock on both sides"
            )

    @property
    def left_bytes(self) -> int:
        """Bytes that weren't read yet."""
        return len(self._data) - self._at

    def u8(self) -> int:
        """A number below 2**8."""
        return self._number(8)

    def u16(self) -> int:
        """A number below 2**16."""
        return self._number(16)

    def u32(self) -> int:
        """A number below 2**32."""
        return self._number(32)

    def u64(self) -> int:
        """A number below 2**64."""
        return self._number(64)

    def raw(self, size: int) -> bytes:
        """So many bytes."""
        if size > self.left_bytes:
            raise MetadataError(
                f"{self._what}: ends too early: {size} bytes should come after byte {self._at}, "
                f"but {self.left_bytes} are left"
            )
        self._at += size
        return self._data[self._at - size : self._at]

    def sized(self, *, most: int, least: int = 0) -> bytes:
        """Bytes behind their number.

        Raises:
            MetadataError: more or fewer than is allowed, or than there are.
        """
        size = self.u32()
        _check_size(self._what, size, most, least)
        return self.raw(size)

    def text(self, *, most: int, least: int = 0) -> str:
        """Text in UTF-8 behind its number of bytes.

        Raises:
            MetadataError: more or fewer bytes than is allowed, or than there are; or not UTF-8.
        """
        data = self.sized(most=most, least=least)
        try:
            return data.decode()
        except UnicodeDecodeError as error:
            raise MetadataError(f"{self._what}: {data[:40]!r} isn't text in UTF-8: {error.reason}") from error

    def u32s(self, *, most: int) -> UInt32s:
        """A column of numbers behind their count: an array of its own, (count,) uint32.

        Raises:
            MetadataError: more than ``most`` numbers, or fewer than there should be.
        """
        return self._column(32, most).astype(np.uint32)

    def u64s(self, *, most: int, width: int = 1) -> UInt64s:
        """A column of numbers behind their count: (count,) uint64, or (count / width, width) for a ``width`` above 1.

        Raises:
            MetadataError: more than ``most`` numbers, fewer than there should be, or no whole rows.
        """
        column = self._column(64, most).astype(np.uint64)
        if column.size % width:
            raise MetadataError(f"{self._what}: {column.size} numbers aren't whole rows of {width}")
        return column.reshape(-1, width) if width > 1 else column

    def end(self) -> None:
        """Nothing may follow.

        Raises:
            MetadataError: something does.
        """
        if self.left_bytes:
            raise MetadataError(f"{self._what}: goes on for {self.left_bytes} bytes after its end at byte {self._at}")

    def _number(self, bits: int) -> int:
        form = _NUMBERS[bits]
        (value,) = form.unpack(self.raw(form.size))
        return int(value)

    def _column(self, bits: int, most: int) -> npt.NDArray[Any]:
        count = self.u32()
        _check_size(self._what, count, most, unit="numbers")
        return np.frombuffer(self.raw(count * bits // 8), _COLUMNS[bits])


def _check_size(what: str, size: int, most: int, least: int = 0, unit: str = "bytes") -> None:
    if not least <= size <= most:
        allowed = f"from {least} to {most}" if least else f"at most {most}"
        raise MetadataError(f"{what}: {size} {unit}, but {allowed} are allowed")
