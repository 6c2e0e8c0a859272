"""``penstock resolve``: a dataset link into the hash of its manifest."""

from __future__ import annotations

from typing import Annotated

import typer

from penstock.cli import output
from penstock.cli.options import AsJson, Link, StoreRoot
from penstock.dataset.resolve import resolve as resolve_link

__all__ = ["resolve"]


def resolve(
    link: Link,
    store: StoreRoot = None,
    dev_manifest: Annotated[str | None, typer.Option(help="A TSV to use instead of indexing the base.")] = None,
    as_json: AsJson = False,
) -> None:
    """Turn a dataset link into the hash of its manifest, indexing the base if need be."""
    resolved = resolve_link(link, manifest_store_root=store, dev_manifest_path=dev_manifest)
    if not as_json:
        output.line(resolved.hash)
        return
    manifest = resolved.manifest
    output.document(
        {
            "manifest_hash": resolved.hash,
            "link": f"{resolved.base}@sha256:{resolved.hash}",
            "base": resolved.base,
            "manifest_version": manifest.version,
            "samples": manifest.row_count,
        }
    )
