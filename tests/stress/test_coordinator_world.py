"""Hundreds of worlds in which everything goes wrong; ``coordinator_worlds`` runs ten thousand."""

from __future__ import annotations

from collections import Counter

import pytest
from tests.stress.coordinator_world import Unfair, run_world

KINDS = {
    *("storm", "part", "kill_leader", "usurp", "crash", "pause", "leave", "stand_still", "zombie", "jump"),
    *("lost", "repeated", "stale leaders"),
}


def test_no_world_loses_or_repeats_a_sample_and_all_of_them_drain():
    counts: Counter[str] = Counter()
    for seed in range(200):
        counts += run_world(seed)
    assert set(counts) >= KINDS
    assert counts["events"] > 30_000


def test_one_seed_is_one_world():
    assert run_world(7) == run_world(7)


def test_a_leader_that_answers_without_knowing_whether_it_still_leads_is_found_out():
    """Why a coordinator asks its journal even where it has nothing to write."""
    with pytest.raises(Unfair, match="world 290: .* hands out"):
        run_world(290, confirms=False)
