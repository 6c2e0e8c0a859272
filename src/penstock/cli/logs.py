"""How a command that runs for long logs: a line for each event on stderr, as text or as JSON."""

from __future__ import annotations

import json
import logging
import sys
import time
from typing import Final

from penstock import config

__all__ = ["log_to_stderr"]

_LEVELS: Final = {name: name.upper() for name in ("debug", "info", "warning", "error")}


class _TextLine(logging.Formatter):
    """Time in UTC, level, logger, message."""

    converter = time.gmtime  # type: ignore[assignment]  # as the standard library's own documentation sets it
    default_time_format = "%Y-%m-%dT%H:%M:%S"
    default_msec_format = "%s.%03dZ"

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)-7s %(name)s %(message)s")


class _JsonLine(_TextLine):
    """The same as one document; what a proof event tells stands under ``event`` and ``fields``."""

    def format(self, record: logging.LogRecord) -> str:
        """See logging.Formatter."""
        line: dict[str, object] = {
            "time": self.formatTime(record),
            "level": record.levelname.lower(),
            "logger": record.name,
        }
        if (event := getattr(record, "event", None)) is not None:
            line |= {"event": event, "fields": getattr(record, "fields", {})}
        else:
            line["message"] = record.getMessage()
        if record.exc_info:
            line["trace"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


def log_to_stderr(*, as_json: bool) -> None:
    """Log what Penstock tells, from ``info`` on if the environment doesn't say otherwise."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_JsonLine() if as_json else _TextLine())
    logger = logging.getLogger("penstock")
    logger.handlers, logger.propagate = [handler], False
    logger.setLevel(config.choice("LOG", "INFO", _LEVELS))
