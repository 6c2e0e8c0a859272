"""Import MosaicML Streaming without torchvision.

Streaming 0.13 imports torchvision for its image datasets, which nothing here uses, and torchvision's build needs
CUDA's libraries. Stand-ins for the three names that are imported take its place; all else that runs is Streaming's
own code, as it was installed.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from types import ModuleType
from typing import Any


def import_streaming() -> Any:
    """The module ``streaming``.

    Raises:
        ImportError: it, or something that it needs, isn't installed.
    """
    if importlib.util.find_spec("torchvision") is None:
        importlib.import_module("transformers.utils")  # looks for torchvision itself, and must not find this one
        _pretend("torchvision")
        _pretend("torchvision.datasets", VisionDataset=_VisionDataset, CIFAR10=_VisionDataset)
        _pretend("torchvision.transforms")
        _pretend("torchvision.transforms.functional", to_tensor=None)
    return importlib.import_module("streaming")


class _VisionDataset:
    """Something to derive from."""


def _pretend(name: str, **names: object) -> None:
    module = ModuleType(name)
    vars(module).update(names)
    sys.modules[name] = module
