"""``penstock verify-resume``: stop a loader here and there, go on, and compare with one that never stopped."""

from __future__ import annotations

import hashlib
import importlib
import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from itertools import islice
from typing import Annotated, Any, TypeAlias

import typer

from penstock import loader as loading
from penstock.cli import output
from penstock.cli.options import AsJson, Link, StoreRoot
from penstock.errors import ConfigError
from penstock.loader.batch import require_torch
from penstock.loader.loader import Loader

__all__ = ["verify_resume"]

Open: TypeAlias = Callable[..., Loader[Any]]
Digests: TypeAlias = list[str]  # of the samples of a batch, in order


@dataclass(frozen=True, slots=True)
class Check:
    """One way to stop and go on.

    Attributes:
        stopped_after: batches.
        went_on: how.
        compared_batches: that came after it.
        first_difference: the batch of the epoch that wasn't the same, from 0; None where all were.
    """

    stopped_after: int
    went_on: str
    compared_batches: int
    first_difference: int | None


def verify_resume(
    link: Link,
    *,
    store: StoreRoot = None,
    made_by: Annotated[
        str, typer.Option("--loader", help="module:function that makes your loader; it is given what penstock.load is.")
    ] = "penstock:load",
    batches: Annotated[int, typer.Option(min=2, help="How far into the epoch to look.")] = 24,
    batch_size: Annotated[int, typer.Option(min=2, help="Samples in a batch; even.")] = 32,
    seed: Annotated[int, typer.Option(help="Of the order.")] = 0,
    epoch: Annotated[int, typer.Option(help="Of the order.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Stop a loader, go on with other settings, and compare every sample; exit code 1 if any differs."""
    if batch_size % 2:
        raise ConfigError(f"--batch-size is {batch_size}; give an even number, for two ranks to share")
    make = _function(made_by)
    common = {"manifest_store_root": store, "shuffle": True, "seed": seed, "epoch": epoch}

    def open_loader(**arguments: object) -> Loader[Any]:
        return make(link, **{**common, "batch_size_samples": batch_size, **arguments})

    with open_loader() as loader:
        manifest_hash = loader.manifest_hash
        whole = list(islice(map(_digests, loader), batches))
    stops = sorted({0, 1, len(whole) // 2, max(0, len(whole) - 1)})
    checks = [_go_on(open_loader, whole, stop, prefetch) for prefetch, stop in enumerate(stops, start=1)]
    checks.append(_go_on_with_two_ranks(open_loader, whole, len(whole) // 2, batch_size))
    good = all(check.first_difference is None for check in checks)
    if as_json:
        output.document({"manifest_hash": manifest_hash, "good": good, "checks": [asdict(check) for check in checks]})
    else:
        _render(checks, good)
    raise typer.Exit(0 if good else 1)


def _go_on(open_loader: Open, whole: list[Digests], stop: int, prefetch: int) -> Check:
    with open_loader(prefetch_batches=prefetch) as first:
        begun, state = _until(first, stop)
    with open_loader(prefetch_batches=1 + prefetch % 3, resume=state) as second:
        rest = list(islice(map(_digests, second), len(whole) - stop))
    return _compared(whole, begun + rest, stop, "with another prefetch")


def _go_on_with_two_ranks(open_loader: Open, whole: list[Digests], stop: int, batch_size: int) -> Check:
    with open_loader() as first:
        begun, state = _until(first, stop)
    halves = []
    for rank in range(2):
        split = {"rank": rank, "world_size": 2, "batch_size_samples": batch_size // 2, "drop_last": True}
        with open_loader(**split, resume=state) as second:
            halves.append(list(islice(map(_digests, second), len(whole) - stop)))
    together = [left + right for left, right in zip(*halves, strict=True)]
    full = [digests for digests in whole if len(digests) == batch_size]  # two ranks share the last one otherwise
    return _compared(full, begun + together, stop, "on two ranks, half a batch each")


def _until(loader: Loader[Any], stop: int) -> tuple[list[Digests], Any]:
    """The first batches, and the state after them as it comes back from a file."""
    begun = list(islice(map(_digests, loader), stop))
    return begun, json.loads(json.dumps(loader.state_dict()))


def _compared(whole: list[Digests], found: list[Digests], stop: int, went_on: str) -> Check:
    differing = [at for at in range(len(whole)) if at >= len(found) or found[at] != whole[at]]
    return Check(stop, went_on, max(0, len(whole) - stop), min(differing, default=None))


def _digests(batch: Any) -> Digests:
    return [hashlib.blake2b(part, digest_size=16).hexdigest() for part in _samples(batch)]


def _samples(batch: Any) -> Iterator[bytes]:
    """Each sample of a batch as bytes: of bytes with their ids, or of tensors, images and labels."""
    if isinstance(batch, loading.Batch):
        for number, sample_id in enumerate(batch.sample_ids):
            yield f"{sample_id} ".encode() + bytes(batch.sample(number))
        return
    parts = batch if isinstance(batch, tuple) else (batch,)
    for row in zip(*parts, strict=True):
        yield b" ".join(
            part.contiguous().reshape(-1).view(dtype=require_torch().uint8).numpy().tobytes() for part in row
        )


def _function(name: str) -> Open:
    module, _, function = name.partition(":")
    try:
        found: Open = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(f"--loader is {name!r}, which can't be imported ({error}); give module:function") from error
    return found


def _render(checks: list[Check], good: bool) -> None:
    rows = [
        (
            str(check.stopped_after),
            check.went_on,
            str(check.compared_batches),
            "the same" if check.first_difference is None else f"batch {check.first_difference} differs",
        )
        for check in checks
    ]
    output.table(rows, header=("stopped after", "went on", "batches", "found"), right=(0, 2))
    output.line("going on is exact" if good else "going on is NOT exact: a run that is resumed sees other samples")
