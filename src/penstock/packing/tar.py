"""Deterministic ustar archives, made of 512-byte blocks.

A member is one header block and its data, padded with zeros to whole blocks; an archive ends with two zero
blocks. Every field of a header is fixed but for name, size and checksum, so that the same samples give the
same bytes anywhere. Headers are made many at a time: a shard of small samples has a header for every few KiB.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

__all__ = ["BLOCK_BYTES", "TRAILER", "extension_of", "headers", "member_bytes", "padding_bytes"]

BLOCK_BYTES = 512
TRAILER = bytes(2 * BLOCK_BYTES)

_ID_DIGITS = 20
_EXTENSION_BYTES = 8
_SIZE_FIELD = slice(124, 136)
_CHECKSUM_FIELD = slice(148, 156)
_OCTAL_SIZE_LIMIT = 1 << 33  # eleven octal digits; beyond it the size is binary, as GNU and POSIX readers know it


def padding_bytes(size: int) -> int:
    """Zeros that follow ``size`` bytes of data up to the next block."""
    return -size % BLOCK_BYTES


def member_bytes(size: int) -> int:
    """What a file of ``size`` bytes takes in an archive: header, data and padding."""
    return BLOCK_BYTES + size + padding_bytes(size)


def extension_of(path: bytes) -> bytes:
    """The extension that a sample's name gets: the text after the last dot of the file's name, case kept.

    Returns:
        ``b"bin"`` when there is no dot, or what follows it isn't 1 to 8 bytes of UTF-8.
    """
    _, dot, extension = path[path.rfind(b"/") + 1 :].rpartition(b".")
    if not dot or not 0 < len(extension) <= _EXTENSION_BYTES:
        return b"bin"
    return extension if extension.isascii() or _is_text(extension) else b"bin"


def headers(first_id: int, extensions: list[bytes], sizes: npt.NDArray[np.int64]) -> npt.NDArray[np.uint8]:
    """The header blocks of consecutive samples.

    Args:
        first_id: sample id of the first; the others follow.
        extensions: one for each sample, as ``extension_of`` gives them.
        sizes: bytes of each sample.

    Returns:
        Array of shape ``(len(sizes), 512)``, one block a row.
    """
    count = len(sizes)
    blocks = np.tile(_TEMPLATE, (count, 1))
    ids = np.arange(first_id, first_id + count, dtype=np.int64)
    blocks[:, :_ID_DIGITS] = _digits(ids, base=10, width=_ID_DIGITS)
    names = np.array(extensions, dtype=f"S{_EXTENSION_BYTES}").view(np.uint8).reshape(count, _EXTENSION_BYTES)
    blocks[:, _ID_DIGITS + 1 : _ID_DIGITS + 1 + _EXTENSION_BYTES] = names
    blocks[:, _SIZE_FIELD.start : _SIZE_FIELD.stop - 1] = _digits(sizes % _OCTAL_SIZE_LIMIT, base=8, width=11)
    for large in np.flatnonzero(sizes >= _OCTAL_SIZE_LIMIT):
        binary = b"\x80" + int(sizes[large]).to_bytes(11, "big")
        blocks[large, _SIZE_FIELD] = np.frombuffer(binary, np.uint8)
    checksums = blocks.sum(axis=1, dtype=np.int64)  # the checksum's own field counts as spaces, as in the template
    blocks[:, _CHECKSUM_FIELD.start : _CHECKSUM_FIELD.start + 6] = _digits(checksums, base=8, width=6)
    blocks[:, _CHECKSUM_FIELD.start + 6] = 0
    return blocks


def _is_text(extension: bytes) -> bool:
    try:
        extension.decode()
    except UnicodeDecodeError:
        return False
    return True


def _digits(numbers: npt.NDArray[np.int64], *, base: int, width: int) -> npt.NDArray[np.uint8]:
    """ASCII digits, zero-padded, one number a row."""
    digits = np.empty((len(numbers), width), np.uint8)
    rest = numbers
    for column in range(width - 1, -1, -1):
        rest, digit = np.divmod(rest, base)
        digits[:, column] = digit + ord("0")
    return digits


def _template() -> npt.NDArray[np.uint8]:
    block = bytearray(BLOCK_BYTES)
    block[_ID_DIGITS : _ID_DIGITS + 1] = b"."
    block[100:108] = b"0000644\0"  # mode
    block[108:116] = b"0000000\0"  # uid
    block[116:124] = b"0000000\0"  # gid
    block[136:148] = b"00000000000\0"  # mtime
    block[_CHECKSUM_FIELD] = b" " * 8
    block[156:157] = b"0"  # a regular file
    block[257:265] = b"ustar\00000"  # magic and version
    return np.frombuffer(bytes(block), np.uint8)


_TEMPLATE = _template()
