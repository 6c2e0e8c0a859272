"""What a transform is given."""

from __future__ import annotations

import hashlib
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

__all__ = ["Sample", "UInt8Array", "random_key", "worker_seed"]

UInt8Array: TypeAlias = npt.NDArray[np.uint8]


class Sample:
    """One sample's bytes, and what is known of it.

    Attributes:
        data: its bytes, uint8 ``[n]``, a view without a copy that is valid until the transform returns.
        id: its row in the manifest.
        label: its label id, or None when the samples have none.
    """

    __slots__ = ("_chance", "_key", "_rng", "data", "id", "label")

    def __init__(self, data: UInt8Array, sample_id: int, label: int | None, *, key: int, chance: int) -> None:
        self.data = data
        self.id = sample_id
        self.label = label
        self._key = key
        self._chance = chance
        self._rng: np.random.Generator | None = None

    @property
    def rng(self) -> np.random.Generator:
        """Random numbers of this sample in this epoch: by manifest, seed, epoch and sample id, and nothing else.

        Where samples come several times in an epoch, they are by where it stands instead of by its id.
        Philox (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011) with these as its key.
        """
        if self._rng is None:
            key = np.array([self._key, self._chance], dtype=np.uint64)
            self._rng = np.random.Generator(np.random.Philox(key=key))
        return self._rng

    def __len__(self) -> int:
        return len(self.data)

    def __bytes__(self) -> bytes:
        return self.data.tobytes()

    def __repr__(self) -> str:
        return f"Sample(id={self.id}, label={self.label}, bytes={len(self)})"


def random_key(manifest_hash: str, seed: int, epoch: int) -> int:
    """What the random numbers of all samples of an epoch have in common, 64 bits."""
    return _number(f"penstock transform {manifest_hash} {seed} {epoch}")


def worker_seed(key: int, start: int) -> int:
    """For the global generators of a worker process: the ``start``-th that was started, in the epoch of this key."""
    return _number(f"penstock worker {key} {start}")


def _number(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little")
