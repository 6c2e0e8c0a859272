"""Dataset links: what a person writes to name a dataset, and the version of it that they want.

::

    /data/train                    plain: the version that was resolved first, whatever became of the files
    s3://bucket/train@refresh      refresh: index again and move the pointer
    /data/train@sha256:9f86d0...   pinned: exactly this manifest; the base is only where its files lie
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from os import PathLike, fspath
from pathlib import Path
from typing import Literal, TypeAlias

from penstock.errors import LinkError, ManifestError
from penstock.store.urls import parse_store_url

__all__ = [
    "Link",
    "LinkKind",
    "intent_key",
    "is_absolute_location",
    "join_location",
    "local_path",
    "parse_link",
]

LinkKind: TypeAlias = Literal["plain", "refresh", "pinned"]

_REFRESH = "refresh"
_PIN = "sha256:"
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
_NO_BUCKET = re.compile(r"(?!file:)[A-Za-z][A-Za-z0-9+.-]*://+", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Link:
    """A parsed dataset link; ``str(link)`` gives back the text that it came from.

    Attributes:
        base: where the dataset lies: a folder, or ``s3://bucket/prefix`` and the like.
        kind: which version is wanted.
        pinned_hash: the manifest's hash, for a pinned link only.
    """

    base: str
    kind: LinkKind = "plain"
    pinned_hash: str | None = None

    def __str__(self) -> str:
        if self.kind == "refresh":
            return f"{self.base}@{_REFRESH}"
        if self.kind == "pinned":
            return f"{self.base}@{_PIN}{self.pinned_hash}"
        return self.base


def parse_link(text: str | PathLike[str]) -> Link:
    """Parse a dataset link.

    Only a suffix after the *last* ``@`` that reads ``refresh`` or ``sha256:<hash>`` is special; any other
    ``@`` belongs to the base, so ``user@host/data`` is a plain link.

    Raises:
        LinkError: nothing names a dataset, or no hash follows ``@sha256:``.
    """
    if not isinstance(text, str | PathLike):
        raise LinkError(
            f"a dataset link is text or a path, not {type(text).__name__}; several datasets are loaded as one by "
            "penstock.load(penstock.mix([...]))"
        )
    stripped = fspath(text).strip()
    base, at, suffix = stripped.rpartition("@")
    link = Link(stripped)
    if at and suffix == _REFRESH:
        link = Link(base, "refresh")
    elif at and suffix.startswith(_PIN):
        if suffix == _PIN:
            raise LinkError(f"no hash in {stripped!r}; expected a suffix @sha256:<hash>")
        link = Link(base, "pinned", suffix.removeprefix(_PIN))
    if not link.base.strip():
        raise LinkError(f"empty dataset link: {text!r}; give a folder, or a URL such as s3://bucket/prefix")
    if _NO_BUCKET.fullmatch(link.base.strip()):
        raise LinkError(f"dataset link {text!r} names no bucket; give a URL such as s3://bucket/prefix")
    return link


def intent_key(base: str) -> str:
    """The name under which a manifest store keeps the pointer and the lock of a base.

    White space around the base and slashes at its end make no difference.
    """
    trimmed = base.strip().rstrip("/")
    return "sha256_" + hashlib.sha256(trimmed.encode("utf-8", "surrogateescape")).hexdigest()


def local_path(url: str) -> Path | None:
    """The folder or file that a base, root or location names on this machine; None for any other scheme."""
    if not url.lower().startswith("file://") and _SCHEME.match(url.strip()):
        return None
    return Path(parse_store_url(url).root)


def is_absolute_location(location: str) -> bool:
    """Whether a manifest's location says by itself where it is: a path from the root, or a URL."""
    return location.startswith("/") or _SCHEME.match(location) is not None


def join_location(base: str, location: str) -> str:
    """The full location of a row of a version 1 manifest.

    Args:
        base: the dataset's base, absolute.
        location: relative to the base, or absolute: then the base plays no part.

    Raises:
        ManifestError: the relative location climbs out of the base with ``..``.
    """
    if is_absolute_location(location):
        return location
    if ".." in location and ".." in location.split("/"):
        raise ManifestError(f"location {location!r} climbs out of the dataset with '..'; write it absolute")
    return f"{base.rstrip('/')}/{location}"
