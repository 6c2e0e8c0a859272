"""Decoding: the bytes of a unit of work to pixels, in memory that was charged together with them.

Two ways, one result: the core decodes JPEG files on its own threads, straight from the region they were read into
to the region that the tensor will show; Pillow decodes everything else, and everything where the core has no
libjpeg-turbo or where Pillow was asked for. Both stand pictures upright (Exif), crop, resize, mirror and normalise.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from io import BytesIO
from typing import Any, Literal, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from penstock import _core
from penstock.errors import DecodeError, PenstockError
from penstock.loader.augment import Float64Array, UInt8Array
from penstock.loader.faults import STRICT, Faults
from penstock.order.order import Int64Array

__all__ = ["Decoder", "Encoded", "NativeDecoder", "PillowDecoder", "PixelFormat", "PixelType"]

PixelType: TypeAlias = Literal["uint8", "float32", "bfloat16"]
Layout: TypeAlias = Literal["NCHW", "NHWC"]

_TYPES: dict[PixelType, tuple[int, int]] = {"uint8": (0, 1), "float32": (1, 4), "bfloat16": (2, 2)}
_LAYOUTS: dict[Layout, int] = {"NCHW": 0, "NHWC": 1}
_CHANNELS = 3


@dataclass(frozen=True, slots=True)
class PixelFormat:
    """How pixels look: ``(byte / 255 - mean) / std`` for the real types, the bytes themselves for uint8.

    Attributes:
        type: of a sample.
        layout: NCHW or NHWC.
        mean: of each channel, in [0, 1] units.
        std: of each channel.
    """

    type: PixelType = "float32"
    layout: Layout = "NCHW"
    mean: tuple[float, float, float] = (0.0, 0.0, 0.0)
    std: tuple[float, float, float] = (1.0, 1.0, 1.0)

    def bytes(self, count: int, hw: tuple[int, int]) -> int:
        """Size of ``count`` pictures."""
        return count * _CHANNELS * hw[0] * hw[1] * _TYPES[self.type][1]

    @property
    def dtype(self) -> np.dtype[Any]:
        """NumPy's type; bfloat16, which it lacks, travels as its 16 bits."""
        return np.dtype({"uint8": np.uint8, "float32": np.float32, "bfloat16": np.uint16}[self.type])

    def shape(self, count: int, hw: tuple[int, int]) -> tuple[int, ...]:
        """Of a batch of ``count`` pictures."""
        return (count, _CHANNELS, *hw) if self.layout == "NCHW" else (count, *hw, _CHANNELS)

    @property
    def scale(self) -> list[float]:
        """What a byte is multiplied with, by channel."""
        return [1 / (255 * std) for std in self.std]

    @property
    def bias(self) -> list[float]:
        """What is added then, by channel."""
        return [-mean / std for mean, std in zip(self.mean, self.std, strict=True)]


@dataclass(frozen=True, slots=True)
class Encoded:
    """Files in memory: ``data[offsets[i] : offsets[i] + lengths[i]]``, with their sample ids.

    ``turn`` is the batch's place among those that are decoded side by side: it is needed before later ones. ``faults``
    are those of the files that can't be had or decoded; a decoder looks at none that is faulty already.
    """

    data: memoryview
    offsets: Int64Array
    lengths: Int64Array
    sample_ids: Int64Array
    turn: int = 0
    faults: Faults = STRICT

    def file(self, index: int) -> memoryview:
        """One file's bytes."""
        start = int(self.offsets[index])
        return self.data[start : start + int(self.lengths[index])]

    def blame(self, index: int, reason: object) -> None:
        """Note, or raise, that a file can't be decoded."""
        sample, length = int(self.sample_ids[index]), int(self.lengths[index])
        if type(reason).__name__ == "UnidentifiedImageError":  # Pillow's, whose text is the address of a buffer
            reason = "it is no kind of image that Pillow knows"
        message = f"sample {sample} ({length} bytes) can't be decoded: {reason}; replace or remove the image"
        self.faults.add(index, DecodeError(message, sample_id=sample))

    def no_memory(self, index: int) -> PenstockError:
        """What to raise where the machine, not the file, is at fault."""
        return PenstockError(
            f"no memory is left to decode sample {self.sample_ids[index]} ({self.lengths[index]} bytes); use fewer "
            "threads (PENSTOCK_DECODE_THREADS), lower max_inflight_bytes, or give this process more memory"
        )

    def sound_lengths(self) -> Int64Array:
        """Lengths, and 0 for files that are faulty, which the core then refuses at a glance."""
        lengths = self.lengths.copy()
        lengths[self.faults.rows()] = 0
        return lengths if len(self.faults) else self.lengths


