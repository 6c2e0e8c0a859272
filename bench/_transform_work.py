"""What bench/transforms.py has both loaders do with a sample; worker processes import it from here."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np

SIDE = 224
HEAD_BYTES = 1024
RESULT_BYTES = {"nothing": HEAD_BYTES, "decode": 3 * SIDE * SIDE}


def head(data: Any) -> np.ndarray:
    """As good as nothing: the beginning of the file."""
    return np.frombuffer(data, dtype=np.uint8, count=HEAD_BYTES)


def decode(data: Any) -> np.ndarray:
    """A picture with Pillow, at one size."""
    from PIL import Image

    return np.asarray(Image.open(BytesIO(data)).convert("RGB").resize((SIDE, SIDE), Image.Resampling.BILINEAR))


TASKS = {"nothing": head, "decode": decode}


class Transform:
    """For Penstock."""

    def __init__(self, task: str) -> None:
        self.task = task

    def __call__(self, sample: Any) -> Any:
        return TASKS[self.task](sample.data), sample.id


class Files:
    """For torch: a map-style dataset over the same files."""

    def __init__(self, folder: str, task: str) -> None:
        self.paths = sorted(str(path) for path in Path(folder).iterdir())
        self.task = task

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Any:
        with open(self.paths[index], "rb") as file:
            return TASKS[self.task](file.read()), index
