"""The package prometheus-client, which only those need who serve metrics."""

from __future__ import annotations

from typing import Any

from penstock.errors import PenstockError

__all__ = ["load_prometheus"]


def load_prometheus(advice: str) -> Any:
    """The package, with its ``core``.

    Raises:
        PenstockError: it isn't installed; ``advice`` ends the message.
    """
    try:
        import prometheus_client
        import prometheus_client.core
    except ImportError as error:
        raise PenstockError(f"prometheus_client isn't installed; `pip install prometheus-client` {advice}") from error
    return prometheus_client
