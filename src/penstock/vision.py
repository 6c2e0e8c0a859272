"""Images: batches of decoded pixels and labels, raw and decoded bytes under one charge."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from penstock import config
from penstock.budget import Charge, Region
from penstock.errors import ConfigError, DecodeError, ManifestError, ObjectNotFound, PenstockError
from penstock.labels import read_labels
from penstock.loader.batch import require_torch
from penstock.loader.fetch import Fetcher
from penstock.loader.loader import DEFAULT_INFLIGHT_BYTES, Loader
from penstock.loader.pipeline import CostChanged, Work
from penstock.loader.plan import Unit
from penstock.proof import prove
from penstock.sizes import Size
from penstock.store import open_store

if TYPE_CHECKING:
    import torch

__all__ = ["DecodeSettings", "ImageFolderLoader"]

_BACKENDS = {"python": "python", "rust": "native", "native": "native"}
_CODECS = {"zune": "zune", "image": "image", "turbo": "turbo", "turbojpeg": "turbo"}
_RESIZERS = {"fast": "fast", "fir": "fast", "fast_image_resize": "fast", "image": "image"}
_CHANNELS = 3

Pixels = npt.NDArray[np.uint8]


class DecodeSettings:
    """How images are decoded, from the environment; every value is checked when a loader is made.

    ``PENSTOCK_DECODE_BACKEND`` is ``python`` (Pillow, one thread for each batch being built) or ``native`` (alias
    ``rust``): the native decoder where the core has one, else Pillow on ``PENSTOCK_DECODE_THREADS`` threads a batch.
    The codec and resize variables of the seed are checked and have no effect on Pillow.

    Raises:
        ConfigError: a value that isn't one of the choices; the message lists them.
    """

    def __init__(self) -> None:
        self.backend = config.choice("DECODE_BACKEND", "python", _BACKENDS)
        self.codec = config.choice("RUST_JPEG_CODEC", "zune", _CODECS)
        self.resizer = config.choice("RUST_RESIZE_BACKEND", "fast", _RESIZERS)
        threads = config.positive_int("DECODE_THREADS", os.cpu_count() or 1)
        self.threads = threads if self.backend == "native" else 1
        prove("vision_decode_backend_selected", backend="pillow", wanted=self.backend, threads=self.threads)


class ImageFolderLoader(Loader["tuple[torch.Tensor, torch.Tensor]"]):
    """Loads labelled images: ``(images, labels)`` for each batch.

    ``images`` is ``[B, 3, H, W]``, RGB, contiguous: float32 in [0, 1] (value / 255), or uint8 with ``to_float=False``;
    ``labels`` is int64 ``[B]``. The image tensor's memory lies in the loader's budget and is charged until the
    tensor and its last view are gone; a batch's raw bytes and pixels are charged together before it is read.

    Args:
        dataset_link: as in ``DataLoader``, and so are the arguments that aren't listed here.
        batch_size_samples: images in a batch.
        resize_hw: (height, width) that every image is resized to, with Pillow's default filter (bicubic). Without
            it, all images of a batch must have one size, and batches are built one after another.
        to_float: see above.

    Raises:
        ConfigError: an argument or decode variable that can't work.
        PenstockError: torch or Pillow isn't installed; the message names it.
    """

    def __init__(
        self,
        dataset_link: str,
        *,
        manifest_store_root: str | None = None,
        dev_manifest_path: str | None = None,
        batch_size_samples: int = 32,
        max_inflight_bytes: Size = DEFAULT_INFLIGHT_BYTES,
        max_queue_batches: int = 64,
        prefetch_batches: int = 1,
        target_batch_bytes: Size | None = None,
        max_batch_bytes: Size | None = None,
        start_id: int | None = None,
        end_id: int | None = None,
        node_id: str | None = None,
        shuffle: bool = False,
        seed: int = 0,
        epoch: int = 0,
        resize_hw: Sequence[int] | None = None,
        to_float: bool = True,
    ) -> None:
        self._resize_hw = _checked_hw(resize_hw)
        self._to_float = to_float
        self._settings = DecodeSettings()
        require_torch()
        _require_pillow()
        super().__init__(
            dataset_link,
            manifest_store_root=manifest_store_root,
            dev_manifest_path=dev_manifest_path,
            batch_size_samples=batch_size_samples,
            max_inflight_bytes=max_inflight_bytes,
            max_queue_batches=max_queue_batches,
            prefetch_batches=prefetch_batches,
            target_batch_bytes=target_batch_bytes,
            max_batch_bytes=max_batch_bytes,
            start_id=start_id,
            end_id=end_id,
            node_id=node_id,
            shuffle=shuffle,
            seed=seed,
            epoch=epoch,
        )
        self._classes: list[str] | None = None
        self._classes_read = False

    @property
    def classes(self) -> list[str] | None:
        """Names of the labels by id, from the dataset's ``_mx8/labels.tsv``; None when it has none."""
        if not self._classes_read:
            try:
                self._classes = read_labels(open_store(self._base).read("_mx8/labels.tsv"))
            except ObjectNotFound:
                self._classes = None
            self._classes_read = True
        return self._classes

    def _work(self) -> Work[tuple[torch.Tensor, torch.Tensor]]:
        return _DecodeImages(self._fetcher, self._resize_hw, self._to_float, self._settings.threads)

    def _concurrency(self, wanted: int) -> int:
        # Pixels that only the images themselves tell the size of are charged anew when they are known, and only
        # the one unit at the head may do that without holding what another waits for.
        return wanted if self._resize_hw is not None else 1


