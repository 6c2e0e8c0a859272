"""Single samples by their ids, for map-style datasets: as charged, checked and read as a loader's batches are."""

from __future__ import annotations

from types import TracebackType
from typing import Final, Self

from penstock import config
from penstock.budget import Budget
from penstock.dataset.joined import Dataset
from penstock.errors import NoSuchSample
from penstock.loader.fetch import Fetcher
from penstock.loader.options import LoaderOptions
from penstock.loader.plan import BatchLimits, plan_units
from penstock.loader.reading import Reading
from penstock.order.order import Sequential
from penstock.order.split import Split, Steps

__all__ = ["Lookup"]

_CAP_BYTES: Final = 128 << 20
_LEAST_CHARGE_BYTES: Final = 64
_DEFAULT_STALL_TIMEOUT_S: Final = 300
_ONE: Final = Split(batch=1)


class Lookup:
    """Reads single samples of a dataset. Thread-safe; doesn't survive ``fork()``.

    Args:
        dataset: what to read from.
        options: num_workers, reader_mode, part_size, max_inflight_parts and timeout_seconds act here.
        cap_bytes: of all samples that are being read at one time, and of the largest.
    """

    def __init__(self, dataset: Dataset, options: LoaderOptions, *, cap_bytes: int = _CAP_BYTES) -> None:
        self._manifest = dataset.manifest
        self._fetcher = Fetcher(dataset, reading=Reading.of(options))
        self._budget = Budget(cap_bytes)
        self._limits = BatchLimits(1, None, cap_bytes)
        stall_s = config.positive_int("STALL_TIMEOUT_S", _DEFAULT_STALL_TIMEOUT_S)
        self._timeout_s = options.timeout_seconds or stall_s

    def __len__(self) -> int:
        return self._manifest.row_count

    def read(self, sample_id: int) -> bytes:
        """One sample as a copy that belongs to the caller.

        Raises:
            NoSuchSample: there is none with this id. An ``IndexError``.
            UnitTooLarge: it is larger than the cap.
            DeadlineExceeded: others that are being read left no room within ``timeout_seconds``.
            ClosedError: after ``close()``.
            StoreError, DataError: it can't be read.
        """
        if not 0 <= sample_id < len(self):
            raise NoSuchSample(f"sample {sample_id} of {len(self)}; give 0 to {len(self) - 1}")
        order, steps = Sequential(sample_id, 1), Steps(1, _ONE)
        (unit,) = plan_units(self._manifest, order, self._limits, self._fetcher.size_of, steps)
        charge = self._budget.reserve(max(_LEAST_CHARGE_BYTES, unit.payload_bytes), self._timeout_s)
        view = memoryview(charge.region())[: unit.payload_bytes]
        self._fetcher.fetch(unit, view)
        return bytes(view)

    def close(self) -> None:
        """End what is being read, and close its files. Safe twice."""
        self._budget.close()
        self._fetcher.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
