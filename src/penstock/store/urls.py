"""Addresses of stores and of objects in them; pure text, nothing is asked or opened."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from typing import NamedTuple
from urllib.parse import quote, unquote, urlsplit

from penstock.errors import ConfigError

__all__ = ["SCHEMES", "Address", "StoreUrl", "check_key", "check_range", "parse_store_url", "split_location"]

SCHEMES = ("s3", "gs", "az", "http", "https")
"""Schemes of object stores; a folder is a path or ``file://``."""

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
_ALLOWED = "a folder path, file://, s3://, gs://, az://, http:// or https://"


class Address(NamedTuple):
    """One object: its full key in its bucket, and its location as it stands in messages."""

    path: str
    location: str


@dataclass(frozen=True, slots=True)
class StoreUrl:
    """The parts of a store's address.

    Attributes:
        scheme: ``file``, or one of ``SCHEMES``.
        root: the folder, the bucket or container, or ``http(s)://host:port``.
        prefix: what comes before every key, without slashes at its ends; "" for a folder.
        query: what follows ``?`` in an HTTP address; it may be a signature, so it stays out of messages.
    """

    scheme: str
    root: str
    prefix: str = ""
    query: str = ""

    def __str__(self) -> str:
        """The address as a person writes it, without the query."""
        if self.scheme == "file":
            return self.root
        if self.scheme.startswith("http"):
            return self.root + _slashed(quote(self.prefix))
        return f"{self.scheme}://{self.root}{_slashed(self.prefix)}"


def parse_store_url(url: str) -> StoreUrl:
    """Take a store's address apart.

    Args:
        url: a folder path, absolute or relative, or a URL of one of the known schemes. White space around it and
            slashes at its end don't matter.

    Raises:
        ConfigError: an unknown scheme, or no bucket or host.
    """
    text = os.fspath(url).strip()
    found = _SCHEME.match(text)
    if found is None or found[1].lower() == "file":
        return StoreUrl("file", _folder(text))
    scheme = found[1].lower()
    if scheme.startswith("http"):
        return _parse_http(text)
    if scheme not in SCHEMES:
        raise ConfigError(f"{text!r} has the unknown scheme {found[1]!r}; give {_ALLOWED}")
    bucket, _, prefix = text[found.end() :].partition("/")
    if not bucket:
        raise ConfigError(f"{text!r} names no bucket; give {scheme}://bucket/prefix")
    return StoreUrl(scheme, bucket, prefix.strip("/"))


def split_location(location: str) -> tuple[str, str]:
    """The root of the store that holds a location, and the location's key in it.

    Locations of one bucket, host or machine share one root, and so one client: ``/data/a.tar`` gives
    ``("/", "data/a.tar")``, and ``s3://bucket/a/b.tar`` gives ``("s3://bucket", "a/b.tar")``.

    Args:
        location: an object's full address, as it stands in a manifest.

    Raises:
        ConfigError: an unknown scheme, or no key.
    """
    parts = parse_store_url(location)
    if parts.scheme == "file":
        key, root = parts.root.strip("/"), "/"
    elif parts.scheme.startswith("http"):
        key, root = parts.prefix, parts.root + (f"?{parts.query}" if parts.query else "")
    else:
        key, root = parts.prefix, f"{parts.scheme}://{parts.root}"
    if not key:
        raise ConfigError(f"{location!r} names a store, not an object in it")
    return root, key


def check_key(key: str, *, root: str) -> str:
    """The key itself, if it stays below its root and every store can hold it.

    Raises:
        ConfigError: empty, absolute, with ``.``, ``..`` or nothing between two slashes, or with NUL.
    """
    segments = key.split("/")
    if "\0" in key or any(segment in {"", ".", ".."} for segment in segments):
        raise ConfigError(f"{key!r} is no key below {root}; a key is names joined by '/', none empty, '.' or '..'")
    return key


def check_range(start: int, end: int, *, location: str) -> None:
    """Refuse a byte range that isn't ``0 <= start <= end``.

    Raises:
        ConfigError: it isn't.
    """
    if not 0 <= start <= end:
        raise ConfigError(f"{location}: bytes [{start}, {end}) are no range; give 0 <= start <= end")


def _folder(text: str) -> str:
    path = unquote(urlsplit(text).path) if text.lower().startswith("file://") else text
    if not path:
        raise ConfigError(f"the store's address is {text!r}; give {_ALLOWED}")
    return os.path.abspath(os.path.expanduser(path))  # noqa: PTH100,PTH111 - keeps symlinks as they are written


def _parse_http(text: str) -> StoreUrl:
    parts = urlsplit(text)
    if not parts.hostname:
        raise ConfigError(f"{text!r} names no host; give http(s)://host/path")
    root = f"{parts.scheme.lower()}://{parts.netloc}"
    return StoreUrl(parts.scheme.lower(), root, unquote(parts.path).strip("/"), parts.query)


def _slashed(prefix: str) -> str:
    return f"/{prefix}" if prefix else ""
