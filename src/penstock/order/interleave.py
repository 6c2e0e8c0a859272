"""Which source stands at which position of a mixture: a pure function, in exact whole numbers, in O(1) memory.

A tree of two-way splits, lightest together (Huffman 1952), as deep as the logarithm of a source's share. At a node
whose lighter side has a of W shares, the node's positions are cut into strata of W / a positions, rounded. Each has
exactly one position of the lighter side, at a place that a keyed hash picks; all others are the heavier side's. So how
often each side came before any position is known without looking at any other, counts never stray far from their
shares, and yet no pattern repeats. It is jittered (stratified) sampling, nested.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from penstock.order.keyed import Keyed, scaled
from penstock.order.order import Int64Array

__all__ = ["MOST_POSITIONS", "MOST_SHARES", "Interleave"]

MOST_SHARES = 1 << 48  # of all sources together
MOST_POSITIONS = 1 << 48  # what a float64 divides with an error below one, which is then put right exactly


class Interleave:
    """An endless sequence of sources, in proportion to their shares.

    Args:
        shares: of each source, 0 or more, at least one above; at most ``MOST_SHARES`` together.
        key: a text; another one is another sequence.

    Attributes:
        most_error: of each source, how far its count in any first p positions is at most from p times its share;
            after whole periods, which are as long as the sum of ``shares``, it isn't off at all.
    """

    def __init__(self, shares: Sequence[int], key: str) -> None:
        self._source_count = len(shares)
        self._keyed = Keyed(key)
        tree = _Tree.build(shares)
        self._tree, self._root = tree, tree.root
        self._light, self._whole = np.array(tree.light, dtype=np.int64), np.array(tree.whole, dtype=np.int64)
        self._children = np.array(tree.children, dtype=np.int64).reshape(-1, 2)
        self._parents = np.full(len(tree.light) + self._source_count, -1, dtype=np.int64)  # nodes, then sources
        self._sides = np.zeros_like(self._parents)
        for node, children in enumerate(tree.children):
            for side, child in enumerate(children):
                self._parents[child], self._sides[child] = node, side  # a source is below 0, so it counts from the end
        self.most_error = self._most_error()

    def at(self, positions: Int64Array) -> tuple[Int64Array, Int64Array]:
        """The source at each position, and how many samples of that source come before it."""
        nodes, inside = np.full_like(positions, self._root), positions.copy()
        going = np.arange(len(positions)) if self._root >= 0 else np.zeros(0, dtype=np.int64)
        while going.size:
            at, node = inside[going], nodes[going]
            stratum, place = self._stratum(at, node)
            before, is_light = stratum + (place < at), place == at
            inside[going] = np.where(is_light, before, at - before)
            nodes[going] = below = self._children[node, is_light.astype(np.int64)]
            going = going[below >= 0]
        return ~nodes, inside

    def counts(self, position: int) -> Int64Array:
        """How many samples of each source come before a position."""
        found = np.zeros(self._source_count, dtype=np.int64)
        nodes, inside = np.array([self._root]), np.array([position], dtype=np.int64)
        while nodes.size:
            found[~nodes[nodes < 0]] = inside[nodes < 0]
            inside, nodes = inside[nodes >= 0], nodes[nodes >= 0]
            stratum, place = self._stratum(inside, nodes)
            light = stratum + (place < inside)
            nodes = self._children[nodes].T.reshape(-1)
            inside = np.concatenate([inside - light, light])
        return found

    def position_of(self, sources: Int64Array, indexes: Int64Array) -> Int64Array:
        """Where samples are, by their source, whose share is above 0, and how many of it come before each."""
        nodes, inside = ~sources, indexes.copy()
        going = np.flatnonzero(self._parents[nodes] >= 0)
        while going.size:
            node, at = self._parents[nodes[going]], inside[going]
            is_light = self._sides[nodes[going]] == 1
            light, whole = self._light[node], self._whole[node]
            passed = _divided(2 * at + 1, light, 2 * (whole - light), -1)  # strata before, for the heavier side
            stratum = np.where(is_light, at, passed)
            place = self._place(stratum, node, light, whole)
            rank = at + stratum
            inside[going] = np.where(is_light, place, rank + (rank >= place))
            nodes[going] = node
            going = going[self._parents[node] >= 0]
        return inside

    def _stratum(self, at: Int64Array, node: Int64Array) -> tuple[Int64Array, Int64Array]:
        """The stratum of each position of a node, and where its one position of the lighter side is."""
        light, whole = self._light[node], self._whole[node]
        stratum = _divided(2 * at + 1, light, 2 * whole, -1)
        return stratum, self._place(stratum, node, light, whole)

    def _place(self, stratum: Int64Array, node: Int64Array, light: Int64Array, whole: Int64Array) -> Int64Array:
        start, end = (_divided(2 * number, whole, 2 * light, light) for number in (stratum, stratum + 1))
        bits = self._keyed.bits(stratum * len(self._light) + node)
        return start + scaled(bits, (end - start).astype(np.uint64))

    def _most_error(self) -> npt.NDArray[np.float64]:
        """By induction: a node's own error in proportion, and less than what a stratum can hold back or give early."""
        found = np.zeros(len(self._light) + self._source_count)
        for node in range(len(self._light) - 1, -1, -1):  # the root is the last
            light, whole = int(self._light[node]), int(self._whole[node])
            own = 1 - light / whole / (1 if whole % light == 0 else 2)
            heavier, lighter = self._children[node]
            found[lighter] = found[node] * light / whole + own
            found[heavier] = found[node] * (whole - light) / whole + own
        return found[::-1][: self._source_count]


class _Tree:
    """Nodes from the leaves up: shares of the lighter side, of both, and (heavier, lighter) as a node or ~source."""

    def __init__(self, root: int, light: list[int], whole: list[int], children: list[tuple[int, int]]) -> None:
        self.root, self.light, self.whole, self.children = root, light, whole, children

    @classmethod
    def build(cls, shares: Sequence[int]) -> _Tree:
        heap = [(share, ~source) for source, share in enumerate(shares) if share > 0]
        heapq.heapify(heap)
        light: list[int] = []
        whole: list[int] = []
        children: list[tuple[int, int]] = []
        while len(heap) > 1:
            (less, lighter), (more, heavier) = heapq.heappop(heap), heapq.heappop(heap)
            heapq.heappush(heap, (less + more, len(light)))
            light.append(less)
            whole.append(less + more)
            children.append((heavier, lighter))
        return cls(heap[0][1], light, whole, children)


def _divided(value: Int64Array, times: Int64Array, by: Int64Array, more: Int64Array | int) -> Int64Array:
    """(value * times + more) // by, exactly, where the result is below 2^51, whatever the product is."""
    found: Int64Array = ((value.astype(np.float64) * times + more) / by).astype(np.int64)
    left = value * times + more - found * by  # modulo 2^64, and so small that this is what it is
    found += left >= by
    found -= left < 0
    return found