@dataclass(frozen=True, slots=True)
class Picture:
    """What is to be made of each file: its part (x, y, width, height), mirrored or not, at one size."""

    windows: Float64Array
    flips: UInt8Array
    out_hw: tuple[int, int]


class Decoder(Protocol):
    """Decodes batches; any thread, several at once."""

    def sizes(self, encoded: Encoded) -> Int64Array:
        """Height and width of each upright picture, ``[n, 2]``, from its header alone; 1 and 1 of faulty ones."""

    def decode(self, encoded: Encoded, picture: Picture, out: npt.NDArray[Any], form: PixelFormat) -> None:
        """Fill ``out`` (``form.shape``, contiguous). What is in the places of faulty files is undefined."""

    def resize(self, thread_count: int) -> None:
        """Have so many threads from the next picture on, at least 1; results don't depend on it."""


class PillowDecoder:
    """Pillow, on ``thread_count`` threads a batch; exact where the result is compared with other programs.

    Args:
        thread_count: at least 1.
        whole_filter: for pictures that aren't cropped: ``bicubic``, Pillow's own default, or ``bilinear``.
        most_pixels: larger pictures are refused.
    """

    def __init__(self, thread_count: int, *, whole_filter: Literal["bicubic", "bilinear"], most_pixels: int) -> None:
        self._thread_count = thread_count
        self._whole_filter = whole_filter
        self._most_pixels = most_pixels

    def sizes(self, encoded: Encoded) -> Int64Array:
        """See ``Decoder``."""
        return np.array([self.size(encoded, index) for index in range(len(encoded.lengths))], dtype=np.int64)

    def decode(self, encoded: Encoded, picture: Picture, out: npt.NDArray[Any], form: PixelFormat) -> None:
        """See ``Decoder``."""
        self.decode_some(range(len(encoded.lengths)), encoded, picture, out, form)

    def resize(self, thread_count: int) -> None:
        """See ``Decoder``; from the next batch on."""
        self._thread_count = thread_count

    def decode_some(
        self, indexes: Sequence[int], encoded: Encoded, picture: Picture, out: npt.NDArray[Any], form: PixelFormat
    ) -> None:
        """``decode`` for some of the files alone."""

        def decode(index: int) -> None:
            if index in encoded.faults:
                return
            try:
                pixels = self._pixels(encoded, index, picture)
            except MemoryError as error:
                raise encoded.no_memory(index) from error
            except Exception as error:
                encoded.blame(index, error)
            else:
                _store(pixels, out[index], form)

        _for_each(decode, indexes, self._thread_count)

    def _open(self, encoded: Encoded, index: int) -> Any:
        from PIL import Image

        # BytesIO copies: one file's bytes, for as long as it is being decoded.
        image = Image.open(BytesIO(encoded.file(index)))
        if image.width * image.height > self._most_pixels:
            raise ValueError(_too_large(self._most_pixels))
        return image

    def size(self, encoded: Encoded, index: int) -> tuple[int, int]:
        """``sizes`` of one of the files."""
        if index in encoded.faults:
            return 1, 1
        try:
            image = self._open(encoded, index)
            turned = image.getexif().get(0x0112, 1) in (5, 6, 7, 8)
        except Exception as error:
            encoded.blame(index, error)
            return 1, 1
        return (image.width, image.height) if turned else (image.height, image.width)

    def _pixels(self, encoded: Encoded, index: int, picture: Picture) -> UInt8Array:
        from PIL import Image, ImageOps

        image = ImageOps.exif_transpose(self._open(encoded, index)).convert("RGB")
        x, y, width, height = picture.windows[index].tolist()
        whole = (x, y, width, height) == (0, 0, image.width, image.height)
        size = (picture.out_hw[1], picture.out_hw[0])
        if not whole or image.size != size:
            bicubic = whole and self._whole_filter == "bicubic"
            kind = Image.Resampling.BICUBIC if bicubic else Image.Resampling.BILINEAR
            image = image.resize(size, kind, box=(x, y, x + width, y + height))
        pixels = np.asarray(image)
        return pixels[:, ::-1] if picture.flips[index] else pixels


