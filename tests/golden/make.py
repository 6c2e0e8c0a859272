"""Makes the golden images anew: small JPEG files of every kind, and what the core has to decode them to.

    python -m tests.golden.make

Only for a change that is meant to change pixels: look at what changed before you commit it. The JPEG files are
written only where they are missing, since another encoder would make others.
"""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image
from tests.decoding import decode

from penstock import _core
from penstock.loader.decode import NativeDecoder

FOLDER = Path(__file__).parent
SIDE_HW = (24, 32)
CROP = (10.5, 6.25, 31.0, 27.5)  # x, y, width, height
ORIENTATION_TAG = 0x0112

KINDS: dict[str, dict[str, object]] = {
    "420": {"subsampling": 2},
    "422": {"subsampling": 1},
    "444": {"subsampling": 0},
    "grey": {"mode": "L"},
    "cmyk": {"mode": "CMYK"},
    "progressive": {"progressive": True},
    "progressive-grey": {"progressive": True, "mode": "L"},
    "optimized": {"optimize": True},
    "restarts": {"restart_marker_blocks": 2},
    "quality-100": {"quality": 100, "noise": 90.0},
    "quality-5": {"quality": 5},
    "turned": {"orientation": 6},
    "mirrored": {"orientation": 5, "progressive": True},
    "one-pixel": {"size": (1, 1)},
    "one-row": {"size": (65, 1)},
    "large": {"size": (400, 300), "quality": 60},
}


def make_jpeg(kind: dict[str, object]) -> bytes:
    options = dict(kind)
    width, height = options.pop("size", (61, 47))  # type: ignore[misc]
    mode, noise = str(options.pop("mode", "RGB")), float(options.pop("noise", 8.0))  # type: ignore[arg-type]
    exif = Image.Exif()
    if "orientation" in options:
        exif[ORIENTATION_TAG] = options.pop("orientation")
    random = np.random.default_rng(3)
    y, x = np.mgrid[0:height, 0:width]
    pixels = np.stack([128 + 90 * np.sin(x / (7 + 3 * c) + y / (11 - 2 * c)) for c in range(3)], axis=-1)
    pixels += random.normal(0, noise, (height, width, 1))
    image = Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).convert(mode)
    out = io.BytesIO()
    image.save(out, "JPEG", **({"quality": 85, "exif": exif} | options))  # type: ignore[arg-type]
    return out.getvalue()


def pixels_of(file: bytes, *, crop: bool) -> np.ndarray:
    """uint8 ``[3, 24, 32]``: the whole picture, or a mirrored part of it."""
    windows = [CROP] if crop else None
    return decode(NativeDecoder(1, most_pixels=1 << 20), [file], SIDE_HW, windows=windows, flips=[crop])[0]


def main() -> None:
    if not _core.HAS_JPEG:
        raise SystemExit("the core was built without libjpeg-turbo")
    for name, kind in KINDS.items():
        path = FOLDER / f"{name}.jpg"
        if not path.exists():
            path.write_bytes(make_jpeg(kind))
        file = path.read_bytes()
        both = np.concatenate([pixels_of(file, crop=False), pixels_of(file, crop=True)], axis=1)
        Image.fromarray(both.transpose(1, 2, 0)).save(FOLDER / f"{name}.png", optimize=True)


if __name__ == "__main__":
    main()
