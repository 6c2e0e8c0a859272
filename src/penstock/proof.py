"""Proof events: structured records of what was decided, for tests, gates and operators."""

from __future__ import annotations

import logging
from typing import Final

__all__ = ["LOGGER_NAME", "prove"]

LOGGER_NAME: Final = "penstock.proof"

_logger = logging.getLogger(LOGGER_NAME)


def prove(event: str, **fields: str | int | float | bool | None) -> None:
    """Log one event at level INFO on the logger ``penstock.proof``.

    The text is ``event=<event> key=value ...``; the record carries ``event`` (str) and ``fields`` (dict) as
    attributes, so that a handler needs no parser.
    """
    if not _logger.isEnabledFor(logging.INFO):
        return
    text = " ".join([f"event={event}", *(f"{key}={value}" for key, value in fields.items())])
    _logger.info("%s", text, extra={"event": event, "fields": fields})
