"""Which job a coordinator is asked to share out: its manifest, how many samples, and where a checkpoint begins."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from penstock import config
from penstock.dataset.manifest_store import ManifestStore
from penstock.dataset.resolve import resolve
from penstock.errors import ConfigError, ResumeError
from penstock.store import open_store

if TYPE_CHECKING:
    from penstock.coordinator.events import Restore
    from penstock.coordinator.state import Job

__all__ = ["Asked", "Found", "checkpoint_in", "job_of", "text_of"]

NO_MANIFEST = "dev"
"""MX8's name for a manifest that isn't there: samples are numbers only."""


@dataclass(frozen=True, slots=True)
class Asked:
    """What the options and the environment say. ``samples`` 0 = all of the manifest; ``link`` empty = none."""

    link: str
    manifest_hash: str
    samples: int
    store_root: str | None
    dev_manifest_path: str | None
    lock_stale_ms: int | None
    wait_timeout_ms: int | None
    block_samples: int
    shuffle: bool
    seed: int
    epoch: int
    epochs: int
    world_size: int


@dataclass(frozen=True, slots=True)
class Found:
    """What is to be shared out.

    Attributes:
        job: it.
        base: what relative locations in the manifest are joined to; empty = nothing.
        manifests: where nodes get the manifest from; None = nowhere.
    """

    job: Job
    base: str
    manifests: ManifestStore | None


def job_of(asked: Asked) -> Found:
    """Find it; a link is resolved, which may index the dataset.

    Raises:
        ConfigError: there is nothing to share out, or less than was asked for.
        ResolveError, ManifestError, StoreError: as ``resolve`` does.
    """
    from penstock.coordinator.state import Job

    manifest_hash, base, rows = _manifest(asked)
    if rows is not None and asked.samples > rows:
        raise ConfigError(
            f"dev_total_samples is {asked.samples}, but the manifest has {rows} samples; 0 shares out all of them"
        )
    job = Job(
        manifest_hash=manifest_hash,
        samples=asked.samples or rows or 0,
        block_samples=asked.block_samples,
        shuffle=asked.shuffle,
        seed=asked.seed,
        epoch=asked.epoch,
        epochs=asked.epochs,
        world_size=asked.world_size,
    )
    return Found(job, base, None if rows is None and asked.store_root is None else _store(asked))


def _manifest(asked: Asked) -> tuple[str, str, int | None]:
    """Its hash, the dataset's base, and how many samples it has; None where there is no manifest."""
    if asked.link:
        resolved = resolve(
            asked.link,
            manifest_store_root=asked.store_root,
            dev_manifest_path=asked.dev_manifest_path,
            lock_stale_ms=asked.lock_stale_ms,
            wait_timeout_ms=asked.wait_timeout_ms,
        )
        return resolved.hash, resolved.base, resolved.manifest.row_count
    if asked.manifest_hash != NO_MANIFEST:
        return asked.manifest_hash, "", _store(asked).open(asked.manifest_hash).row_count
    if not asked.samples:
        raise ConfigError("there is nothing to share out; give --dataset-link, or --dev-total-samples to try it out")
    return NO_MANIFEST, "", None


def _store(asked: Asked) -> ManifestStore:
    root = asked.store_root or config.default_manifest_store_root().value
    assert root is not None
    return ManifestStore(open_store(root))


def text_of(path: Path) -> str:
    """What a file with a checkpoint holds.

    Raises:
        ConfigError: it can't be read.
    """
    try:
        return path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--resume {path} can't be read: {error}") from None


def checkpoint_in(text: str, job: Job, where: str) -> Restore:
    """The checkpoint that it is.

    Args:
        text: JSON.
        job: that is to go on.
        where: it was found, for people.

    Raises:
        ResumeError: it is no checkpoint, or one of another job.
    """
    from penstock.coordinator.token import read_checkpoint

    try:
        return read_checkpoint(text, job)
    except ResumeError as error:
        raise ResumeError(f"{where}: {error}") from None
