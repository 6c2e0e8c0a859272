"""The photographs of bench/images.py, as a folder of JPEG files and in the formats that contestants read.

Each is a random part of a photograph that scikit-learn or scikit-image ships, in a random size around 463 x 415, in
random light and with a sensor's noise, 4:2:0, quality 90 to 96: 80 KB on average. The noise is there because a
photograph that was scaled has none, and JPEG decodes what is smooth much faster than what a camera delivers.
"""

from __future__ import annotations

import functools
import importlib.util
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image

from _common import OUT, files_below, say

# Files inside the packages, by path: the packages' own loaders may fetch what is missing from the network.
_PICTURES = (
    ("skimage", "data/astronaut.png"),
    ("skimage", "data/chelsea.png"),
    ("skimage", "data/coffee.png"),
    ("skimage", "data/hubble_deep_field.jpg"),
    ("skimage", "data/motorcycle_left.png"),
    ("skimage", "data/rocket.jpg"),
    ("sklearn", "datasets/images/china.jpg"),
    ("sklearn", "datasets/images/flower.jpg"),
)
_WIDTHS, _HEIGHTS = (330, 597), (296, 535)  # pixels; 463 x 415 on average
_QUALITIES = (90, 97)
_NOISE = (2.0, 7.5)  # standard deviation of luma
_SEED = 20261122


class Photographs:
    """One folder with the photographs in all formats."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.folder = root / "folder"

    @property
    def paths(self) -> list[Path]:
        return files_below(self.folder)

    @property
    def labels(self) -> list[int]:
        """Of ``paths``: the number of each file's folder."""
        return [int(path.parent.name) for path in self.paths]

    def converted(self, name: str, convert: Callable[[Path], None]) -> Path:
        """The photographs in another format, made at the first call."""
        target = self.root / name
        if not target.exists():
            unfinished = target.with_name(f"{name}.unfinished")
            shutil.rmtree(unfinished, ignore_errors=True)
            convert(unfinished)
            unfinished.rename(target)
        return target


def photographs(count: int) -> Photographs:
    """The folder for so many photographs, made at the first call."""
    data = Photographs(OUT / f"photographs-{count}")
    data.converted("folder", lambda target: _cut_all(count, target))
    return data


def _cut_all(count: int, folder: Path) -> None:
    pictures = list(_bundled())
    if not pictures:
        raise SystemExit("scikit-learn and scikit-image ship no photographs here; install both")
    say(f"cutting {count} photographs out of {len(pictures)} into {folder} ...")
    places = [folder / f"{number % len(pictures)}" / f"{number:05}.jpg" for number in range(count)]
    for place in places[: len(pictures)]:
        place.parent.mkdir(parents=True)
    sources = [pictures[number % len(pictures)] for number in range(count)]
    with ProcessPoolExecutor(2) as pool:
        for _ in pool.map(_cut, sources, places, range(count), chunksize=32):
            pass


def _bundled() -> Iterator[Path]:
    for package, path in _PICTURES:
        spec = importlib.util.find_spec(package)
        file = Path(spec.origin).parent / path if spec is not None and spec.origin else None
        if file is not None and file.is_file():
            yield file


@functools.cache
def _opened(source: Path) -> Image.Image:
    return Image.open(source).convert("RGB")


def _cut(source: Path, target: Path, number: int) -> None:
    random = np.random.default_rng((_SEED, number))
    picture = _opened(source)
    share = random.uniform(0.5, 0.95)
    width, height = int(picture.width * share), int(picture.height * share)
    left = int(random.integers(0, picture.width - width + 1))
    top = int(random.integers(0, picture.height - height + 1))
    size = int(random.integers(*_WIDTHS)), int(random.integers(*_HEIGHTS))
    cut = picture.resize(size, Image.Resampling.BICUBIC, box=(left, top, left + width, top + height))
    noise = random.normal(0, random.uniform(*_NOISE), (size[1], size[0], 1))
    pixels = np.clip(np.asarray(cut) * random.uniform(0.75, 1.25) + noise, 0, 255).astype(np.uint8)
    quality = int(random.integers(*_QUALITIES))
    Image.fromarray(pixels).save(target, quality=quality, subsampling="4:2:0")
