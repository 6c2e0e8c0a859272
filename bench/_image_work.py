"""What the peers do to one photograph, with each codec: the two tasks of bench/images.py.

Whole: decode, resize to 224 x 224, bytes. Crop: a random part, 224 x 224, mirrored half of the time, normalised,
float32, channels first. Each is written the fastest way that was found for its codec.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from io import BytesIO
from typing import Any

import numpy as np
import numpy.typing as npt

SIDE = 224
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
AREA, ASPECT = (0.08, 1.0), (3 / 4, 4 / 3)
TASKS = {"whole": "decode, resize to 224 x 224, uint8", "crop": "RandomResizedCrop 224, flip, normalise, float32 NCHW"}
_TRIES = 10

Work = Callable[[bytes], npt.NDArray[Any]]
Decode = Callable[[bytes], npt.NDArray[np.uint8]]

_SCALE = [1 / (255 * std) for std in STD]
_BIAS = [-mean / std for mean, std in zip(MEAN, STD, strict=True)]


def work(codec: str, task: str) -> Work:
    """The function for one photograph; imports what it needs now."""
    return {"pillow": _pillow, "cv2": _cv2, "simplejpeg": _simplejpeg}[codec](task)


def _pillow(task: str) -> Work:
    from PIL import Image

    def whole(data: bytes) -> npt.NDArray[np.uint8]:
        return np.asarray(Image.open(BytesIO(data)).convert("RGB").resize((SIDE, SIDE), Image.Resampling.BILINEAR))

    def crop(data: bytes) -> npt.NDArray[np.float32]:
        image = Image.open(BytesIO(data)).convert("RGB")
        left, top, width, height = random_window(image.width, image.height)
        box = (left, top, left + width, top + height)
        image = image.resize((SIDE, SIDE), Image.Resampling.BILINEAR, box=box)
        if random.random() < 0.5:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        return normalised(np.asarray(image))

    return whole if task == "whole" else crop


def _cv2(task: str) -> Work:
    import cv2

    def decode(data: bytes) -> npt.NDArray[np.uint8]:
        return cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB)

    return _resized_by_cv2(task, decode)


def _simplejpeg(task: str) -> Work:
    import simplejpeg

    return _resized_by_cv2(task, lambda data: simplejpeg.decode_jpeg(data, "RGB", fastdct=True, fastupsample=True))


def _resized_by_cv2(task: str, decode: Decode) -> Work:
    import cv2

    cv2.setNumThreads(0)

    def whole(data: bytes) -> npt.NDArray[np.uint8]:
        return cv2.resize(decode(data), (SIDE, SIDE))

    def crop(data: bytes) -> npt.NDArray[np.float32]:
        pixels = decode(data)
        left, top, width, height = random_window(pixels.shape[1], pixels.shape[0])
        part = cv2.resize(pixels[top : top + height, left : left + width], (SIDE, SIDE))
        return normalised(cv2.flip(part, 1) if random.random() < 0.5 else part)

    return whole if task == "whole" else crop


def random_window(width: int, height: int) -> tuple[int, int, int, int]:
    """(left, top, width, height) of RandomResizedCrop, as torchvision draws it."""
    for _ in range(_TRIES):
        area = width * height * random.uniform(*AREA)
        aspect = math.exp(random.uniform(math.log(ASPECT[0]), math.log(ASPECT[1])))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            return random.randint(0, width - w), random.randint(0, height - h), w, h
    w, h = min(width, round(height * ASPECT[1])), min(height, round(width / ASPECT[0]))
    return (width - w) // 2, (height - h) // 2, w, h


def normalised(pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    """(value / 255 - mean) / std, channels first: a plane at a time, which was faster than all at once."""
    out = np.empty((3, *pixels.shape[:2]), np.float32)
    for channel in range(3):
        np.multiply(pixels[..., channel], np.float32(_SCALE[channel]), out=out[channel])
        out[channel] += np.float32(_BIAS[channel])
    return out
