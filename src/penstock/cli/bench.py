"""``penstock bench``: how fast a dataset loads on this machine, and what holds it back."""

from __future__ import annotations

import itertools
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Annotated, Any, Final

import typer

from penstock.cli import output
from penstock.cli.bottleneck import Verdict, verdict_on
from penstock.cli.options import AsJson, Link, StoreRoot
from penstock.dataset.resolve import resolve
from penstock.errors import ConfigError
from penstock.loader.data_loader import DataLoader
from penstock.loader.loader import Loader
from penstock.observe.rates import Rates, rates_between
from penstock.sizes import parse_bytes

__all__ = ["bench"]

_PREFETCH: Final = (1, 2, 4)
_BATCH, _IMAGES_BATCH = 512, 64
_FEW_BATCHES: Final = 16
_HEADER: Final = ("order", "prefetch", "samples/s", "MB/s", "waiting", "reading", "decoding", "cap full", "bottleneck")

MakeLoader = Callable[[int], Loader[Any]]
"""A loader of an epoch."""


def bench(
    link: Link,
    *,
    store: StoreRoot = None,
    images: Annotated[bool, typer.Option("--images", help="Decode labelled images instead of taking bytes.")] = False,
    size: Annotated[int, typer.Option(min=1, help="Height and width that --images resizes to.")] = 224,
    batch_size: Annotated[
        int | None, typer.Option(min=1, help="Samples in a batch; default 512, or 64 images.")
    ] = None,
    max_inflight: Annotated[str, typer.Option(help="The cap on memory, such as 512MiB.")] = "128MiB",
    seconds: Annotated[float, typer.Option(min=0.05, help="For each of the six runs.")] = 2.0,
    step_ms: Annotated[float, typer.Option(min=0.0, help="What your training step takes for each batch.")] = 0.0,
    as_json: AsJson = False,
) -> None:
    """Load a dataset in six ways for a few seconds each, and say how fast it was and what held it back.

    In order and shuffled, with 1, 2 and 4 batches built at once. The first run may be the one that brings files into
    the page cache; those after it then read them from memory.
    """
    resolved = resolve(link, manifest_store_root=store)
    if not resolved.manifest.row_count:
        raise ConfigError(f"{link} holds no samples; there is nothing to measure")
    arguments: dict[str, Any] = {
        "manifest_store_root": store,
        "batch_size_samples": batch_size or (_IMAGES_BATCH if images else _BATCH),
        "max_inflight_bytes": parse_bytes(max_inflight, name="--max-inflight"),
    }
    if images:
        arguments["resize_hw"] = (size, size)
    if not as_json:
        output.line(f"{resolved.base}: {output.counted(resolved.manifest.row_count, 'sample')}, {seconds:g} s a run")
    pinned = f"{resolved.base}@sha256:{resolved.hash}"
    batches = -(-resolved.manifest.row_count // arguments["batch_size_samples"])  # in an epoch
    runs: list[Run] = []
    for shuffle, prefetch in itertools.product((False, True), _PREFETCH):
        make = _maker(pinned, images=images, shuffle=shuffle, prefetch=prefetch, arguments=arguments)
        rates = measure(make, seconds, step_ms / 1000)
        verdict = verdict_on(rates, builders=min(prefetch, batches))
        runs.append(Run("shuffled" if shuffle else "in order", prefetch, rates, verdict))
    if as_json:
        output.document({"dataset": resolved.base, "manifest_hash": resolved.hash, "runs": [run.facts for run in runs]})
    else:
        _render(runs)
        if batches < _FEW_BATCHES:
            output.line(_note(batches))


@dataclass(frozen=True, slots=True)
class Run:
    """One way of loading, and how it went."""

    order: str
    prefetch: int
    rates: Rates
    verdict: Verdict

    @property
    def facts(self) -> dict[str, object]:
        """For a machine."""
        rates = self.rates
        return {
            "order": self.order,
            "prefetch_batches": self.prefetch,
            "seconds": rates.seconds,
            "samples_per_s": rates.samples_per_s,
            "bytes_per_s": rates.bytes_per_s,
            "data_wait_share": rates.data_wait,
            "budget_wait_share": rates.budget_wait,
            "plan_share": rates.plan,
            "fetch_share": rates.fetch,
            "decode_share": rates.decode,
            "bottleneck": self.verdict.bottleneck,
            "reason": self.verdict.reason,
        }

    @property
    def cells(self) -> tuple[str, ...]:
        """For a person."""
        rates = self.rates
        shares = (rates.data_wait, rates.fetch, rates.decode, rates.budget_wait)
        return (
            self.order,
            str(self.prefetch),
            f"{rates.samples_per_s:,.0f}",
            f"{rates.bytes_per_s / 1e6:,.1f}",
            *(f"{share:.0%}" for share in shares),
            self.verdict.bottleneck,
        )


def measure(make: MakeLoader, seconds: float, step_s: float) -> Rates:
    """Load epoch after epoch for so long. Making a loader isn't counted, waiting for its first batch is."""
    before: Counter[str] = Counter()
    counted: Counter[str] = Counter()
    spent_s = 0.0
    for epoch in itertools.count():
        with make(epoch) as loader:
            before.update(loader.stats())
            started_s = time.monotonic()
            for _ in _until(loader, started_s + seconds - spent_s):
                if step_s:
                    time.sleep(step_s)
            spent_s += time.monotonic() - started_s
            counted.update(loader.stats())
        if spent_s >= seconds:
            break
    return rates_between(before, counted, spent_s)


def _until(loader: Loader[Any], deadline_s: float) -> Iterator[None]:
    """Take batches, let go of each at once, and give the word for the step."""
    for batch in loader:
        del batch
        yield
        if time.monotonic() >= deadline_s:
            return


def _maker(link: str, *, images: bool, shuffle: bool, prefetch: int, arguments: dict[str, Any]) -> MakeLoader:
    def make(epoch: int) -> Loader[Any]:
        if images:
            from penstock.vision import ImageFolderLoader

            return ImageFolderLoader(link, shuffle=shuffle, prefetch_batches=prefetch, epoch=epoch, **arguments)
        return DataLoader(link, shuffle=shuffle, prefetch_batches=prefetch, epoch=epoch, **arguments)

    return make


def _note(batches: int) -> str:
    return (
        f"note: an epoch has only {batches} of these batches, so beginning one weighs much; "
        "a smaller --batch-size or a larger dataset says more"
    )


def _render(runs: list[Run]) -> None:
    output.table([run.cells for run in runs], header=_HEADER, right=(1, 2, 3, 4, 5, 6, 7))
    best = max(runs, key=lambda run: run.rates.samples_per_s)
    output.line(f"\nfastest: {best.order}, prefetch {best.prefetch}\n{best.verdict.bottleneck}: {best.verdict.reason}")
