"""A checkpoint of a job, a small dict for JSON: what is done of which epoch, samples and order. Pure."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final

from penstock.coordinator.blocks import Intervals, join_intervals
from penstock.coordinator.events import Restore
from penstock.coordinator.state import Job, State
from penstock.errors import ResumeError

__all__ = ["checkpoint_of", "read_checkpoint"]

FORMAT: Final = 1
_FIELDS: Final = ("manifest_hash", "samples", "shuffle", "seed")
_WHY: Final = {
    "manifest_hash": "resume with the dataset that it is of, pinned by this hash",
    "samples": "resume with the dataset that it is of",
    "shuffle": "blocks would come in another order; begin the coordinator with the same",
    "seed": "blocks would come in another order; begin the coordinator with the same",
}


def checkpoint_of(state: State) -> dict[str, Any]:
    """What is done so far; ``read_checkpoint`` goes on there, with any number of nodes and any size of blocks.

    Samples that are leased count from their cursor on as not done.
    """
    job = state.job
    return {
        "format": FORMAT,
        **{name: getattr(job, name) for name in _FIELDS},
        "epoch": state.course.epoch,
        "done": [list(interval) for interval in state.done()],
    }


def read_checkpoint(token: str | Mapping[str, Any], job: Job) -> Restore:
    """What a job is to begin with so that it goes on where another one was.

    Args:
        token: what ``checkpoint_of`` gave, or the same as JSON.
        job: that is to go on.

    Raises:
        ResumeError: it is no checkpoint, or of other samples, or of another order of them.
    """
    fields = _fields(token)
    for name in _FIELDS:
        was, now = fields.get(name), getattr(job, name)
        if type(was) is not type(now) or was != now:
            raise ResumeError(f"the checkpoint is of {name} {was!r}, this job of {now!r}: {_WHY[name]}")
    epoch = fields.get("epoch")
    if not isinstance(epoch, int) or isinstance(epoch, bool) or not job.epoch <= epoch < job.epoch + job.epochs:
        raise ResumeError(
            f"the checkpoint is of epoch {epoch!r}, this job goes from epoch {job.epoch} to "
            f"{job.epoch + job.epochs - 1}; begin the coordinator with the epochs of the first run"
        )
    return Restore(_intervals(fields.get("done"), job.samples), epoch)


def _fields(token: str | Mapping[str, Any]) -> Mapping[str, Any]:
    try:
        fields = json.loads(token) if isinstance(token, str) else token
    except (ValueError, RecursionError) as error:
        raise ResumeError(f"the checkpoint isn't JSON ({error}); give what state_dict() returned") from None
    if isinstance(fields, Mapping) and {"version", "loader"} & fields.keys():
        raise ResumeError(
            "that is the state of a loader by itself, not of a shared job: give it to `penstock.load`, or to what else "
            "made it, as resume=; a shared job goes on from what state_dict() of a distributed loader returned"
        )
    if not isinstance(fields, Mapping) or fields.get("format") != FORMAT:
        given = fields.get("format") if isinstance(fields, Mapping) else type(fields).__name__
        raise ResumeError(
            f"that is no checkpoint of a shared job of format {FORMAT}, but {given!r}; give what state_dict() of a "
            "distributed loader returned"
        )
    return fields


def _intervals(given: Any, samples: int) -> Intervals:
    try:
        pairs = [(start, end) for start, end in given]
        whole = all(isinstance(bound, int) and not isinstance(bound, bool) for pair in pairs for bound in pair)
        joined = join_intervals(pairs)
    except (TypeError, ValueError):
        whole, joined, pairs = False, (), [(0, 0)]
    if not whole or joined != tuple(pairs) or (joined and not 0 <= joined[0][0] < joined[-1][1] <= samples):
        raise ResumeError(
            f"the checkpoint's intervals of what is done aren't ascending, apart, and within {samples} samples: "
            f"{str(given)[:80]}"
        )
    return joined
