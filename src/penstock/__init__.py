"""Penstock feeds accelerators from storage, inside a memory budget that you set."""

__version__ = "0.1.0"
