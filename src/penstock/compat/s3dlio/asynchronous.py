"""s3dlio's loaders for ``async for``: over ours, whose ``next()`` waits in a thread and never in the event loop."""

from __future__ import annotations

import asyncio
import hashlib
import warnings
from collections.abc import AsyncIterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Self

import numpy as np

from penstock.compat.s3dlio.dataset import PyDataset, PyVecDataset, require_s3
from penstock.compat.s3dlio.options import options_of
from penstock.compat.s3dlio.prefix import Prefix
from penstock.errors import ConfigError
from penstock.loader import DataLoader, LoaderOptions
from penstock.loader.options import AnyOptions
from penstock.loader.settings import refuse_memory_format, settle
from penstock.order.sampler import BlockSampler
from penstock.order.split import Steps
from penstock.order.state import Epoch

__all__ = ["AsyncBatches", "PyAsyncDataLoader", "PyBytesAsyncDataLoader", "PyS3AsyncDataLoader", "create_async_loader"]


class AsyncBatches:
    """One pass over the batches of a loader, for one event loop. Several tasks may share it.

    A task that is cancelled while it waits loses no batch: it is what the next ``anext()`` returns.
    """

    def __init__(self, prefix: Prefix, options: LoaderOptions) -> None:
        self._prefix = prefix
        self._options = options
        self._loader: DataLoader | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="penstock-async")
        self._turn = asyncio.Lock()
        self._coming: Future[list[bytes] | None] | None = None
        self._ended = False

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> list[bytes]:
        async with self._turn:
            if self._ended:
                raise StopAsyncIteration
            if self._coming is None:
                self._coming = self._thread.submit(self._next)
            try:
                batch = await asyncio.wrap_future(self._coming)
            except asyncio.CancelledError:
                if self._coming.cancelled():  # it hadn't begun; what has begun still comes
                    self._coming = None
                raise
            except BaseException:
                self._end()
                raise
            self._coming = None
            if batch is None:
                self._end()
                raise StopAsyncIteration
            return batch

    async def aclose(self) -> None:
        """End the pass, and wait for its threads."""
        self._ended = True
        if self._loader is not None:
            await asyncio.to_thread(self._loader.close)
        self._end()

    def _next(self) -> list[bytes] | None:
        if self._loader is None:
            self._loader = self._prefix.loader(self._options)
        batch = next(self._loader, None)
        if batch is None:
            self._loader.close()
            return None
        with batch:
            return [bytes(sample) for sample in batch]

    def _end(self) -> None:
        self._ended, self._coming, self._loader = True, None, None
        self._thread.shutdown(wait=False)


class PyBytesAsyncDataLoader:
    """Batches of a dataset as lists of bytes, for ``async for``; each loop is a pass of its own.

    The lists are copies that belong to the caller. What is read ahead lies in the loader's budget.

    Args:
        dataset: what to load.
        opts: how; by default as the dataset was given. A dict that has no ``batch_size``, or nothing, means 1.

    Raises:
        ConfigError: an option that can't be, or can't act.
        TypeError: options or a dataset of another type.
    """

    def __init__(self, dataset: PyDataset, opts: AnyOptions | None = None) -> None:
        if not isinstance(dataset, PyDataset):
            raise TypeError(f"dataset is {dataset!r}; give a PyDataset")
        self._prefix = dataset.prefix
        self._options = options_of(dataset.opts if opts is None else opts, batch_size=1)
        settle(self._options, {}, self._options)  # what can't act is refused here, not in the loop
        refuse_memory_format(self._options, "this loader gives bytes")

    def __aiter__(self) -> AsyncBatches:
        return AsyncBatches(self._prefix, self._options)


def create_async_loader(uri: str, opts: AnyOptions | None = None) -> PyBytesAsyncDataLoader:
    """A loader of what lies below a URI; see ``PyDataset`` and ``PyBytesAsyncDataLoader``."""
    return PyBytesAsyncDataLoader(PyDataset(uri, opts))


class PyS3AsyncDataLoader(PyBytesAsyncDataLoader):
    """Deprecated: ``create_async_loader``, for ``s3://`` alone."""

    def __init__(self, uri: str, opts: AnyOptions | None = None) -> None:
        warnings.warn("PyS3AsyncDataLoader is deprecated; use create_async_loader", DeprecationWarning, stacklevel=2)
        super().__init__(PyDataset(require_s3(uri), opts))


class PyAsyncDataLoader:
    """Batches of a ``PyVecDataset`` as lists of numbers, for ``async for``; each loop is a pass of its own.

    Args:
        dataset: the numbers.
        opts: batch_size, drop_last, shuffle, seed, samplers and shards act, as in every loader; nothing is read.

    Raises:
        ConfigError: an option that can't be, or can't act.
        TypeError: options or a dataset of another type.
    """

    def __init__(self, dataset: PyVecDataset, opts: AnyOptions | None = None) -> None:
        if not isinstance(dataset, PyVecDataset):
            raise TypeError(f"dataset is {dataset!r}; give a PyVecDataset")
        options = options_of(opts)
        settings = settle(options, {}, options)
        refuse_memory_format(options, "this loader gives numbers")
        if isinstance(settings.sampler, BlockSampler):
            raise ConfigError(f"sampler is {settings.sampler}, and these numbers aren't read; take RandomSampler()")
        digest = hashlib.sha256(dataset.array.astype("<i4").tobytes()).hexdigest()
        epoch = Epoch(digest, 0, len(dataset), settings.sampler.text, settings.seed, settings.epoch)
        self._values = dataset.array
        self._order = settings.sampler.order(epoch)
        assert settings.split is not None  # nothing cuts by bytes
        self._steps = Steps(self._order.count, settings.split)

    async def __aiter__(self) -> AsyncIterator[list[int]]:
        for step in range(self._steps.count):
            ids = self._order.at(np.arange(*self._steps.batch(step), dtype=np.int64))
            numbers: list[int] = self._values[ids].tolist()
            yield numbers
            await asyncio.sleep(0)  # others get their turn
