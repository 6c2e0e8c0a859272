"""Loading: plan, charge, fetch, deliver, in an order of ``penstock.order``.

``options`` and ``arguments`` are what may be asked for, ``settings`` what that comes to, ``course`` what is left of an
epoch. ``plan`` makes units of it, ``reading`` and ``fetch`` bring the bytes, ``pipeline`` admits units under the
budget and hands results out in order, ``batch`` is what the consumer gets, and ``loader`` puts them together;
``data_loader`` is the one for bytes and transforms.
``lookup`` reads single samples by their ids.
"""

from penstock.loader.batch import Batch
from penstock.loader.collate import Ragged, pad
from penstock.loader.data_loader import DataLoader, load
from penstock.loader.options import AsyncPool, LoaderOptions
from penstock.order.by_length import padded_bytes
from penstock.order.mixture import Mixture, mix
from penstock.order.sampler import BlockSampler, DistributedSampler, RandomSampler, SequentialSampler, WeightedSampler
from penstock.order.state import merge_states

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
