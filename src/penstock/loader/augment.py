"""Which part of each picture is shown: pure functions of (manifest hash, seed, epoch, sample id, picture size).

The random numbers of a sample are a hash of its id, not the next ones of a generator: they don't depend on threads,
batches, prefetch or ranks, and any sample's can be had alone.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from penstock.errors import ConfigError
from penstock.order.order import Int64Array, scramble

__all__ = ["Crop", "Float64Array", "ImageTransform", "Randomness", "UInt8Array"]

Float64Array: TypeAlias = npt.NDArray[np.float64]
UInt8Array: TypeAlias = npt.NDArray[np.uint8]
Crop: TypeAlias = Literal["none", "center", "random"]

_ATTEMPTS = 10  # of a random crop, before a centred one is taken instead
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


class Randomness:
    """Uniform numbers in [0, 1) by (manifest hash, seed, epoch), sample id and draw."""

    def __init__(self, manifest_hash: str, seed: int, epoch: int) -> None:
        digest = hashlib.sha256(f"penstock augment {manifest_hash} {seed} {epoch}".encode()).digest()
        self._key = np.frombuffer(digest[:8], dtype="<u8")[0]

    def uniform(self, sample_ids: Int64Array, draw: int) -> Float64Array:
        """One number for each sample; every ``draw`` is another, independent one."""
        with np.errstate(over="ignore"):
            state = scramble(sample_ids.astype(np.uint64) * _GOLDEN + self._key)
            state = scramble(state + np.uint64(draw) * _GOLDEN)
        return (state >> np.uint64(11)).astype(np.float64) * 2.0**-53


@dataclass(frozen=True, slots=True)
class ImageTransform:
    """What part of a picture is shown, at which size.

    Attributes:
        out_hw: (height, width) of the result; None keeps each picture's own.
        crop: ``none`` shows all of it, ``center`` the middle, ``random`` a random part of random shape.
        shorter_side: with ``center``: the picture is thought of as resized to this shorter side before ``out_hw`` is
            cut out of its middle.
        area: with ``random``: least and most share of the picture's area.
        aspect: with ``random``: least and most width / height.
        flip_probability: of mirroring left and right.
    """

    out_hw: tuple[int, int] | None = None
    crop: Crop = "none"
    shorter_side: int | None = None
    area: tuple[float, float] = (0.08, 1.0)
    aspect: tuple[float, float] = (3 / 4, 4 / 3)
    flip_probability: float = 0.0

    def __post_init__(self) -> None:
        if self.crop != "none" and self.out_hw is None:
            raise ConfigError(f"a {self.crop} crop needs the size of its result")
        if not 0 < self.area[0] <= self.area[1] <= 1:
            raise ConfigError(f"crop_area is {self.area!r}; give (least, most) shares with 0 < least <= most <= 1")
        if not 0 < self.aspect[0] <= self.aspect[1]:
            raise ConfigError(f"crop_aspect is {self.aspect!r}; give 0 < least <= most of width / height")
        if not 0 <= self.flip_probability <= 1:
            raise ConfigError(f"horizontal_flip is {self.flip_probability!r}; give a probability in [0, 1]")

    def windows(self, sizes: Int64Array, sample_ids: Int64Array, randomness: Randomness) -> Float64Array:
        """The part of each picture to show.

        Args:
            sizes: ``[n, 2]``, height and width of the upright pictures in pixels.
            sample_ids: ``[n]``.
            randomness: used by random crops alone.

        Returns:
            ``[n, 4]``: x, y, width and height in pixels; fractional borders are meant.
        """
        if self.crop == "center":
            return self._center(sizes)
        if self.crop == "random":
            return self._random(sizes, sample_ids, randomness)
        height, width = sizes[:, 0].astype(np.float64), sizes[:, 1].astype(np.float64)
        return np.stack([np.zeros_like(width), np.zeros_like(width), width, height], axis=1)

    def flips(self, sample_ids: Int64Array, randomness: Randomness) -> UInt8Array:
        """1 for each picture to mirror, ``[n]``."""
        if self.flip_probability == 0:
            return np.zeros(len(sample_ids), dtype=np.uint8)
        return (randomness.uniform(sample_ids, 0) < self.flip_probability).astype(np.uint8)

    def _center(self, sizes: Int64Array) -> Float64Array:
        assert self.out_hw is not None
        shorter = sizes.min(axis=1).astype(np.float64)
        scale = shorter / (self.shorter_side or min(self.out_hw))
        height = np.minimum(sizes[:, 0], self.out_hw[0] * scale)
        width = np.minimum(sizes[:, 1], self.out_hw[1] * scale)
        return np.stack([(sizes[:, 1] - width) / 2, (sizes[:, 0] - height) / 2, width, height], axis=1)

    def _random(self, sizes: Int64Array, sample_ids: Int64Array, randomness: Randomness) -> Float64Array:
        """Area and log aspect are uniform, as in Szegedy et al., "Going Deeper with Convolutions", 2014, section 6."""
        height, width = sizes[:, 0].astype(np.float64), sizes[:, 1].astype(np.float64)
        windows = self._middle_with_aspect(height, width)
        open_rows = np.arange(len(sizes))
        for attempt in range(_ATTEMPTS):
            if not open_rows.size:
                break
            ids, h, w = sample_ids[open_rows], height[open_rows], width[open_rows]
            draw = [randomness.uniform(ids, 1 + 4 * attempt + k) for k in range(4)]
            area = h * w * (self.area[0] + draw[0] * (self.area[1] - self.area[0]))
            low, high = math.log(self.aspect[0]), math.log(self.aspect[1])
            aspect = np.exp(low + draw[1] * (high - low))
            crop_w, crop_h = np.rint(np.sqrt(area * aspect)), np.rint(np.sqrt(area / aspect))
            fits = (crop_w >= 1) & (crop_h >= 1) & (crop_w <= w) & (crop_h <= h)
            x, y = np.floor(draw[2] * (w - crop_w + 1)), np.floor(draw[3] * (h - crop_h + 1))
            windows[open_rows[fits]] = np.stack([x, y, crop_w, crop_h], axis=1)[fits]
            open_rows = open_rows[~fits]
        return windows

    def _middle_with_aspect(self, height: Float64Array, width: Float64Array) -> Float64Array:
        """The largest centred part whose aspect is allowed."""
        aspect = np.clip(width / height, *self.aspect)
        crop_w = np.minimum(width, np.maximum(1, np.rint(height * aspect)))
        crop_h = np.minimum(height, np.maximum(1, np.rint(width / aspect)))
        return np.stack([np.floor((width - crop_w) / 2), np.floor((height - crop_h) / 2), crop_w, crop_h], axis=1)
