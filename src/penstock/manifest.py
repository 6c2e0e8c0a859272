"""Manifests: which samples a dataset has and where their bytes lie."""

from __future__ import annotations

from penstock.manifest_text import ManifestWriter

__all__ = ["ManifestWriter"]
