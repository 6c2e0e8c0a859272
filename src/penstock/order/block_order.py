"""The order of a block shuffle: neighbours stay near enough to be read together. Pure, in O(1) memory.

Ids are cut into **blocks** of neighbours, blocks are permuted, so many of them make a **window**, and the samples of a
window are permuted among each other. Whoever reads a window reads a few long ranges; whoever wants it more random
takes smaller blocks (more reads) or larger windows (more memory).

Any position can be evaluated by itself. Both permutations are those of ``order``; each window has its own, for its
number tweaks the keys (Liskov, Rivest and Wagner, "Tweakable Block Ciphers", 2002). Where the ids don't come out even,
one block is short: its place is drawn first, uniformly, and all others are permuted over the places that are left, so
that it is as likely to be anywhere as every other block.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, TypeAlias

import numpy as np

from penstock.dataset.joined import Samples
from penstock.errors import ConfigError
from penstock.order.order import Int64Array, Order, Permutation, Remaining, UInt64Array, keys_of, scramble

__all__ = ["HELD_WINDOWS", "BlockShuffled", "Blocks", "WindowsAt", "blocks_of", "windows_of"]

HELD_WINDOWS: Final = 2  # in memory at a time, where no batch takes from more: one is read while one is used up

WindowsAt: TypeAlias = Callable[[Int64Array], Int64Array]
"""The number of the window that each position is in."""


@dataclass(frozen=True, slots=True)
class Blocks:
    """How a block shuffle cuts its samples.

    Attributes:
        block_samples: neighbours in a block, at least 1.
        window_blocks: blocks in a window, at least 1.
    """

    block_samples: int
    window_blocks: int


def blocks_of(samples: Samples, block_bytes: int, window_bytes: int) -> Blocks:
    """Blocks and windows of about these bytes, by the mean sample of a manifest.

    They follow from the manifest and these numbers alone, so every rank and every resume agrees.

    Args:
        samples: what is shuffled.
        block_bytes: what one read brings, at least 1.
        window_bytes: what is shuffled together.

    Raises:
        ConfigError: the manifest doesn't say how large its samples are.
    """
    count, lengths = samples.row_count, np.asarray(samples.length[:])
    if count and lengths.min() < 0:
        raise ConfigError(
            f"a block shuffle needs to know how large samples are; this manifest doesn't say so of "
            f"{int((lengths < 0).sum())} of {count}. Pack the dataset, or take the random order"
        )
    total_bytes = max(1, int(lengths.sum(dtype=np.int64)))
    block_samples = max(1, (block_bytes * count + total_bytes // 2) // total_bytes)  # rounded
    return Blocks(block_samples, max(1, window_bytes * count // (block_samples * total_bytes)))


class BlockShuffled:
    """A permutation of ``[first, first + count)`` in which the ids of each window come from a few blocks.

    Args:
        first: the lowest id.
        count: of ids; the last block may be shorter, and so may the last window.
        blocks: how they are cut.
        manifest_hash: with ``seed`` and ``epoch`` the key.
        seed: see there.
        epoch: see there.
    """

    def __init__(self, first: int, count: int, blocks: Blocks, *, manifest_hash: str, seed: int, epoch: int) -> None:
        self.count = count
        self._first = first
        self._block, self._window_blocks = blocks.block_samples, blocks.window_blocks
        self._block_count = -(-count // self._block)
        self._missing = self._block_count * self._block - count  # samples that the short block lacks
        name = f"{manifest_hash} {seed} {epoch}"
        self._short = _drawn(f"penstock short block {name}", self._block_count)  # its place among blocks
        self._hole = (self._short + 1) * self._block - self._missing  # where the samples that it lacks would be
        self._blocks = Permutation(self._block_count - 1, keys_of(f"penstock blocks {name}"))
        self._keys = keys_of(f"penstock windows {name}")
        self._tweak = self._keys[:1].copy()

    def at(self, positions: Int64Array) -> Int64Array:
        """The sample ids at these positions."""
        windows = self.windows_at(positions)
        starts = self._start(windows)
        sizes = self._start(windows + 1) - starts
        places = starts + self._shuffled(positions - starts, sizes, windows)
        blocks, within = np.divmod(self._padded(places), self._block)
        return self._block_at(blocks) * self._block + within + self._first

    def windows_at(self, positions: Int64Array) -> Int64Array:
        """The number of the window that each of these positions is in; ascends with them."""
        found: Int64Array = self._padded(positions) // (self._block * self._window_blocks)
        return found

    def _padded(self, positions: Int64Array) -> Int64Array:
        """Where positions would be if all blocks were full."""
        found: Int64Array = positions + self._missing * (positions >= self._hole)
        return found

    def _start(self, windows: Int64Array) -> Int64Array:
        """The first position of each window."""
        blocks = np.minimum(windows * self._window_blocks, self._block_count)
        found: Int64Array = blocks * self._block - self._missing * (blocks > self._short)
        return found

    def _shuffled(self, places: Int64Array, sizes: Int64Array, windows: Int64Array) -> Int64Array:
        """Permute each window's places, which are below its size."""
        tweaks = scramble(windows.astype(np.uint64) ^ self._tweak)
        values: UInt64Array = places.astype(np.uint64)
        if sizes.size and sizes.min() == sizes.max():
            return Permutation(int(sizes[0]), self._keys).at(values, tweaks).astype(np.int64)
        for size in np.unique(
            sizes
        ).tolist():  # three at most: that of a full window, of the short block's, of the last
            rows = np.flatnonzero(sizes == size)
            values[rows] = Permutation(size, self._keys).at(values[rows], tweaks[rows])
        return values.astype(np.int64)

    def _block_at(self, places: Int64Array) -> Int64Array:
        """The blocks at these places: the short one, which is the last, at its own, the others around it."""
        others = places - (places > self._short)
        is_short = places == self._short
        others[is_short] = 0
        if self._block_count > 1:
            others = self._blocks.at(others.astype(np.uint64)).astype(np.int64)
        return np.where(is_short, self._block_count - 1, others)


def windows_of(order: Order) -> WindowsAt | None:
    """Where an order, or what is left of it, has its windows; None when it has none."""
    if isinstance(order, Remaining):
        whole, windows_at = order.whole, windows_of(order.order)
        return None if windows_at is None else lambda positions: windows_at(whole(positions))
    return order.windows_at if isinstance(order, BlockShuffled) else None


def _drawn(name: str, count: int) -> int:
    """A number below ``count``, uniform but for one part in 2**64."""
    return int.from_bytes(hashlib.shake_256(name.encode()).digest(16), "little") % max(1, count)
