"""How far a pack has come, told to whoever asked."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeAlias

__all__ = ["Progress", "ProgressCallback", "Stage"]

Stage: TypeAlias = Literal["list", "copy", "publish"]


@dataclass(frozen=True, slots=True)
class Progress:
    """One report.

    Attributes:
        done_samples: samples found so far (``list``) or copied so far.
        total_samples: all of them; 0 while they are still being listed.
        done_bytes: the samples' own bytes, without headers and padding.
        total_bytes: all of them; 0 while they are still being listed.
        stage: ``list`` finds the files, ``copy`` writes the shards, ``publish`` puts everything in its place.
    """

    done_samples: int
    total_samples: int
    done_bytes: int
    total_bytes: int
    stage: Stage


ProgressCallback: TypeAlias = Callable[[Progress], None]
"""Called on the packing thread, at most once for each 8 MiB copied; what it raises ends the pack."""
