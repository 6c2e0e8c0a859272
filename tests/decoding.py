"""What the tests of the decoders share: files as a batch, and its pixels."""

from __future__ import annotations

import numpy as np

from penstock.loader.augment import ImageTransform, Randomness
from penstock.loader.decode import Encoded, Picture, PixelFormat

BYTES = PixelFormat(type="uint8")


def encoded(files: list[bytes]) -> Encoded:
    lengths = np.array([len(file) for file in files], dtype=np.int64)
    offsets = np.concatenate([[0], np.cumsum(lengths)[:-1]]).astype(np.int64)
    return Encoded(memoryview(b"".join(files)), offsets, lengths, np.arange(len(files), dtype=np.int64))


def decode(decoder, files, out_hw, *, windows=None, flips=None, form=BYTES) -> np.ndarray:
    """Windows as x, y, width, height of each picture; without them, whole pictures."""
    batch = encoded(files)
    if windows is None:
        sizes = decoder.sizes(batch)
        windows = ImageTransform().windows(sizes, batch.sample_ids, Randomness("", 0, 0))
    flips = np.zeros(len(files), dtype=np.uint8) if flips is None else np.array(flips, dtype=np.uint8)
    out = np.zeros(form.shape(len(files), out_hw), dtype=form.dtype)
    decoder.decode(batch, Picture(np.array(windows, dtype=np.float64), flips, out_hw), out, form)
    return out
