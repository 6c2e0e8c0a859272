"""Options that several commands have."""

from __future__ import annotations

from typing import Annotated

import typer

__all__ = ["AsJson", "Link", "StoreRoot"]

Link = Annotated[str, typer.Argument(metavar="LINK", help="A dataset: base, base@refresh or base@sha256:<hash>.")]
StoreRoot = Annotated[
    str | None,
    typer.Option("--store", help="Where manifests are kept; `penstock doctor` says where by default."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
