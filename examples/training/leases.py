"""Train on ranks that a coordinator leases images to, be killed at any moment, and go on on another number of ranks.

    torchrun --nproc-per-node 2 examples/training/leases.py     # kill -9 one of them, and run it again:
    torchrun --nproc-per-node 3 examples/training/leases.py

``ranks.py`` shares the epoch in equal steps, which is simpler, and right where all ranks are equally fast. Here a rank
takes the next lease when it is done with its last one. Rank 0 leads the job, unless PENSTOCK_COORD_URL names a
coordinator.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from data import OUT, packed_photographs
from plain import save, small_network
from ranks import write_down
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import penstock
from penstock.torch import in_step, shared_job, shared_state


def main() -> None:
    """One rank of the job."""
    arguments = parsed()
    torch.set_num_threads(1)
    dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if arguments.data is None and dist.get_rank() == 0:
        packed_photographs()
    dist.barrier()
    saved = torch.load(arguments.checkpoint, map_location=device) if arguments.checkpoint.exists() else None
    link = arguments.data or packed_photographs()
    with (
        shared_job(link, shuffle=True, epochs=arguments.epochs, block_samples=arguments.block_size) as job,
        penstock.DistributedLoader(
            **job,
            batch_size_samples=arguments.batch_size,
            resize_hw=(64, 64),
            want=2,
            max_inflight_bytes="32MiB",
            resume=None if saved is None else saved["loader"],
        ) as loader,
    ):
        train(loader, saved, device, arguments)
    dist.destroy_process_group()


def parsed() -> argparse.Namespace:
    """What the command line says."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", help="a packed image folder, or a link to one (default: some photographs)")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--block-size", type=int, default=64, help="images in a lease")
    parser.add_argument("--checkpoint", type=Path, default=OUT / "leases.pt")
    parser.add_argument("--every", type=int, default=10, help="steps between checkpoints")
    parser.add_argument("--journal", type=Path, help="a folder; write there which images each rank trained on")
    return parser.parse_args()


def train(
    loader: penstock.DistributedLoader,
    saved: dict[str, Any] | None,
    device: torch.device,
    arguments: argparse.Namespace,
) -> None:
    """From where a checkpoint was until all images are done, on all ranks."""
    network = DistributedDataParallel(small_network(len(loader.classes or [])).to(device))
    optimiser = torch.optim.Adam(network.parameters(), lr=3e-3)
    step = 0
    if saved is not None:
        network.module.load_state_dict(saved["network"])
        optimiser.load_state_dict(saved["optimiser"])
        step = saved["step"]
    for batch, ranks_with_one in in_step(loader):
        step += 1
        if batch is None:  # the others have what is left: take part with nothing
            loss = network(torch.zeros(1, 3, 64, 64, device=device)).sum() * 0
        else:
            images, labels = (each.to(device) for each in batch)
            if arguments.journal is not None:
                write_down(arguments.journal, {"epoch": loader.epoch, "step": step}, images)
            loss = nn.functional.cross_entropy(network(images), labels) * dist.get_world_size() / ranks_with_one
        optimiser.zero_grad()
        loss.backward()  # ranks meet here
        optimiser.step()
        if step % arguments.every == 0:
            done = shared_state(loader)  # on all ranks: what each of them has done
            if dist.get_rank() == 0:
                state = {"network": network.module.state_dict(), "optimiser": optimiser.state_dict()}
                save(arguments.checkpoint, {**state, "loader": done, "step": step})
    if dist.get_rank() == 0:
        print(f"{step} steps", flush=True)


if __name__ == "__main__":
    main()
