"""A short job of real processes in which everything goes wrong; ``coordinator_storm`` runs long ones, and many."""

from __future__ import annotations

import pytest
from tests.stress.coordinator_storm import Ground, run_storm

from etcd_server import find_etcd

pytestmark = [pytest.mark.hosts, pytest.mark.slow]


def test_a_job_over_four_hosts_is_whole_whatever_happens_to_it(tmp_path):
    with Ground(tmp_path, find_etcd()) as ground:
        counts = run_storm(ground, 1, work_s=4.0, seconds=6.0)
    assert sum(count for kind, count in counts.items() if not kind.startswith("(")) >= 4