class _DecodeImages:
    """The work of an ImageFolderLoader."""

    def __init__(self, fetcher: Fetcher, resize_hw: tuple[int, int] | None, to_float: bool, threads: int) -> None:
        self._fetcher = fetcher
        self._resize_hw = resize_hw
        self._hw = resize_hw or (0, 0)  # without resizing: of the last batch, the best guess for the next
        self._dtype = np.dtype(np.float32 if to_float else np.uint8)
        self._threads = threads

    def cost_bytes(self, unit: Unit) -> int:
        return unit.payload_bytes + self._pixel_bytes(len(unit.sample_ids), self._hw)

    def build(self, unit: Unit, charge: Charge) -> tuple[torch.Tensor, torch.Tensor]:
        labels = _labels_of(unit)
        hw = self._hw
        pixels_charge = charge.split(self._pixel_bytes(len(unit.sample_ids), hw))
        raw = charge.region()
        self._fetcher.fetch(unit, memoryview(raw))
        images = _open_images(unit, memoryview(raw))
        if self._resize_hw is None:
            actual = _common_size(unit, images)
            if actual != hw:
                self._hw = actual
                raise CostChanged(self.cost_bytes(unit))
        pixels = self._decode(unit, images, pixels_charge.region(), hw)
        torch = require_torch()
        return torch.from_numpy(pixels), torch.from_numpy(labels)

    def _pixel_bytes(self, count: int, hw: tuple[int, int]) -> int:
        return count * _CHANNELS * hw[0] * hw[1] * self._dtype.itemsize

    def _decode(self, unit: Unit, images: list[Any], region: Region, hw: tuple[int, int]) -> npt.NDArray[Any]:
        flat: npt.NDArray[Any] = np.frombuffer(memoryview(region), dtype=self._dtype)
        out = flat.reshape(len(images), _CHANNELS, *hw)

        def decode(index: int) -> None:
            _store(_to_rgb(unit, index, images[index], self._resize_hw), out[index])

        _for_each(decode, len(images), self._threads)
        return out


def _for_each(task: Callable[[int], None], count: int, threads: int) -> None:
    if threads == 1 or count == 1:
        for index in range(count):
            task(index)
        return
    with ThreadPoolExecutor(min(threads, count), thread_name_prefix="penstock-decode") as pool:
        for _ in pool.map(task, range(count)):
            pass


def _store(pixels: Pixels, out: npt.NDArray[Any]) -> None:
    planes = pixels.transpose(2, 0, 1)
    if out.dtype == np.uint8:
        out[...] = planes
    else:
        np.divide(planes, np.float32(255), out=out)


def _labels_of(unit: Unit) -> npt.NDArray[np.int64]:
    if unit.labels is None:
        raise ManifestError(
            f"batch {unit.index} has no labels; ImageFolderLoader needs samples with imagefolder hints "
            "(decode_hint mx8:vision:imagefolder;label_id=<n>): pack with label_mode='imagefolder'"
        )
    return unit.labels


def _open_images(unit: Unit, raw: memoryview) -> list[Any]:
    """Images whose headers are read and whose pixels aren't; they read from ``raw`` when they are decoded."""
    from PIL import Image

    starts = unit.dest_offsets()
    images = []
    for index in range(len(unit.sample_ids)):
        # BytesIO copies: one image's compressed bytes, for as long as it is being decoded.
        try:
            images.append(Image.open(BytesIO(raw[starts[index] : starts[index + 1]])))
        except Exception as error:
            raise _decode_error(unit, index, error) from error
    return images


def _common_size(unit: Unit, images: list[Any]) -> tuple[int, int]:
    sizes = {(image.height, image.width) for image in images}
    if len(sizes) > 1:
        raise ConfigError(
            f"batch {unit.index} holds images of {len(sizes)} sizes ({sorted(sizes)[0]} and {sorted(sizes)[-1]} as "
            "height, width among them), which can't be stacked; give resize_hw=(height, width)"
        )
    return sizes.pop()


def _to_rgb(unit: Unit, index: int, image: Any, resize_hw: tuple[int, int] | None) -> Pixels:
    try:
        rgb = image.convert("RGB")
        if resize_hw is not None and (rgb.height, rgb.width) != resize_hw:
            rgb = rgb.resize((resize_hw[1], resize_hw[0]))
        return np.asarray(rgb)
    except Exception as error:
        raise _decode_error(unit, index, error) from error


def _decode_error(unit: Unit, index: int, error: Exception) -> DecodeError:
    sample = int(unit.sample_ids[index])
    return DecodeError(
        f"sample {sample} ({int(unit.lengths[index])} bytes) can't be decoded: {error}; replace or remove the image",
        sample_id=sample,
    )


def _checked_hw(resize_hw: Sequence[int] | None) -> tuple[int, int] | None:
    if resize_hw is None:
        return None
    pair = tuple(resize_hw)
    if len(pair) != 2 or not all(isinstance(side, int) and side > 0 for side in pair):
        raise ConfigError(f"resize_hw is {resize_hw!r}; give (height, width) in pixels, both at least 1")
    return pair[0], pair[1]


def _require_pillow() -> None:
    try:
        import PIL.Image  # noqa: F401
    except ImportError as error:
        raise PenstockError("PIL isn't installed; `pip install pillow` to decode images") from error
