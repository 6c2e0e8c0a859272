"""Death at the n-th change of the file system: what the crash programs share."""

from __future__ import annotations

import builtins
import os
from collections.abc import Callable, Iterable
from typing import Any


def die_at(step: int, calls: Iterable[str]) -> None:
    """Have this process leave without any clean-up at the ``step``-th of these functions of ``os``, and of ``open``."""
    left = [step]

    def counting(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            left[0] -= 1
            if left[0] < 0:
                os._exit(9)
            return real(*args, **kwargs)

        return call

    for name in calls:
        setattr(os, name, counting(getattr(os, name)))
    builtins.open = counting(builtins.open)
