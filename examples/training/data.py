"""What the examples train on: photographs that ship inside scikit-learn and scikit-image, packed once."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parent.parent / "demo"))
import photographs

import penstock

OUT = Path("out/training")


def packed_photographs(out: Path = OUT, images_per_class: int = photographs.IMAGES_PER_CLASS) -> str:
    """The folder of packed photographs; made at the first call."""
    packed = out / "packed"
    if not (packed / "_mx8").is_dir():
        folder = photographs.image_folder(out, print, images_per_class)
        penstock.pack_dir(folder, out=packed, label_mode="imagefolder")
    return str(packed)