class NativeDecoder:
    """The core's JPEG decoder, and Pillow for other kinds of file.

    Args:
        thread_count: threads of the core, shared by all batches.
        most_pixels: larger pictures are refused.
    """

    def __init__(self, thread_count: int, *, most_pixels: int) -> None:
        self._pool = _core.DecodePool(thread_count)
        self._pillow = PillowDecoder(thread_count, whole_filter="bilinear", most_pixels=most_pixels)
        self._most_pixels = most_pixels

    def sizes(self, encoded: Encoded) -> Int64Array:
        """See ``Decoder``."""
        headers = _core.jpeg_headers(encoded.data, encoded.offsets, encoded.sound_lengths())
        turned = headers[:, 3] >= 5
        sizes = np.where(turned[:, None], headers[:, 1::-1], headers[:, :2]).astype(np.int64)
        for index in np.flatnonzero(headers[:, 0] == 0).tolist():
            sizes[index] = self._pillow.size(encoded, index)
        return sizes

    def resize(self, thread_count: int) -> None:
        """See ``Decoder``."""
        self._pool.resize(thread_count)
        self._pillow.resize(thread_count)

    def decode(self, encoded: Encoded, picture: Picture, out: npt.NDArray[Any], form: PixelFormat) -> None:
        """See ``Decoder``."""
        statuses, messages = self._pool.decode(
            encoded.data,
            encoded.offsets,
            encoded.sound_lengths(),
            picture.windows,
            picture.flips,
            picture.out_hw,
            _LAYOUTS[form.layout],
            _TYPES[form.type][0],
            form.scale,
            form.bias,
            self._most_pixels,
            out.data,
            encoded.turn,
        )
        if not statuses.any():
            return
        for index in np.flatnonzero(statuses != _core.DECODE_NOT_JPEG).tolist():
            if statuses[index] == _core.DECODE_DAMAGED:
                encoded.blame(index, messages[index])
            if statuses[index] == _core.DECODE_NO_MEMORY:
                raise encoded.no_memory(index)
            if statuses[index] == _core.DECODE_TOO_LARGE:
                encoded.blame(index, _too_large(self._most_pixels))
        others = np.flatnonzero(statuses == _core.DECODE_NOT_JPEG).tolist()
        self._pillow.decode_some(others, encoded, picture, out, form)


def _too_large(most_pixels: int) -> str:
    return f"it has more than {most_pixels} pixels; raise PENSTOCK_MAX_IMAGE_PIXELS if that is meant"


def _for_each(task: Callable[[int], None], indexes: Sequence[int], thread_count: int) -> None:
    if thread_count == 1 or len(indexes) <= 1:
        for index in indexes:
            task(index)
        return
    with ThreadPoolExecutor(min(thread_count, len(indexes)), thread_name_prefix="penstock-decode") as pool:
        for _ in pool.map(task, indexes):
            pass


def _store(pixels: UInt8Array, out: npt.NDArray[Any], form: PixelFormat) -> None:
    """Put ``[H, W, 3]`` bytes into one picture's place."""
    planes = pixels.transpose(2, 0, 1) if form.layout == "NCHW" else pixels
    if form.type == "uint8":
        out[...] = planes
        return
    channels = (3, 1, 1) if form.layout == "NCHW" else (3,)
    real = out if form.type == "float32" else np.empty(out.shape, dtype=np.float32)
    if form.mean == (0.0, 0.0, 0.0) and form.std == (1.0, 1.0, 1.0):
        np.divide(planes, np.float32(255), out=real)
    else:
        np.multiply(planes, np.array(form.scale, dtype=np.float32).reshape(channels), out=real)
        real += np.array(form.bias, dtype=np.float32).reshape(channels)
    if form.type == "bfloat16":  # the upper half of a float32, rounded to nearest with ties to even
        bits = real.view(np.uint32)
        out[...] = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
