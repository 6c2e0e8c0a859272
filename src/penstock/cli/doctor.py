"""``penstock doctor``: what this machine has, and which path will be taken for each thing."""

from __future__ import annotations

from dataclasses import asdict
from itertools import groupby
from typing import Annotated

import typer

from penstock.cli import output
from penstock.cli.facts import Fact, facts, store_facts
from penstock.cli.options import AsJson
from penstock.cli.transfer_facts import transfer_facts

__all__ = ["doctor"]

_MARKS = {"ok": " ", "note": "!", "bad": "X"}


def doctor(
    url: Annotated[str | None, typer.Argument(help="A store to try as well: s3://bucket/prefix, a folder, ...")] = None,
    as_json: AsJson = False,
) -> None:
    """Say what this machine has and what Penstock will use; exit code 1 if something can't work."""
    found = [*facts(), *transfer_facts()]
    if url is not None:
        found += store_facts(url)
    if as_json:
        output.document({"facts": [asdict(fact) for fact in found]})
    else:
        _render(found)
    raise typer.Exit(1 if any(fact.health == "bad" for fact in found) else 0)


def _render(found: list[Fact]) -> None:
    for topic, group in groupby(found, key=lambda fact: fact.topic):
        output.line(topic)
        rows = [
            (_MARKS[fact.health], fact.name, fact.value + (f" -> {fact.advice}" if fact.advice else ""))
            for fact in group
        ]
        output.table(rows)
