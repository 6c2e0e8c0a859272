"""Images: batches of decoded pixels and labels, raw and decoded bytes under one charge."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Unpack, cast

import numpy as np
import numpy.typing as npt

from penstock import config
from penstock._core import HAS_JPEG
from penstock.budget import Charge
from penstock.dataset.joined import label_names
from penstock.errors import ConfigError, ManifestError, PenstockError
from penstock.loader.arguments import LoaderArguments
from penstock.loader.augment import ImageTransform, Randomness
from penstock.loader.batch import require_torch
from penstock.loader.decode import (
    Decoder,
    Encoded,
    Layout,
    NativeDecoder,
    Picture,
    PillowDecoder,
    PixelFormat,
    PixelType,
)
from penstock.loader.faults import FaultPolicy, Faults, rearrange
from penstock.loader.loader import Loader
from penstock.loader.options import AnyOptions, MemoryFormat
from penstock.loader.plan import Unit
from penstock.loader.profiles import Threads
from penstock.loader.raw import OwnBytes, RawBytes
from penstock.loader.settings import defaults, settle
from penstock.loader.work import CostChanged, Delivery, Work
from penstock.observe.stages import StageClock
from penstock.order.mixture import Mixture
from penstock.order.order import Int64Array
from penstock.proof import prove
from penstock.sizes import whole_number

if TYPE_CHECKING:
    import torch

__all__ = ["DecodeSettings", "ImageFolderLoader"]

_BACKENDS = {"python": "python", "rust": "native", "native": "native"}
_CODECS = {"zune": "zune", "image": "image", "turbo": "turbo", "turbojpeg": "turbo"}
_RESIZERS = {"fast": "fast", "fir": "fast", "fast_image_resize": "fast", "image": "image"}
_MOST_SIDE = 1 << 16
_MOST_PIXELS = 1 << 26  # 64 Mpixel: a progressive file of that size takes 200 MB inside libjpeg


@dataclass(frozen=True, slots=True)
class DecodeSettings:
    """How images are decoded, from the environment.

    Attributes:
        backend: ``native`` (the core's JPEG decoder; Pillow for other files) or ``python`` (Pillow for all).
        codec: checked, and without effect: libjpeg-turbo is the one that we use.
        resizer: checked, and without effect.
        threads: that decode, over all batches of a loader.
        most_pixels: a larger picture is an error.
    """

    backend: str
    codec: str
    resizer: str
    threads: int
    most_pixels: int

    @classmethod
    def from_environment(cls) -> DecodeSettings:
        """Read and check every variable. ``native`` is taken where the core has it and nothing else was asked for.

        Raises:
            ConfigError: a value that isn't one of the choices; the message lists them.
        """
        return cls(
            backend=config.choice("DECODE_BACKEND", "native", _BACKENDS) if HAS_JPEG else _without_jpeg(),
            codec=config.choice("RUST_JPEG_CODEC", "zune", _CODECS),
            resizer=config.choice("RUST_RESIZE_BACKEND", "fast", _RESIZERS),
            threads=config.positive_int("DECODE_THREADS", len(os.sched_getaffinity(0))),
            most_pixels=config.positive_int("MAX_IMAGE_PIXELS", _MOST_PIXELS),
        )

    def decoder(self) -> Decoder:
        """The decoder that these settings mean."""
        prove("vision_decode_backend_selected", backend=self.backend, threads=self.threads)
        if self.backend == "native":
            return NativeDecoder(self.threads, most_pixels=self.most_pixels)
        return PillowDecoder(self.threads, whole_filter="bicubic", most_pixels=self.most_pixels)


def _without_jpeg() -> str:
    config.choice("DECODE_BACKEND", "python", _BACKENDS)
    return "python"


class ImageFolderLoader(Loader["tuple[torch.Tensor, torch.Tensor]"]):
    """Loads labelled images: ``(images, labels)`` for each batch.

    ``images`` is ``[B, 3, H, W]`` (or ``[B, H, W, 3]``), RGB, upright, contiguous; ``labels`` is int64 ``[B]``. The
    image tensor's memory lies in the loader's budget and is charged until the tensor and its last view are gone; a
    batch's raw bytes and pixels are charged together before it is read.

    What becomes of an image depends on (manifest hash, seed, epoch, sample id) alone, never on threads, batches or
    prefetch; where images come several times in an epoch, on their place in it instead of their id. Cropping, resizing,
    mirroring and normalising are one pass.

    Args:
        dataset_link: as in ``DataLoader``, and so are the arguments that aren't listed here.
        batch_size_samples: images in a batch.
        resize_hw: (height, width) that every image is resized to, whatever its shape. Without this or a crop, all
            images of a batch must have one size, and batches are built one after another.
        to_float: float32 in [0, 1] (value / 255); False gives uint8. ``dtype`` says it too.
        center_crop_hw: (height, width) cut out of the middle, after the shorter side was resized to ``shorter_side``.
        shorter_side: of ``center_crop_hw``; by default its own shorter side.
        random_resized_crop_hw: (height, width) that a random part of each image is resized to.
        crop_area: least and most share of the image's area in a random part.
        crop_aspect: least and most width / height of a random part.
        horizontal_flip: probability of mirroring left and right.
        mean: of each channel, in [0, 1] units, subtracted from float images.
        std: of each channel, that float images are then divided by.
        dtype: ``uint8``, ``float32`` or ``bfloat16``.
        layout: ``NCHW`` or ``NHWC``; by default what ``memory_format`` says, or ``NCHW``.

    Raises:
        ConfigError: an argument or decode variable that can't work.
        PenstockError: torch or Pillow isn't installed; the message names it.
    """

    def __init__(
        self,
        dataset_link: str | Mixture,
        options: AnyOptions | None = None,
        *,
        resize_hw: Sequence[int] | None = None,
        to_float: bool = True,
        center_crop_hw: Sequence[int] | None = None,
        shorter_side: int | None = None,
        random_resized_crop_hw: Sequence[int] | None = None,
        crop_area: tuple[float, float] = (0.08, 1.0),
        crop_aspect: tuple[float, float] = (3 / 4, 4 / 3),
        horizontal_flip: float = 0.0,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        dtype: PixelType | None = None,
        layout: Layout | None = None,
        **arguments: Unpack[LoaderArguments],
    ) -> None:
        settings = settle(options, arguments, defaults(batch_size=32))
        sizes = {"resize": resize_hw, "center_crop": center_crop_hw, "random_resized_crop": random_resized_crop_hw}
        rest = ImageTransform(area=crop_area, aspect=crop_aspect, flip_probability=horizontal_flip)
        if settings.transform is not None:
            raise ConfigError(
                "an ImageFolderLoader makes pixels by itself and takes no transform; load files with penstock.load and "
                "decode them in the transform"
            )
        self._transform = _transform(sizes, shorter_side, rest)
        form = _layout(layout, settings.options.memory_format)
        self._format = _format(dtype or ("float32" if to_float else "uint8"), form, mean, std)
        require_torch()
        _require_pillow()
        self._decode = DecodeSettings.from_environment()
        self._decoder = self._decode.decoder()
        super().__init__(dataset_link, settings)
        self._classes: list[str] | None = None
        self._classes_read = False

    @property
    def classes(self) -> list[str] | None:
        """Names of the labels by id, from the dataset's ``_mx8/labels.tsv``; None when it has none.

        Of a mixture, those of all its sources; None with ``labels="own"``.
        """
        if not self._classes_read:
            self._classes = label_names(self._dataset)
            self._classes_read = True
        return self._classes

    def _work(self) -> Work[tuple[torch.Tensor, torch.Tensor]]:
        randomness = Randomness(self.manifest_hash, self._course.epoch.seed, self.epoch)
        return _DecodeImages(
            self._windows or OwnBytes(self._fetcher),
            self._settings.faults,
            self._decoder,
            self._transform,
            randomness=randomness,
            form=self._format,
            clock=self._clock,
        )

    def _side_by_side(self) -> bool:
        # Pixels that only the images themselves tell the size of are charged anew when they are known, and only
        # the one unit at the head may do that without holding what another waits for.
        return self._transform.out_hw is not None

    def _threads(self) -> Threads:
        asked = self._settings.options.num_workers
        if asked:
            return Threads(asked, chosen=True)
        return Threads(self._decode.threads, chosen=config.lookup("DECODE_THREADS") is not None)

    def _thread_setter(self) -> Callable[[int], None]:
        return self._decoder.resize


class _DecodeImages:
    """The work of an ImageFolderLoader."""

    def __init__(
        self,
        raw: RawBytes,
        policy: FaultPolicy,
        decoder: Decoder,
        transform: ImageTransform,
        *,
        randomness: Randomness,
        form: PixelFormat,
        clock: StageClock,
    ) -> None:
        self._raw = raw
        self._policy = policy
        self._decoder = decoder
        self._transform = transform
        self._randomness = randomness
        self._form = form
        self._clock = clock
        self._hw = transform.out_hw or (0, 0)  # without one: of the last batch, the best guess for the next

    def cost_bytes(self, unit: Unit) -> int:
        return self._raw.cost_bytes(unit) + self._form.bytes(len(unit.sample_ids), self._hw)

    def build(self, unit: Unit, charge: Charge) -> Delivery[tuple[torch.Tensor, torch.Tensor]]:
        _labels_of(unit)
        hw, count = self._hw, len(unit.sample_ids)
        pixels_charge = charge.split(self._form.bytes(count, hw))
        # What lives longer is placed first: the gaps that raw bytes leave between pixels then fit the next raw bytes.
        flat: npt.NDArray[Any] = np.frombuffer(memoryview(pixels_charge.region()), dtype=self._form.dtype)
        faults = self._policy.faults()
        pieces = self._raw.pieces(unit, charge, faults)
        started = time.monotonic()
        files = [
            Encoded(
                piece.data,
                piece.offsets,
                piece.lengths,
                unit.sample_ids[piece.first : piece.end],
                turn=unit.index,
                faults=faults.of_rows(piece.first, piece.end),
            )
            for piece in pieces
        ]
        sizes = np.concatenate([self._decoder.sizes(some) for some in files])
        if self._transform.out_hw is None:
            actual = _common_size(unit.index, np.delete(sizes, faults.rows(), axis=0)) or hw
            if actual != hw:
                self._hw = actual
                raise CostChanged(self.cost_bytes(unit))
        windows = self._transform.windows(sizes, unit.chances, self._randomness)
        flips = self._transform.flips(unit.chances, self._randomness)
        pixels = flat.reshape(self._form.shape(count, hw))
        for piece, some in zip(pieces, files, strict=True):
            rows = slice(piece.first, piece.end)
            self._decoder.decode(some, Picture(windows[rows], flips[rows], hw), pixels[rows], self._form)
        delivery = self._delivery(unit, pixels, faults)
        self._clock.record("decode", unit.index, started)
        return delivery

    def _delivery(
        self, unit: Unit, pixels: npt.NDArray[Any], faults: Faults
    ) -> Delivery[tuple[torch.Tensor, torch.Tensor]]:
        """The pictures that are sound, with their labels."""
        mended = None
        if len(faults):
            self._raw.name(unit, faults)
            count = len(unit.sample_ids)
            mended = self._policy.mend(unit, faults, np.zeros(count, dtype=np.int64))  # any picture fits any place
            rearrange(pixels, mended.rows, np.arange(count), np.ones(count, dtype=np.int64))
            pixels = pixels[: len(mended.rows)]
        labels = _labels_of(unit if mended is None else unit.take(mended.rows))
        torch = require_torch()
        images = torch.from_numpy(pixels)
        if self._form.type == "bfloat16":
            images = images.view(torch.bfloat16)
        return Delivery.of(unit, (images, torch.from_numpy(labels)), mended)


def _labels_of(unit: Unit) -> Int64Array:
    if unit.labels is None:
        raise ManifestError(
            f"batch {unit.index} has no labels: pack the folder with label_mode='imagefolder' first, and load what "
            "that made. ImageFolderLoader needs samples with imagefolder hints (decode_hint "
            "mx8:vision:imagefolder;label_id=<n>)"
        )
    return unit.labels


def _common_size(batch: int, sizes: Int64Array) -> tuple[int, int] | None:
    """The one size (height, width) that all pictures of a batch have; None where there are none."""
    distinct = sorted({(height, width) for height, width in sizes.tolist()})
    if len(distinct) > 1:
        raise ConfigError(
            f"batch {batch} holds images of {len(distinct)} sizes ({distinct[0]} and {distinct[-1]} as "
            "height, width among them), which can't be stacked; give resize_hw=(height, width)"
        )
    return distinct[0] if distinct else None


def _transform(
    sizes: dict[str, Sequence[int] | None], shorter_side: int | None, rest: ImageTransform
) -> ImageTransform:
    given = {f"{name}_hw": _checked_hw(f"{name}_hw", hw) for name, hw in sizes.items() if hw is not None}
    if len(given) > 1:
        raise ConfigError(f"{' and '.join(given)} exclude one another; give one of them")
    name, out_hw = next(iter(given.items()), ("resize_hw", None))
    crop: dict[str, Literal["none", "center", "random"]] = {
        "resize_hw": "none",
        "center_crop_hw": "center",
        "random_resized_crop_hw": "random",
    }
    if shorter_side is not None and (crop[name] != "center" or out_hw is None or shorter_side < min(out_hw)):
        raise ConfigError(
            f"shorter_side is {shorter_side}; it goes with center_crop_hw, and is at least its shorter side"
        )
    return ImageTransform(out_hw, crop[name], shorter_side, rest.area, rest.aspect, rest.flip_probability)


def _checked_hw(name: str, hw: Sequence[int]) -> tuple[int, int]:
    try:
        height, width = hw
        return whole_number("height", height, least=1, most=_MOST_SIDE), whole_number(
            "width", width, least=1, most=_MOST_SIDE
        )
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{name} is {hw!r}; give (height, width) in pixels, both from 1 to {_MOST_SIDE}") from error


def _layout(layout: str | None, memory_format: MemoryFormat) -> str:
    asked = {"auto": None, "channels_first": "NCHW", "channels_last": "NHWC"}[memory_format]
    if layout is not None and asked is not None and layout != asked:
        raise ConfigError(f"layout is {layout!r} and memory_format {memory_format!r}; give one of them")
    return layout or asked or "NCHW"


def _format(dtype: str, layout: str, mean: Sequence[float] | None, std: Sequence[float] | None) -> PixelFormat:
    if dtype not in ("uint8", "float32", "bfloat16"):
        raise ConfigError(f"dtype is {dtype!r}; choose uint8, float32 or bfloat16")
    if layout not in ("NCHW", "NHWC"):
        raise ConfigError(f"layout is {layout!r}; choose NCHW or NHWC")
    if dtype == "uint8" and (mean is not None or std is not None):
        raise ConfigError("mean and std change real numbers; choose dtype float32 or bfloat16 with them")
    return PixelFormat(
        type=cast(PixelType, dtype),
        layout=cast(Layout, layout),
        mean=_channels("mean", mean, 0.0),
        std=_channels("std", std, 1.0),
    )


def _channels(name: str, values: Sequence[float] | None, default: float) -> tuple[float, float, float]:
    if values is None:
        return (default, default, default)
    if len(values) != 3 or (name == "std" and not all(value > 0 for value in values)):
        raise ConfigError(f"{name} is {values!r}; give a number for each of the three channels, std above 0")
    return float(values[0]), float(values[1]), float(values[2])


def _require_pillow() -> None:
    try:
        import PIL.Image  # noqa: F401
    except ImportError as error:
        raise PenstockError("PIL isn't installed; `pip install pillow` to decode images") from error
