"""Who leads a shared job under torchrun, and where the others find it."""

from __future__ import annotations

import pytest

pytest.importorskip("torch")

import penstock
from penstock.errors import ConfigError
from penstock.torch import in_step, shared_job, shared_state
from penstock.torch.ranks import Place


@pytest.fixture
def packed(tmp_path, monkeypatch):
    monkeypatch.setenv("PENSTOCK_MANIFEST_STORE_ROOT", str(tmp_path / "store"))
    (tmp_path / "in").mkdir()
    for number in range(10):
        (tmp_path / "in" / f"{number}.bin").write_bytes(b"12345")
    penstock.pack_dir(tmp_path / "in", out=tmp_path / "packed", label_mode="none")
    return str(tmp_path / "packed")


def test_a_coordinator_that_is_there_is_taken(monkeypatch):
    monkeypatch.setenv("MX8_COORD_URL", "http://host:50051")
    monkeypatch.setenv("RANK", "3")
    monkeypatch.setenv("WORLD_SIZE", "8")
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "run")
    with shared_job("anything") as job:
        assert job == {"coord_url": "http://host:50051", "job_id": "run", "node_id": "rank-00003"}


def test_several_ranks_need_a_process_group_to_find_each_other(monkeypatch):
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="init_process_group"), shared_job("anything"):
        pass


def test_one_rank_leads_and_takes_all_steps(packed):
    with (
        shared_job(packed, block_samples=4, epochs=2) as job,
        penstock.DistributedDataLoader(**job, batch_size_samples=3, want=2) as loader,
    ):
        assert len(job["token"]) == 32
        steps = in_step(loader)
        batch, having = next(steps)
        assert (len(batch), having) == (3, 1)
        assert shared_state(loader)["done"] == [[0, 3]]
        assert sum(len(batch) for batch, _ in steps) == 2 * 10 - 3


def test_what_rank_0_is_told_wrongly_is_an_error(packed):
    with pytest.raises(ConfigError, match="block_samples"), shared_job(packed, block_samples=0):
        pass


def test_other_ranks_are_told_whatever_keeps_rank_0_from_leading(packed, monkeypatch):
    told = []

    def from_rank_0(data):
        told.append(data)
        return data

    monkeypatch.setattr("penstock.torch.shared.place", lambda: Place(0, 2))
    monkeypatch.setattr("penstock.torch.shared.dist.is_initialized", lambda: True)
    monkeypatch.setattr("penstock.torch.shared._from_rank_0", from_rank_0)
    with pytest.raises(TypeError, match="block_size"), shared_job(packed, block_size=4):  # it is block_samples
        pass
    assert told and told[0].endswith(b"\0\0")  # no port: they wait for nobody
