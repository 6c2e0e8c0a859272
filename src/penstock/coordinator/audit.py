"""What an operator sees of live leases now and then, and the one thing that must never be seen."""

from __future__ import annotations

from itertools import pairwise
from typing import Final

from penstock.coordinator.draft import Note
from penstock.coordinator.state import State
from penstock.errors import CoordinatorError
from penstock.proof import prove

__all__ = ["audit"]

_SHOWN: Final = 16


def audit(state: State) -> tuple[Note, ...]:
    """Look at all live leases at once.

    Returns:
        Notes that tell of them.

    Raises:
        CoordinatorError: two of them hold the same sample: the rules or the journal are broken.
    """
    live = sorted((lease.cursor, lease.end, lease_id, lease.node_id) for lease_id, lease in state.leases.items())
    for (_, end, one, _), (start, _, other, _) in pairwise(live):
        if start < end:
            prove("overlap_detected", one=one, other=other, sample=start)
            raise CoordinatorError(
                f"{one} and {other} both hold sample {start}: the journal is damaged, or this is a bug; please report "
                "it. Begin anew from a checkpoint"
            )
    shown = ",".join(f"{start}-{end}:{lease_id}@{node_id}" for start, end, lease_id, node_id in live[:_SHOWN])
    return (Note.of("live_leases", count=len(live), leases=shown), Note.of("no_overlap_ok", count=len(live)))
