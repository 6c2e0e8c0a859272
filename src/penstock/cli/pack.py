"""``penstock pack``: a pile of files into shards and a manifest."""

from __future__ import annotations

import time
from typing import Annotated

import typer

from penstock.cli import output
from penstock.dataset.links import local_path
from penstock.packing import Progress, pack_dir
from penstock.packing import pack as pack_anywhere
from penstock.sizes import format_bytes

__all__ = ["pack"]

_STAGES = {"list": "listing", "copy": "packing", "publish": "publishing"}


def pack(
    source: Annotated[str, typer.Argument(metavar="SRC", help="A folder, or s3://, gs://, az:// prefix.")],
    destination: Annotated[str, typer.Argument(metavar="DST", help="The same, for the packed dataset.")],
    *,
    shard_mb: Annotated[int, typer.Option(help="Where shards are split, in MiB.")] = 512,
    label_mode: Annotated[str, typer.Option(help="auto, none or imagefolder.")] = "auto",
    require_labels: Annotated[bool, typer.Option(help="Fail unless every file lies under <label>/.")] = False,
    manifest_version: Annotated[int, typer.Option(help="1, or 0 for the older form without checksums.")] = 1,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Pack files into tar shards with a hashed manifest."""
    started_s = time.monotonic()
    packed_bytes = 0

    def progress(at: Progress) -> None:
        nonlocal packed_bytes
        packed_bytes = at.done_bytes
        report.update(at.done_bytes, at.total_bytes, f"{at.done_samples:,} samples, {_STAGES[at.stage]}")

    both_local = local_path(source) is not None and local_path(destination) is not None
    with output.ProgressReport("pack", quiet=as_json) as report:
        run = pack_dir if both_local else pack_anywhere
        result = run(
            source,
            out=destination,
            shard_mb=shard_mb,
            label_mode=label_mode,
            require_labels=require_labels,
            manifest_version=manifest_version,
            progress=progress,
        )
    if as_json:
        output.document(result)
        return
    elapsed_s = time.monotonic() - started_s
    labels = result.get("labels_path") or result.get("labels_key")
    rows = [
        ("samples", f"{result['samples']:,} in {output.counted(int(result['shards'] or 0), 'shard')}"),
        ("bytes", f"{format_bytes(packed_bytes)} in {elapsed_s:.1f} s"),
        ("labels", str(labels) if labels else "none"),
        ("manifest", str(result.get("manifest_path") or result.get("manifest_key"))),
        ("pinned link", f"{destination}@sha256:{result['manifest_hash']}"),
    ]
    output.table(rows)
