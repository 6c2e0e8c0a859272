"""How samples are read: with how many threads and requests, and in which parts. Pure."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace

from penstock.loader.options import LoaderOptions
from penstock.loader.plan import Span

__all__ = ["Reading"]

_FILE_THREADS = min(4, len(os.sched_getaffinity(0)))  # of one batch: so many cores saturate most machines' memory
_REQUESTS = 8  # of one loader; the process's own limit is the store's
_UNBOUNDED = 1 << 62


@dataclass(frozen=True, slots=True)
class Reading:
    """How samples are read.

    Attributes:
        threads: that read one batch from files of this machine.
        requests: to object stores, of one loader, under way at once.
        part_bytes: of one request for an object, at most.
        parts: of one object and one batch, under way at once.
    """

    threads: int = _FILE_THREADS
    requests: int = _REQUESTS
    part_bytes: int = 8 << 20
    parts: int = _REQUESTS

    @classmethod
    def of(cls, options: LoaderOptions) -> Reading:
        """What the knobs num_workers, loading_mode, reader_mode, part_size and max_inflight_parts come to."""
        pool, sequential = options.loading_mode, options.reader_mode == "sequential"
        return cls(
            threads=options.num_workers or (1 if sequential else min(options.max_inflight_parts, _FILE_THREADS)),
            requests=(options.num_workers or _REQUESTS) if pool == "sequential" else pool.pool_size,
            part_bytes=_UNBOUNDED if sequential else options.part_size,
            parts=1 if sequential else options.max_inflight_parts,
        )

    def chains(self, spans: Sequence[Span]) -> list[list[Span]]:
        """The spans of one object, cut into parts, as chains: of each, one part is read after the other."""
        parts = [part for span in spans for part in _cut(span, self.part_bytes)]
        return [parts[first :: self.parts] for first in range(min(self.parts, len(parts)))]


def _cut(span: Span, part_bytes: int) -> list[Span]:
    starts = range(span.start, span.end, part_bytes)
    return [replace(span, start=start, end=min(start + part_bytes, span.end)) for start in starts]
