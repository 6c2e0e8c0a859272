"""s3dlio's datasets: the objects below a URI, and a list of numbers."""

from __future__ import annotations

import asyncio
import operator
import os
import threading
import warnings
from collections.abc import Iterable
from typing import Any, Final, SupportsIndex

import numpy as np
import numpy.typing as npt

from penstock.compat.s3dlio.options import options_of
from penstock.compat.s3dlio.prefix import Prefix
from penstock.errors import ConfigError, NoSuchSample
from penstock.loader import LoaderOptions
from penstock.loader.lookup import Lookup
from penstock.loader.options import AnyOptions

__all__ = ["PyDataset", "PyS3Dataset", "PyVecDataset", "Samples", "create_dataset", "require_s3"]

_I32: Final = np.iinfo(np.int32)


class Samples:
    """The samples below a URI by their numbers. Goes through pickle and ``fork()``: each process opens its own files.

    Attributes:
        prefix: what was listed.
        options: how to read.
    """

    def __init__(self, prefix: Prefix, options: LoaderOptions) -> None:
        self.prefix = prefix
        self.options = options
        self._opening = threading.Lock()
        self._opened: tuple[int, Lookup] | None = None

    def __len__(self) -> int:
        return len(self._lookup())

    def read(self, index: int) -> bytes:
        """One sample.

        Raises:
            NoSuchSample: there is none with this number. An ``IndexError``.
        """
        return self._lookup().read(index)

    def _lookup(self) -> Lookup:
        with self._opening:
            if self._opened is None or self._opened[0] != os.getpid():
                self._opened = os.getpid(), Lookup(self.prefix.open(), self.options)
            return self._opened[1]

    def __reduce__(self) -> tuple[Any, ...]:
        return Samples, (self.prefix, self.options)


class PyDataset:
    """The objects below a URI, as they were listed when this was made.

    Args:
        uri: ``file://`` (a folder, or one file), ``s3://``, ``gs://`` or ``az://``. What was packed is loaded
            by sample.
        opts: how to read; loaders of this dataset go by it where they are given nothing else.

    Raises:
        ConfigError: a scheme that can't be loaded from, or an option that can't be.
        ObjectNotFound: there is no such path.
        TypeError: options of another type.
    """

    def __init__(self, uri: str, opts: AnyOptions | None = None) -> None:
        self._opts = opts
        self._samples = Samples(Prefix.find(uri), options_of(opts))

    @property
    def prefix(self) -> Prefix:
        """What was listed."""
        return self._samples.prefix

    @property
    def opts(self) -> AnyOptions | None:
        """As they were given."""
        return self._opts

    def __len__(self) -> int:
        return len(self._samples)

    def keys(self) -> list[str]:
        """Of each item: its path below the folder, or its key in the bucket."""
        return self.prefix.keys()

    async def get_item(self, index: int) -> bytes:
        """The bytes of one item; the event loop goes on meanwhile.

        Raises:
            NoSuchSample: there is no such item. A ``RuntimeError``, and an ``IndexError``.
            StoreError, DataError: it can't be read.
        """
        if not 0 <= index < len(self):
            local = f"Index {index} out of bounds: there are {len(self)} items"
            raise NoSuchSample(local if self.prefix.is_local else f"index out of range: {index} of {len(self)} items")
        return await asyncio.to_thread(self._samples.read, index)


class PyS3Dataset(PyDataset):
    """Deprecated: ``PyDataset``, for ``s3://`` alone."""

    def __init__(self, uri: str, opts: AnyOptions | None = None) -> None:
        warnings.warn("PyS3Dataset is deprecated; use PyDataset", DeprecationWarning, stacklevel=2)
        super().__init__(require_s3(uri), opts)


def create_dataset(uri: str, opts: AnyOptions | None = None) -> PyDataset:
    """See ``PyDataset``."""
    return PyDataset(uri, opts)


def require_s3(uri: str) -> str:
    """The URI itself.

    Raises:
        ConfigError: it is not of S3.
    """
    if not uri.lower().startswith("s3://"):
        raise ConfigError(f"{uri!r} isn't s3://bucket/prefix; PyDataset and PyBytesAsyncDataLoader take other URIs")
    return uri


class PyVecDataset:
    """A list of whole numbers of 32 bits, in memory.

    Raises:
        OverflowError: a number of more bits.
        TypeError: something else.
    """

    def __init__(self, values: Iterable[SupportsIndex]) -> None:
        numbers = [operator.index(value) for value in values]
        for number in numbers:
            if not _I32.min <= number <= _I32.max:
                raise OverflowError(f"{number} doesn't fit in 32 bits; give {_I32.min} to {_I32.max}")
        self._values = np.array(numbers, dtype=np.int32)
        self._values.flags.writeable = False

    @property
    def array(self) -> npt.NDArray[np.int32]:
        """All of them, int32 ``[n]``, read-only."""
        return self._values

    def __len__(self) -> int:
        return len(self._values)

    def __getitem__(self, index: int) -> int:
        if not 0 <= index < len(self):
            raise NoSuchSample(f"index out of range: {index} of {len(self)} numbers")
        return int(self._values[index])
