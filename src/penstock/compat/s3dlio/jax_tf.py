"""s3dlio's iterables for JAX and TensorFlow. JAX takes the NumPy arrays as they are, so that it needn't be there."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from penstock.compat.s3dlio.options import options_of
from penstock.compat.s3dlio.prefix import Prefix
from penstock.errors import PenstockError
from penstock.loader.options import AnyOptions

__all__ = ["JaxIterable", "S3JaxIterable", "make_tf_dataset"]


class JaxIterable:
    """The samples below a URI as NumPy arrays, uint8 ``[n]``, which ``jax.numpy.asarray`` takes.

    Args:
        uri: as in ``PyDataset``.
        loader_opts: how to load; ``batch_size`` says how many samples are read together.
        transform: is called with each array; what it returns is what the loop gets.
        writable: the arrays may be written to, at the cost of a copy.
        suppress_nonwritable_warning: NumPy has no such warning to suppress.
    """

    def __init__(
        self,
        uri: str,
        *,
        loader_opts: AnyOptions | None = None,
        transform: Callable[[npt.NDArray[np.uint8]], Any] | None = None,
        writable: bool = False,
        suppress_nonwritable_warning: bool = True,
    ) -> None:
        del suppress_nonwritable_warning
        self._prefix = Prefix.find(uri)
        self._options = options_of(loader_opts, batch_size=1, prefetch=8)
        self._transform = transform
        self._writable = writable

    @classmethod
    def from_prefix(
        cls,
        uri: str,
        *,
        transform: Callable[[npt.NDArray[np.uint8]], Any] | None = None,
        writable: bool = False,
        suppress_nonwritable_warning: bool = True,
        **loader_opts: Any,
    ) -> Self:
        """The same, with fields of ``LoaderOptions`` as keywords: ``batch_size`` is 1 and ``prefetch`` 8 by default."""
        return cls(
            uri,
            loader_opts=loader_opts,
            transform=transform,
            writable=writable,
            suppress_nonwritable_warning=suppress_nonwritable_warning,
        )

    def __iter__(self) -> Iterator[Any]:
        arrays = map(self._array, self._prefix.samples(self._options))
        return arrays if self._transform is None else map(self._transform, arrays)

    def _array(self, sample: bytes) -> npt.NDArray[np.uint8]:
        return np.frombuffer(bytearray(sample) if self._writable else sample, dtype=np.uint8)


class S3JaxIterable(JaxIterable):
    """Deprecated: ``JaxIterable``."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        warnings.warn("S3JaxIterable is deprecated; use JaxIterable", DeprecationWarning, stacklevel=2)
        super().__init__(*args, **kwargs)


def make_tf_dataset(
    uri: str,
    *,
    map_fn: Callable[..., Any] | None = None,
    writable: bool = False,
    suppress_nonwritable_warning: bool = True,
    **loader_opts: Any,
) -> Any:
    """A ``tf.data.Dataset`` of the samples below a URI, uint8 ``[n]``; takes what ``JaxIterable.from_prefix`` takes.

    Args:
        uri: as in ``PyDataset``.
        map_fn: mapped over the dataset.
        writable: of no effect: TensorFlow copies what it is given.
        suppress_nonwritable_warning: the same.
        loader_opts: fields of ``LoaderOptions``.

    Raises:
        PenstockError: tensorflow isn't installed.
    """
    try:
        import tensorflow as tf
    except ImportError as error:
        raise PenstockError("tensorflow isn't installed; `pip install tensorflow` to get a tf.data.Dataset") from error
    del writable, suppress_nonwritable_warning
    samples = JaxIterable.from_prefix(uri, **loader_opts)
    dataset = tf.data.Dataset.from_generator(
        lambda: iter(samples), output_signature=tf.TensorSpec(shape=(None,), dtype=tf.uint8)
    )
    return dataset if map_fn is None else dataset.map(map_fn, num_parallel_calls=tf.data.AUTOTUNE)
