"""Ways to carry agents' metadata to each other: a key-value server, etcd, or straight over sockets.

What is carried are blobs of ``Agent.metadata()``; what is in them isn't looked at here.
"""

from __future__ import annotations

from penstock.transfer.exchange.base import WHOLE, Exchange
from penstock.transfer.exchange.client import KeyValueClient, KeyValueExchange
from penstock.transfer.exchange.etcd import EtcdExchange, RemovalWatch
from penstock.transfer.exchange.server import KeyValueServer
from penstock.transfer.exchange.service import Limits
from penstock.transfer.exchange.sockets import MetadataListener, fetch_metadata, send_invalidation, send_metadata

__all__ = [
    "WHOLE",
    "EtcdExchange",
    "Exchange",
    "KeyValueClient",
    "KeyValueExchange",
    "KeyValueServer",
    "Limits",
    "MetadataListener",
    "RemovalWatch",
    "fetch_metadata",
    "send_invalidation",
    "send_metadata",
]
