"""Train with Lightning: the loader goes into ``fit``, its state into Lightning's own checkpoints.

python examples/training/with_lightning.py --epochs 2      # stop it, and run it again
"""

from __future__ import annotations

import argparse
from pathlib import Path

import lightning
import torch
from data import OUT, packed_photographs
from lightning.pytorch.callbacks import ModelCheckpoint
from plain import small_network
from torch import nn

from penstock.torch import EpochLoader
from penstock.vision import ImageFolderLoader


class Classifier(lightning.LightningModule):
    """A small network, its loss, and its optimiser."""

    def __init__(self, class_count: int) -> None:
        super().__init__()
        self.network = small_network(class_count)

    def training_step(self, batch: tuple[torch.Tensor, torch.Tensor], _: int) -> torch.Tensor:
        """The loss of one batch."""
        images, labels = batch
        return nn.functional.cross_entropy(self.network(images), labels)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Adam."""
        return torch.optim.Adam(self.parameters(), lr=3e-3)


def main(argv: list[str] | None = None) -> None:
    """Train from the last checkpoint, or from the beginning where there is none."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", help="a packed image folder, or a link to one (default: some photographs)")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--checkpoints", type=Path, default=OUT / "lightning")
    parser.add_argument("--every", type=int, default=10, help="steps between checkpoints")
    parser.add_argument("--stop-after", type=int, default=-1, help="steps after which to stop in the middle")
    arguments = parser.parse_args(argv)

    loader = EpochLoader(
        ImageFolderLoader,
        arguments.data or packed_photographs(),
        batch_size_samples=16,
        resize_hw=(64, 64),
        shuffle=True,
        max_inflight_bytes="64MiB",
    )
    keep = ModelCheckpoint(arguments.checkpoints, save_last=True, every_n_train_steps=arguments.every)
    trainer = lightning.Trainer(
        max_epochs=arguments.epochs,
        max_steps=arguments.stop_after,
        callbacks=[keep],
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        accelerator="auto",
    )
    last = arguments.checkpoints / "last.ckpt"
    if last.exists():
        print("going on from", last, flush=True)
    model = Classifier(len(loader.loader.classes or []))
    trainer.fit(model, train_dataloaders=loader, ckpt_path=str(last) if last.exists() else None)
    print(f"{trainer.global_step} steps in all; the next epoch is {loader.epoch}", flush=True)


if __name__ == "__main__":
    main()
