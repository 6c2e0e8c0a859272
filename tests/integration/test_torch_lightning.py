"""EpochLoader as ``train_dataloaders`` of Lightning: every epoch, and its checkpoints anywhere in one."""

from __future__ import annotations

import pytest
from packing import pack_random

pytest.importorskip("lightning")
import lightning
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

import penstock
from penstock.torch import EpochLoader

SAMPLES, BATCH, STEPS = 203, 10, 21

# What Lightning itself does, and what it advises.
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::lightning.pytorch.utilities.warnings.PossibleUserWarning"),
    pytest.mark.filterwarnings("ignore:Checkpoint directory:UserWarning"),
    pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`:UserWarning"),
]


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    return pack_random(tmp_path_factory.mktemp("lightning"), SAMPLES)


@pytest.fixture
def how(packed):
    return {"manifest_store_root": str(packed / "store"), "shuffle": True, "seed": 4, "batch_size_samples": BATCH}


@pytest.fixture
def expected(packed, how):
    """The batches of three epochs, one after another."""
    found = []
    for epoch in range(3):
        with penstock.load(str(packed / "packed"), epoch=epoch, **how) as loader:
            found += [batch.sample_ids for batch in loader]
    return found


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


@pytest.fixture
def fit(packed, how, tmp_path):
    """Fits a new Recorder with a new loader; returns what it saw."""

    def run(resume: bool = False, *, max_steps: int = -1, **checkpoint) -> list[list[int]]:
        keep = ModelCheckpoint(tmp_path, save_last=True, **checkpoint)
        trainer = lightning.Trainer(
            max_epochs=3,
            max_steps=max_steps,
            callbacks=[keep],
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            accelerator="cpu",
        )
        model = Recorder()
        with EpochLoader(penstock.load, str(packed / "packed"), **how) as loader:
            trainer.fit(model, loader, ckpt_path=str(tmp_path / "last.ckpt") if resume else None)
        return model.seen

    return run


def test_each_epoch_of_fit_is_another_one(fit, expected):
    assert fit(every_n_epochs=1) == expected


@pytest.mark.parametrize("stop_at", [7, STEPS - 1, STEPS, STEPS + 3])
def test_fit_goes_on_in_the_middle_of_an_epoch(fit, expected, stop_at):
    begun = fit(max_steps=stop_at, every_n_train_steps=stop_at)
    assert begun == expected[:stop_at]
    assert fit(resume=True, every_n_train_steps=1000) == expected[stop_at:]


def test_fit_goes_on_after_an_epoch(fit, expected):
    begun = fit(max_steps=STEPS, every_n_epochs=1, save_on_train_epoch_end=True)
    assert begun + fit(resume=True, every_n_epochs=1) == expected
