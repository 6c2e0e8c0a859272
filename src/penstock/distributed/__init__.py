"""A loader, and work, that many nodes share through a coordinator."""

from penstock.distributed.leading import coordinator
from penstock.distributed.loader import DistributedDataLoader, DistributedLoader

__all__ = ["DistributedDataLoader", "DistributedLoader", "coordinator"]
