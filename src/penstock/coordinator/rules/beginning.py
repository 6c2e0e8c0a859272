"""What a job can be, and where it begins."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from penstock.coordinator.blocks import block_count, join_intervals
from penstock.coordinator.draft import Draft
from penstock.coordinator.events import Code, Done, Reply, Restore
from penstock.coordinator.rules.members import check_job
from penstock.coordinator.rules.refusal import No
from penstock.coordinator.state import Job, State
from penstock.errors import ConfigError

__all__ = ["MAX_BLOCKS", "check_whole", "restore"]

MAX_BLOCKS: Final = 10_000_000
"""Most blocks of an epoch: their order is kept in memory, 16 bytes each."""

_MOST_32: Final = 2**32 - 1  # of the protocol's messages
_MOST_64: Final = 2**64 - 1
_MOST_SAMPLES: Final = 2**62  # where a block begins, and its length, are added in 64 bits with a sign


def check_whole(job: Job) -> None:
    """Raise ConfigError for a job that can't be."""
    for name, least, most in (
        ("samples", 0, _MOST_SAMPLES),
        ("block_samples", 1, _MOST_SAMPLES),
        ("epoch", 0, _MOST_32),
        ("epochs", 1, _MOST_32 - job.epoch + 1),
        ("world_size", 1, _MOST_32),
        ("seed", 0, _MOST_64),
    ):
        value = getattr(job, name)
        if not least <= value <= most:
            raise ConfigError(f"{name} is {value}; it is from {least} to {most}")
    if -(-job.samples // job.block_samples) > MAX_BLOCKS:
        raise ConfigError(
            f"{job.samples} samples in blocks of {job.block_samples} are more than {MAX_BLOCKS}; make them larger"
        )
    if job.done and (job.done[0][0] < 0 or job.done[-1][1] > job.samples or join_intervals(job.done) != job.done):
        raise ConfigError("the intervals that are done must be ascending, apart, and within the samples")
    block_count(State(job=job).blocks)


def restore(draft: Draft, event: Restore) -> tuple[Reply, str]:
    """Begin where a checkpoint says; all nodes say the same, or the coordinator does."""
    job, course = draft.state.job, draft.state.course
    if event.job_id:
        check_job(draft.state, event.job_id)
    try:
        done = join_intervals(event.done)
    except ValueError as error:
        raise No(Code.INVALID_ARGUMENT, f"the checkpoint's intervals can't be: {error}") from None
    if (event.epoch, done) == (job.epoch, job.done):
        return Done(), "that is where it begins"
    if course.world_size:
        raise No(
            Code.FAILED_PRECONDITION,
            "the job has begun, from another place; a checkpoint is loaded before the last node registers",
        )
    if job.done:
        raise No(Code.FAILED_PRECONDITION, "another checkpoint is loaded already; all nodes load the same one")
    if not job.epoch <= event.epoch < job.epoch + job.epochs:
        raise No(
            Code.FAILED_PRECONDITION,
            f"the checkpoint is of epoch {event.epoch}; this job has epochs {job.epoch} to "
            f"{job.epoch + job.epochs - 1}",
        )
    if done and not (done[0][0] >= 0 and done[-1][1] <= job.samples):
        raise No(Code.INVALID_ARGUMENT, f"the checkpoint's intervals lie outside of [0, {job.samples})")
    epochs = job.epoch + job.epochs - event.epoch
    draft.job(replace(job, epoch=event.epoch, epochs=epochs, done=done))
    draft.course(epoch=event.epoch, job_id=course.job_id or event.job_id)
    return Done(), f"{sum(end - start for start, end in done)} samples of epoch {event.epoch} are done already"
