"""Coordinators and members of etcd that are killed and stopped at random: no commit is lost, none is overwritten."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from etcd_server import EtcdCluster
from penstock.coordinator.journal import open_journal
from waiting import wait_until

CHILD = Path(__file__).with_name("journal_counter.py")
STORM_S = 10.0


class Coordinators:
    """Three that want to lead; one that was killed has another in its place."""

    def __init__(self, url, folder):
        self.url, self.folder = url, folder
        self.running = [self.begin(number) for number in range(3)]

    def begin(self, number):
        return subprocess.Popen([sys.executable, CHILD, self.url, f"{number}:1", self.folder / f"{number}"])

    def kill(self, number):
        self.running[number].kill()
        self.running[number].wait()

    def restart(self, number):
        self.kill(number)
        self.running[number] = self.begin(number)

    def acknowledged(self):
        """The term of each number, as the commits that returned said."""
        lines = [line.split() for path in self.folder.iterdir() for line in path.read_text().splitlines()]
        found = {}
        for number, term in (map(int, line) for line in lines):
            assert number not in found, f"{number} was committed twice, in terms {found[number]} and {term}"
            found[number] = term
        return found


@pytest.mark.slow
def test_nothing_that_was_committed_is_lost_in_a_storm(tmp_path):
    seed = random.randrange(1 << 32)
    dice = random.Random(seed)
    cluster = EtcdCluster(tmp_path / "etcd")
    hosts = ",".join(endpoint.removeprefix("http://") for endpoint in cluster.endpoints)
    (tmp_path / "acknowledged").mkdir()
    coordinators = Coordinators(f"etcd://{hosts}/storm", tmp_path / "acknowledged")
    try:
        wait_until(coordinators.acknowledged, within_s=30)
        for number in range(3):  # so that there is a second term in any case
            coordinators.restart(number)
        until = time.monotonic() + STORM_S
        while time.monotonic() < until:
            time.sleep(dice.uniform(0.0, 1.0))
            disturb(dice, cluster, coordinators)
        time.sleep(3.0)  # somebody leads in quiet
        for number in range(3):
            coordinators.kill(number)
        terms = coordinators.acknowledged()
        last = open_journal(coordinators.url, job_id="job", address="last:1")
        assert last.lead(30) > max(terms.values())
        records = last.load()
        last.close()
    finally:
        for number in range(3):
            coordinators.kill(number)
        cluster.kill()
    print(f"seed {seed}: {len(terms)} commits in {len(set(terms.values()))} terms")
    assert len(set(terms.values())) > 1
    assert {number: records.get(f"term of {number}") for number in terms} == {n: str(term) for n, term in terms.items()}
    assert sorted(terms.values()) == [term for _, term in sorted(terms.items())]
    assert sum(key.startswith("term") for key in records) == int(records["count"])


def disturb(dice, cluster, coordinators):
    """One thing goes wrong; what went wrong before may be mended first."""
    number = dice.randrange(3)
    what = dice.choice(["kill", "stop", "resume", "stop member", "kill member", "mend", "mend"])
    if what == "kill":
        coordinators.restart(number)
    elif what == "stop":
        coordinators.running[number].send_signal(signal.SIGSTOP)
    elif what == "resume":
        for each in coordinators.running:
            each.send_signal(signal.SIGCONT)
    elif what == "mend":
        cluster.restore()
    else:
        cluster.restore()  # one at a time, so that there is a majority
        getattr(cluster.members[number], what.split()[0])()
