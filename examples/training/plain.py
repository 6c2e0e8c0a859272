"""Train with plain PyTorch, be killed at any moment, and go on exactly there.

    python examples/training/plain.py --epochs 3       # press Ctrl-C, or kill -9 it, and run it again

The loader's state lies in the checkpoint beside the model's. The same script runs on a GPU where there is one.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from data import OUT, packed_photographs
from torch import nn

from penstock.torch import DeviceLoader, EpochLoader
from penstock.vision import ImageFolderLoader


def main() -> None:
    """Train from the checkpoint, or from the beginning where there is none."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", help="a packed image folder, or a link to one (default: some photographs)")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--checkpoint", type=Path, default=OUT / "plain.pt")
    parser.add_argument("--every", type=int, default=10, help="steps between checkpoints")
    arguments = parser.parse_args()

    images_loader = EpochLoader(
        ImageFolderLoader,
        arguments.data or packed_photographs(),
        batch_size_samples=16,
        random_resized_crop_hw=(64, 64),
        horizontal_flip=0.5,
        shuffle=True,
        prefetch_batches=2,
        max_inflight_bytes="64MiB",
    )
    loader = DeviceLoader(images_loader)  # to the GPU while the step before runs; on a CPU it does nothing
    network = small_network(len(images_loader.loader.classes or [])).to(loader.device)
    optimiser = torch.optim.Adam(network.parameters(), lr=3e-3)
    step = 0
    if arguments.checkpoint.exists():
        saved = torch.load(arguments.checkpoint)
        network.load_state_dict(saved["network"])
        optimiser.load_state_dict(saved["optimiser"])
        loader.load_state_dict(saved["loader"])
        step = saved["step"]
        print(f"going on after step {step}, in epoch {loader.epoch}", flush=True)

    for epoch in range(loader.epoch, arguments.epochs):
        for images, labels in loader:
            loss = nn.functional.cross_entropy(network(images), labels)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            step += 1
            if step % arguments.every == 0:
                state = {"network": network, "optimiser": optimiser, "loader": loader}
                save(arguments.checkpoint, {name: each.state_dict() for name, each in state.items()} | {"step": step})
        print(f"epoch {epoch}: {step} steps so far, loss {loss.item():.2f}", flush=True)


def small_network(class_count: int) -> nn.Module:
    """Enough to learn eight photographs."""
    return nn.Sequential(
        nn.Conv2d(3, 16, 5, stride=4, padding=2),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(32, class_count),
    )


def save(path: Path, state: dict[str, object]) -> None:
    """Write a checkpoint so that there is always a whole one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".unfinished")
    torch.save(state, unfinished)
    unfinished.rename(path)


if __name__ == "__main__":
    main()
