"""Loaders that share one job, and work on all its samples: a coordinator leases to each node what comes next."""

from penstock.distributed.job import JobOutput, run_job
from penstock.distributed.leading import coordinator
from penstock.distributed.loader import DistributedDataLoader, DistributedLoader

__all__ = ["DistributedDataLoader", "DistributedLoader", "JobOutput", "coordinator", "run_job"]
