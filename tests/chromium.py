"""A real browser for the tests: Debian's Chromium, driven by Playwright, which is told where it is."""

from __future__ import annotations

import contextlib
import importlib.util
import shutil
from collections.abc import Iterator
from typing import Any

PROGRAMS = ("chromium", "chromium-browser", "google-chrome")


def find_chromium() -> str | None:
    """The browser's program."""
    return next((found for name in PROGRAMS if (found := shutil.which(name))), None)


def missing() -> str:
    """Why there is no browser; empty where there is one."""
    if importlib.util.find_spec("playwright") is None:
        return "playwright isn't installed; make setup installs it"
    if find_chromium() is None:
        return "no chromium on PATH; as root on Debian make setup installs it (apt-get install chromium)"
    return ""


@contextlib.contextmanager
def browser() -> Iterator[Any]:
    """A headless browser, for as long as the context."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=find_chromium(), timeout=60_000)
        try:
            yield launched
        finally:
            launched.close()
