"""The PyTorch face: loaders for training loops that run for many epochs, on many ranks, onto a device.

``EpochLoader`` is a loader that a loop can run over again and again; ``EpochDataset`` the same for torch's own
DataLoader and its workers; ``DeviceLoader`` copies the batches of either to a GPU while the step before runs;
``place`` says which rank this process is. ``shared_job``, ``in_step`` and ``shared_state`` are for a job that a
coordinator shares out by leases.
"""

from penstock.torch.dataset import EpochDataset
from penstock.torch.device import DeviceLoader
from penstock.torch.loader import EpochLoader
from penstock.torch.ranks import Place, place
from penstock.torch.shared import in_step, shared_job, shared_state

__all__ = [
    "DeviceLoader",
    "EpochDataset",
    "EpochLoader",
    "Place",
    "in_step",
    "place",
    "shared_job",
    "shared_state",
]
