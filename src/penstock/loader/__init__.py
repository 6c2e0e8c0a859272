"""Loading: plan, charge, fetch, deliver.

``options`` and ``arguments`` are what may be asked for, ``settings`` what that comes to. ``sampler`` and ``order`` say
which sample stands where, ``split`` cuts that into steps for ranks, ``state`` says what is done of it, ``plan`` makes
units and reads of what is left, ``reading`` and ``fetch`` bring the bytes, ``pipeline`` admits units under the budget
and hands results out in order, ``batch`` is what the consumer gets, and ``loader`` puts them together. ``lookup`` reads
single samples by their ids.
"""

from penstock.loader.batch import Batch
from penstock.loader.by_length import padded_bytes
from penstock.loader.collate import Ragged, pad
from penstock.loader.loader import DataLoader, load
from penstock.loader.mixture import Mixture, mix
from penstock.loader.options import AsyncPool, LoaderOptions
from penstock.loader.sampler import BlockSampler, DistributedSampler, RandomSampler, SequentialSampler, WeightedSampler
from penstock.loader.state import merge_states

__all__ = [
    "AsyncPool",
    "Batch",
    "BlockSampler",
    "DataLoader",
    "DistributedSampler",
    "LoaderOptions",
    "Mixture",
    "Ragged",
    "RandomSampler",
    "SequentialSampler",
    "WeightedSampler",
    "load",
    "merge_states",
    "mix",
    "pad",
    "padded_bytes",
]
