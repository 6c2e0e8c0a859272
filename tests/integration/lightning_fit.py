"""What Lightning's tests run. Importing Lightning takes seconds: it is done by the tests that need it."""

from __future__ import annotations

from pathlib import Path

import lightning
import torch
from lightning.pytorch.callbacks import ModelCheckpoint


class Recorder(lightning.LightningModule):
    """Learns nothing, and remembers what it was given."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.seen: list[list[int]] = []

    def training_step(self, batch, _):
        self.seen.append(batch.sample_ids)
        return self.weight.sum()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def seen_in_fit(loader, folder: Path, *, resume: bool, max_steps: int, **checkpoint) -> list[list[int]]:
    """Fits a new Recorder; what it saw."""
    trainer = lightning.Trainer(
        max_epochs=3,
        max_steps=max_steps,
        callbacks=[ModelCheckpoint(folder, save_last=True, **checkpoint)],
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        accelerator="cpu",
    )
    model = Recorder()
    trainer.fit(model, loader, ckpt_path=str(folder / "last.ckpt") if resume else None)
    return model.seen
