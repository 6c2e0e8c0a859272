"""Loaders of a job that several nodes share, over uneven ones as well: a coordinator leases samples to each of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

from penstock.distributed.leased import Leased
from penstock.loader.batch import Batch
from penstock.loader.data_loader import DataLoader
from penstock.vision import ImageFolderLoader

if TYPE_CHECKING:
    import torch

__all__ = ["DistributedDataLoader", "DistributedLoader"]

_Images: TypeAlias = "tuple[torch.Tensor, torch.Tensor]"


class DistributedDataLoader(Leased[Batch], DataLoader):
    """One node's part of a job that a coordinator shares out: batches of raw bytes, never above ``max_inflight_bytes``.

    The coordinator leases ranges of samples. A batch counts as done when the next one is asked for, or at ``close()``
    or ``state_dict()``. What a node that died hadn't done goes to the others, so each sample is handed out at least
    once, and exactly once where nobody dies; the loop ends when all samples of the job are done.

    Args:
        coord_url: ``http://host:port`` of the coordinator, or of several with commas between them; ``https://`` with
            TLS.
        job_id: of the job.
        node_id: of this process; another one with the same name takes its place.
        want: leases that are worked on side by side, one batch of each in turn.
        progress_interval_ms: how often cursors are reported, which also renews leases.
        grpc_max_message_bytes: the largest message from or to the coordinator.
        coord_timeout_s: how long a coordinator that is gone is waited for, until CoordinatorUnreachable.
        join_timeout_s: how long the other nodes are waited for at the beginning.
        token: that the coordinator asks for; default ``PENSTOCK_COORD_TOKEN``.
        tls_ca: file with the certificates that the coordinator's is signed by.
        tls_cert: file with this node's certificate, where it is asked for.
        tls_key: of that certificate.
        dataset_base: where this node finds the dataset, if not where the coordinator does.
        resume: what ``state_dict()`` of an earlier job returned; all nodes give the same.
        **arguments: those of ``DataLoader`` that aren't the coordinator's to decide: ``batch_size_samples`` (512),
            ``max_inflight_bytes``, ``max_queue_batches``, ``prefetch_batches``, ``target_batch_bytes``,
            ``max_batch_bytes``, ``manifest_store_root``, ``transform``, ``on_error``, ``tune`` and others.

    Raises:
        ConfigError: an argument that can't work, or is the coordinator's to decide.
        CoordinatorUnreachable: it doesn't answer.
        CoordinatorRefused: it doesn't want this node; ``code`` says why.
        DeadlineExceeded: not all nodes came.
        ResumeError: the job can't begin from ``resume``.
        ManifestError, StoreError: the dataset can't be opened.
    """


class DistributedLoader(Leased[_Images], ImageFolderLoader):
    """One node's part of a shared job, as ``(images, labels)``.

    Takes what ``DistributedDataLoader`` does, and the decode options of ``penstock.vision.ImageFolderLoader``
    (``resize_hw``, ``random_resized_crop_hw``, ``horizontal_flip``, ``mean``, ``dtype``, ...), with its default of 32
    images in a batch. Images of a further epoch are cropped and mirrored anew.
    """
