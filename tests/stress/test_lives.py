"""A hundred deaths in one epoch, and each sample once."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import penstock

SAMPLES = 20_011


def test_an_epoch_of_a_hundred_lives_takes_each_sample_once(tmp_path):
    source = tmp_path / "in"
    source.mkdir()
    for index in range(0, SAMPLES, 1000):
        (source / f"{index // 1000:02d}").mkdir()
        for each in range(index, min(index + 1000, SAMPLES)):
            (source / f"{index // 1000:02d}" / f"{each:05d}").write_bytes(b"%d" % each)
    penstock.pack_dir(source, out=str(tmp_path / "packed"), shard_mb=1, label_mode="none")
    program = Path(__file__).with_name("lives.py")
    done = subprocess.run(
        [sys.executable, str(program), str(tmp_path / "packed"), str(tmp_path / "store"), "100", "1"],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["lives"] == 100
    assert found["in_the_last"] > 100  # batches: it wasn't over before
    assert sorted(found["taken"]) == list(range(SAMPLES))
