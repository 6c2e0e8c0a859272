"""Train on several ranks, be killed at any moment, and go on exactly there, on another number of ranks if need be.

    torchrun --nproc-per-node 2 examples/training/ranks.py     # kill -9 one of them, and run it again:
    torchrun --nproc-per-node 3 examples/training/ranks.py

Each rank makes its own loader, which learns from torch.distributed which rank it is for. All ranks take the same number
of steps, so there is nothing to join at the end, and the state of one is that of all.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
from pathlib import Path

import torch
import torch.distributed as dist
from data import OUT, packed_photographs
from plain import save, small_network
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from penstock.torch import DeviceLoader, EpochLoader
from penstock.vision import ImageFolderLoader


def main() -> None:
    """One rank of the job."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", help="a packed image folder, or a link to one (default: some photographs)")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--checkpoint", type=Path, default=OUT / "ranks.pt")
    parser.add_argument("--every", type=int, default=10, help="steps between checkpoints")
    parser.add_argument("--journal", type=Path, help="a folder; write there which images each rank trained on")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    rank = dist.get_rank()
    if arguments.data is None and rank == 0:
        packed_photographs()
    dist.barrier()

    images_loader = EpochLoader(
        ImageFolderLoader,
        arguments.data or packed_photographs(),
        batch_size_samples=arguments.batch_size,
        resize_hw=(64, 64),
        shuffle=True,
        max_inflight_bytes="32MiB",
    )
    loader = DeviceLoader(images_loader)
    network = DistributedDataParallel(small_network(len(images_loader.loader.classes or [])).to(loader.device))
    optimiser = torch.optim.Adam(network.parameters(), lr=3e-3)
    step = 0
    if arguments.checkpoint.exists():
        saved = torch.load(arguments.checkpoint, map_location=loader.device)
        network.module.load_state_dict(saved["network"])
        optimiser.load_state_dict(saved["optimiser"])
        loader.load_state_dict(saved["loader"])
        step = saved["step"]

    for epoch in range(loader.epoch, arguments.epochs):
        for images, labels in loader:
            step += 1
            if arguments.journal is not None:
                write_down(arguments.journal, {"epoch": epoch, "step": step}, images)
            loss = nn.functional.cross_entropy(network(images), labels)
            optimiser.zero_grad()
            loss.backward()  # ranks meet here
            optimiser.step()
            if rank == 0 and step % arguments.every == 0:
                state = {"network": network.module, "optimiser": optimiser, "loader": loader}
                save(arguments.checkpoint, {name: each.state_dict() for name, each in state.items()} | {"step": step})
        if rank == 0:
            print(f"epoch {epoch}: {step} steps so far, loss {loss.item():.2f}", flush=True)
    dist.destroy_process_group()


def write_down(folder: Path, where: dict[str, int], images: torch.Tensor) -> None:
    """Add a line to this process's journal: the step, and which images it is made of."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / f"{os.getpid()}.jsonl", "a") as journal:
        journal.write(json.dumps(where | {"images": digests(images)}) + "\n")


def digests(images: torch.Tensor) -> list[str]:
    """A name for each image, by its pixels."""
    return [hashlib.sha256(image.cpu().numpy().tobytes()).hexdigest()[:16] for image in images]


if __name__ == "__main__":
    main()
