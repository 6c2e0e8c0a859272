"""Can this store be reached, and with what? Answered in seconds, before hours of work depend on it."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass

from penstock.errors import ObjectNotFound, PenstockError
from penstock.store.oserrors import error_from_errno
from penstock.store.settings import StoreSetting, StoreSettings, read_settings
from penstock.store.urls import StoreUrl, parse_store_url

__all__ = ["DEADLINE_S", "Preflight", "preflight"]

DEADLINE_S = 4.0
"""The longest that a store is waited for."""


@dataclass(frozen=True, slots=True)
class Preflight:
    """What a preflight found.

    Attributes:
        url: the store's address, without secrets.
        reachable: the store answered, and lets these credentials in.
        tried: what was done, in order.
        settings: every setting with its source; secrets show as asterisks in ``shown``, ``str`` and ``repr``.
        latency_s: how long the first answer took; None without one.
        error: what is wrong and what to do; None when reachable.
    """

    url: str
    reachable: bool
    tried: tuple[str, ...]
    settings: tuple[StoreSetting, ...]
    latency_s: float | None
    error: str | None

    def __str__(self) -> str:
        """Several lines, as ``penstock doctor`` prints them."""
        state = (
            f"reachable in {self.latency_s:.3f} s" if self.reachable and self.latency_s is not None else "NOT reachable"
        )
        lines = [f"{self.url}: {state}"]
        lines += [f"  tried: {each}" for each in self.tried]
        lines += [f"  {each.name} = {each.shown} (from {each.source})" for each in self.settings]
        return "\n".join([*lines, *([f"  error: {self.error}"] if self.error else [])])


def preflight(url: str) -> Preflight:
    """Try to reach a store, once, without retries.

    Args:
        url: as for ``open_store``.

    Returns:
        What was found; an unreachable store is a result, not an exception. Within about 5 seconds.

    Raises:
        ConfigError: ``url`` is no store's address.
    """
    parts = parse_store_url(url)
    if parts.scheme == "file":
        return _look_at_folder(parts.root)
    try:
        settings = read_settings(parts)
    except PenstockError as error:
        return Preflight(str(parts), False, ("read the settings",), (), None, str(error))
    return _ask(parts, settings)


def _look_at_folder(folder: str) -> Preflight:
    started = time.monotonic()
    try:
        with os.scandir(folder):
            writable = os.access(folder, os.W_OK)
    except OSError as error:
        message = str(error_from_errno(error.errno, folder, "opening"))
        return Preflight(folder, False, (f"open the folder {folder}",), (), None, message)
    rights = "readable and writable" if writable else "readable, not writable"
    return Preflight(folder, True, (f"open the folder {folder}: {rights}",), (), time.monotonic() - started, None)


def _ask(parts: StoreUrl, settings: StoreSettings) -> Preflight:
    address = settings.value("endpoint") or "the service's own address"
    plain = parts.scheme.startswith("http")
    tried = f"HEAD {parts}" if plain else f"list one page of {parts} at {address}"
    started = time.monotonic()
    try:
        _first_answer(parts, settings)
    except PenstockError as error:
        sources = [f"{each.name} from {each.source}" for each in settings.values if each.name in _TELLING]
        hint = f" [{', '.join(sources)}]" if sources else ""
        return Preflight(str(parts), False, (tried,), settings.values, None, f"{error}{hint}")
    return Preflight(str(parts), True, (tried,), settings.values, time.monotonic() - started, None)


_TELLING = {"endpoint", "access_key_id", "credentials", "account_name", "account_key"}


def _first_answer(parts: StoreUrl, settings: StoreSettings) -> None:
    import obstore

    from penstock.store.clients import connect
    from penstock.store.limit import process_limit
    from penstock.store.listing import first_page
    from penstock.store.requests import Requester

    client = connect(parts, settings).requests
    requests = Requester(process_limit(), settings.policy)
    if not parts.scheme.startswith("http"):
        requests.once(str(parts), lambda: first_page(client, parts.prefix), DEADLINE_S)
        return
    try:
        requests.once(str(parts), lambda: obstore.head_async(client, parts.prefix), DEADLINE_S)
    except ObjectNotFound:  # the host answered; a folder need not be a file
        return
