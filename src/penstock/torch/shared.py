"""A shared job under ``torchrun``: who leads it, where the others find it, and steps that all ranks take together."""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any, Final, Protocol, TypeVar

import torch
import torch.distributed as dist

from penstock import config
from penstock.distributed.leading import coordinator
from penstock.errors import ConfigError, CoordinatorError
from penstock.net import LOOPBACK, is_loopback, join_address
from penstock.torch.ranks import Place, place

__all__ = ["in_step", "shared_job", "shared_state"]

T_co = TypeVar("T_co", covariant=True)
T = TypeVar("T")

_TOKEN_BYTES: Final = 16
_IDLE_S: Final = 0.05


class Polled(Protocol[T_co]):
    """A loader of a shared job."""

    def poll(self) -> T_co | None:
        """See ``penstock.DistributedDataLoader``."""

    def state_dict(self) -> dict[str, Any]:
        """See there."""


@contextmanager
def shared_job(dataset_link: str, *, job_id: str = "", **options: Any) -> Iterator[dict[str, Any]]:
    """One job for all ranks, for the time of a ``with`` block; its value are the arguments that a loader needs for it.

    ``penstock.DistributedDataLoader(**job, batch_size_samples=256)``. Where ``PENSTOCK_COORD_URL`` names a coordinator,
    the job is that one's, and everything but ``job_id`` was decided there. Else rank 0 leads it in its own process, and
    the others find it at ``MASTER_ADDR``, on a port that rank 0 tells them, with a secret made for this job; all of it
    ends with rank 0, and goes on from ``resume=`` of the loaders.

    Args:
        dataset_link: what is to be shared out.
        job_id: name of the job; default ``TORCHELASTIC_RUN_ID``, or ``local-job``.
        **options: of ``penstock.distributed.coordinator``: ``shuffle``, ``seed``, ``epochs``, ``block_samples``, ...

    Raises:
        ConfigError: there are several ranks, and torch.distributed isn't initialised.
        CoordinatorError: rank 0 can't lead it; it says why.
    """
    here = place()
    job_id = job_id or os.environ.get("TORCHELASTIC_RUN_ID", "") or "local-job"
    job = {"job_id": job_id, "node_id": f"rank-{here.rank:05d}"}
    if (url := config.lookup("COORD_URL")) is not None:
        yield {**job, "coord_url": url}
        return
    if here.world_size > 1 and not dist.is_initialized():
        raise ConfigError(
            f"this is {here}, and torch.distributed isn't initialised, so ranks can't find each other; call "
            "init_process_group() first, or set PENSTOCK_COORD_URL"
        )
    with ExitStack() as stack:
        yield {**job, **_led(stack, here, dataset_link, {**options, "job_id": job_id})}
        if here.world_size > 1:
            dist.barrier()  # whoever leads stays until all know the end


def _led(stack: ExitStack, here: Place, link: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Lead, or learn who does."""
    host = os.environ.get("MASTER_ADDR", LOOPBACK) if here.world_size > 1 else LOOPBACK
    loopback = is_loopback(host)
    token, port = secrets.token_bytes(_TOKEN_BYTES), 0
    failure: Exception | None = None
    if here.rank == 0:
        try:
            url = stack.enter_context(
                coordinator(
                    link,
                    world_size=here.world_size,
                    addr=join_address(LOOPBACK if loopback else "::" if ":" in host else "0.0.0.0", 0),
                    token=token.hex(),
                    **options,
                )
            )
            port = int(url.rpartition(":")[2])
        except Exception as error:  # whatever it is, the others are told before it is raised
            failure = error
    if here.world_size > 1:
        told = _from_rank_0(token + port.to_bytes(2, "big"))
        token, port = told[:_TOKEN_BYTES], int.from_bytes(told[_TOKEN_BYTES:], "big")
    if failure is not None:
        raise failure
    if not port:
        raise CoordinatorError("rank 0 couldn't begin to lead the job; its error says why")
    return {"coord_url": f"http://{join_address(LOOPBACK if loopback else host, port)}", "token": token.hex()}


def in_step(loader: Polled[T]) -> Iterator[tuple[T | None, int]]:
    """The batches of a shared job, for ranks that meet in every step: ``(batch, ranks that have one)``, on all at once.

    Leases give ranks different numbers of batches. A rank that has none in a step gets None, and takes part with
    nothing: the loss of some sample times 0. A rank's own loss, times the number of ranks over those that have a batch,
    has the gradient that DistributedDataParallel's mean makes right. It ends on all ranks together.

    Args:
        loader: this rank's ``DistributedDataLoader`` or ``DistributedLoader``.
    """
    while True:
        batch, ended = _polled(loader.poll)
        having, ends = _sums(batch is not None, ended)
        if ends == place().world_size:
            return
        if having:
            yield batch, having
        else:
            time.sleep(_IDLE_S)  # what is left is nobody's yet: its node died
        del batch


def shared_state(loader: Polled[Any]) -> dict[str, Any]:
    """``loader.state_dict()`` with what all ranks have done in it; called by all of them, in the same step."""
    loader.state_dict()  # tells the coordinator what this rank has done
    if place().world_size > 1:
        dist.barrier()
    return loader.state_dict()


def _polled(poll: Callable[[], T | None]) -> tuple[T | None, bool]:
    try:
        return poll(), False
    except StopIteration:
        return None, True


def _sums(*flags: bool) -> list[int]:
    """For how many ranks each of them is True."""
    numbers = torch.tensor([int(flag) for flag in flags], device=_device())
    if place().world_size > 1:
        dist.all_reduce(numbers)
    found: list[int] = numbers.tolist()
    return found


def _from_rank_0(data: bytes) -> bytes:
    numbers = torch.tensor(list(data), dtype=torch.uint8, device=_device())
    dist.broadcast(numbers, src=0)
    return bytes(numbers.tolist())


def _device() -> torch.device:
    """Where the process group wants tensors."""
    on_gpu = dist.is_initialized() and dist.get_backend() == "nccl"
    return torch.device("cuda" if on_gpu else "cpu")
