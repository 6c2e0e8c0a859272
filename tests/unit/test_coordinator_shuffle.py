"""What is told of a job's blocks before anybody works on them."""

from __future__ import annotations

import pytest

from penstock.coordinator.blocks import BlockPlan, block_at, block_count, too_few_to_shuffle
from penstock.distributed import coordinator


def _plan(samples: int, block_samples: int, *, shuffle: bool = True) -> BlockPlan:
    return BlockPlan(samples, block_samples, shuffle, seed=1, epoch=0)


@pytest.mark.parametrize(
    ("plan", "blocks"),
    [(_plan(500, 65536), 1), (_plan(500, 100), 5), (_plan(800, 100), None), (_plan(500, 65536, shuffle=False), None)],
)
def test_a_shuffle_of_few_blocks_is_hardly_one(plan, blocks):
    told = too_few_to_shuffle(plan, "block_samples")
    assert (told is not None) == (blocks is not None)
    if told is not None:
        assert f"there are {blocks} of at most {plan.block_samples} samples" in told
        assert "give a smaller block_samples" in told
        assert block_count(plan) == blocks
        assert all(block_at(plan, place).end > block_at(plan, place).start for place in range(block_count(plan)))


def test_a_coordinator_in_this_process_tells_of_it(tmp_path, caplog, monkeypatch):
    monkeypatch.setenv("PENSTOCK_MANIFEST_STORE_ROOT", str(tmp_path / "store"))
    (tmp_path / "in").mkdir()
    for name in range(20):
        (tmp_path / "in" / str(name)).write_bytes(b"sample")
    with coordinator(str(tmp_path / "in"), shuffle=True, block_samples=2):
        assert "shuffle" not in caplog.text
    with coordinator(str(tmp_path / "in"), shuffle=True):
        assert "there are 1 of at most 65536 samples" in caplog.text
