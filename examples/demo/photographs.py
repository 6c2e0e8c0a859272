"""An ImageFolder of real photographs, cut from the sample pictures of scikit-learn and scikit-image."""

from __future__ import annotations

import importlib.util
import os
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image

# Files inside the packages, by path: the packages' own loaders may fetch what is missing from the network.
PICTURES = {
    "astronaut": ("skimage", "data/astronaut.png"),
    "cat": ("skimage", "data/chelsea.png"),
    "coffee": ("skimage", "data/coffee.png"),
    "flower": ("sklearn", "datasets/images/flower.jpg"),
    "galaxies": ("skimage", "data/hubble_deep_field.jpg"),
    "motorcycle": ("skimage", "data/motorcycle_left.png"),
    "rocket": ("skimage", "data/rocket.jpg"),
    "temple": ("sklearn", "datasets/images/china.jpg"),
}
IMAGES_PER_CLASS = 250
SIZES = (256, 480)  # pixels of a side
SEED = 20_250_101


def image_folder(out: Path, say: Callable[[str], None], images_per_class: int = IMAGES_PER_CLASS) -> Path:
    """The folder of photographs below ``out``; made at the first call, some tens of MB of JPEG."""
    folder = out / "photographs"
    if folder.is_dir():
        return folder
    pictures = dict(_pictures())
    if len(pictures) < 2:
        raise SystemExit("demo: error: scikit-learn and scikit-image ship no photographs here; give DATA=folder")
    say(f"cutting {images_per_class * len(pictures)} photographs out of {len(pictures)} into {folder} ...")
    unfinished = folder.with_suffix(".unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        tasks = [
            pool.submit(_cut, picture, unfinished / name / f"{number:04}.jpg", SEED + 1000 * place + number)
            for place, (name, picture) in enumerate(pictures.items())
            for number in range(images_per_class)
        ]
        for task in tasks:
            task.result()
    unfinished.rename(folder)
    return folder


def _pictures() -> Iterator[tuple[str, Image.Image]]:
    for name, (package, path) in PICTURES.items():
        spec = importlib.util.find_spec(package)
        file = Path(spec.origin).parent / path if spec is not None and spec.origin else None
        if file is not None and file.is_file():
            yield name, Image.open(file).convert("RGB")


def _cut(picture: Image.Image, target: Path, seed: int) -> None:
    """A random part of a picture in a random size, light and orientation, with the noise of a camera."""
    random = np.random.default_rng(seed)
    share = random.uniform(0.3, 0.9)
    width, height = (int(side * share) for side in picture.size)
    left = int(random.integers(0, picture.width - width + 1))
    top = int(random.integers(0, picture.height - height + 1))
    size = tuple(int(side) for side in random.integers(*SIZES, 2))
    cut = picture.resize(size, Image.Resampling.BILINEAR, box=(left, top, left + width, top + height))
    if random.random() < 0.5:
        cut = cut.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    noise = 4 * random.standard_normal((size[1], size[0], 1), dtype=np.float32)
    pixels = np.asarray(cut) * np.float32(random.uniform(0.7, 1.3)) + noise
    pixels = np.clip(pixels, 0, 255, out=pixels).astype(np.uint8)
    target.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(target, quality=92)
