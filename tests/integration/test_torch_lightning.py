"""EpochLoader as ``train_dataloaders`` of Lightning: every epoch, and its checkpoints anywhere in one."""

from __future__ import annotations

import importlib.util

import pytest
from packing import pack_random

if importlib.util.find_spec("lightning") is None:  # it isn't imported yet: that takes seconds
    pytest.skip("could not find 'lightning'", allow_module_level=True)
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


@pytest.fixture
def fit(packed, how, tmp_path):
    """Fits a new Recorder with a new loader; returns what it saw."""

    def run(resume: bool = False, *, max_steps: int = -1, **checkpoint) -> list[list[int]]:
        from lightning_fit import seen_in_fit

        with EpochLoader(penstock.load, str(packed / "packed"), **how) as loader:
            return seen_in_fit(loader, tmp_path, resume=resume, max_steps=max_steps, **checkpoint)

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
