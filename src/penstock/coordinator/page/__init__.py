"""The coordinator's page: a job to look at in a browser, the same as JSON, and metrics. It can only be read."""

from penstock.coordinator.page.opening import open_page
from penstock.coordinator.page.server import Limits, PageServer

__all__ = ["Limits", "PageServer", "open_page"]
