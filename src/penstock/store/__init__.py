"""Where bytes live: one protocol over folders, S3, GCS, Azure and plain HTTP(S).

``open_store`` is the way in. Object stores are reached through the obstore client, which is imported when the first
one is opened. Requests are retried under one adaptive limit for the whole process; ``stats`` tells what it does,
and ``preflight`` whether a store can be reached, within seconds and with the source of every setting.
"""

from __future__ import annotations

from penstock.store.base import Buffer, ObjectInfo, Store, Writer
from penstock.store.interrupt import Interrupt
from penstock.store.limit import LimitStats, stats
from penstock.store.local import LocalStore
from penstock.store.preflight import Preflight, preflight
from penstock.store.urls import parse_store_url, split_location

__all__ = [
    "Buffer",
    "Interrupt",
    "LimitStats",
    "ObjectInfo",
    "Preflight",
    "Store",
    "Writer",
    "open_store",
    "preflight",
    "split_location",
    "stats",
]


def open_store(url: str) -> Store:
    """Open a store; nothing is asked of it yet.

    Args:
        url: a folder, absolute or relative, ``file:///folder``, ``s3://bucket/prefix``, ``gs://bucket/prefix``,
            ``az://container/prefix`` or ``http(s)://host/path``.

    Returns:
        A store that may be used from any thread. Stores of one bucket share one client and its connections.

    Raises:
        ConfigError: an unknown scheme, an address without a bucket, or settings that make no client.
    """
    parts = parse_store_url(url)
    if parts.scheme == "file":
        return LocalStore(parts.root)
    from penstock.store.objects import HttpStore, ObjectStore

    return HttpStore(parts) if parts.scheme.startswith("http") else ObjectStore(parts)
