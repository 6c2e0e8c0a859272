"""Loading: plan, charge, fetch, deliver.

``order`` says which sample stands where, ``plan`` cuts that into units and reads, ``fetch`` brings the bytes,
``pipeline`` admits units under the budget and hands results out in order, ``batch`` is what the consumer gets, and
``loader`` puts them together.
"""

from penstock.loader.batch import Batch
from penstock.loader.loader import DataLoader, load

__all__ = ["Batch", "DataLoader", "load"]
