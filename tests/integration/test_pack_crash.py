"""A pack that is killed leaves garbage, never a manifest that names bytes that are not there."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from packing import in_byte_order, make_tree, payloads_of, random_files, tree_of

from penstock.packing import pack_dir

OLD = {"a/1": b"old", "b/2": b"older"}
NEW = random_files(30, largest=120_000, seed=1)


@pytest.fixture
def sources(tmp_path: Path) -> tuple[Path, Path]:
    return make_tree(tmp_path / "new", NEW), make_tree(tmp_path / "old", OLD)


def check_what_a_reader_finds(out: Path) -> str:
    """Old, new or nothing, never a mixture; says which."""
    if not (out / "_mx8/manifest.tsv").exists():
        return "nothing"
    payloads = payloads_of(out)
    for name, files in (("old", OLD), ("new", NEW)):
        if payloads == [data for _, data in in_byte_order(files)]:
            return name
    raise AssertionError("the manifest names bytes that are neither the old dataset's nor the new one's")


def test_dying_at_every_single_step_leaves_old_new_or_no_manifest(tmp_path, sources):
    new, old = sources
    pack_dir(new, out=tmp_path / "reference", shard_mb=1, label_mode="none")
    reference = tree_of(tmp_path / "reference")
    script = Path(__file__).with_name("pack_crash.py")
    out = tmp_path / "out"
    found = []
    with subprocess.Popen(
        [sys.executable, script, out, new, old], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as dying:
        while dying.stdout.readline() == "died\n":
            found.append(check_what_a_reader_finds(out))
            pack_dir(new, out=out, shard_mb=1, label_mode="none")
            assert tree_of(out) == reference
            dying.stdin.write("\n")
            dying.stdin.flush()
    assert dying.returncode == 0
    assert tree_of(out) == reference
    assert len(found) > 20
    assert set(found) == {"old", "nothing", "new"}
    assert found == sorted(found, key=["old", "nothing", "new"].index), "once it is replaced it stays replaced"


PACK_FOR_EVER = """
import sys
from penstock.packing import pack_dir
out, *sources = sys.argv[1:]
print("packing", flush=True)
while True:
    for source in sources:
        pack_dir(source, out=out, shard_mb=1, label_mode="none")
"""


def test_kill_9_at_random_moments(tmp_path, sources):
    new, old = sources
    pack_dir(new, out=tmp_path / "reference", shard_mb=1, label_mode="none")
    out = tmp_path / "out"
    dice = random.Random(3)
    for _ in range(8):
        with subprocess.Popen([sys.executable, "-c", PACK_FOR_EVER, out, new, old], stdout=subprocess.PIPE) as packing:
            assert packing.stdout.readline() == b"packing\n"
            time.sleep(dice.uniform(0, 0.15))  # the random moment is the point
            packing.kill()
        check_what_a_reader_finds(out)
    pack_dir(new, out=out, shard_mb=1, label_mode="none")
    assert tree_of(out) == tree_of(tmp_path / "reference")


CTRL_C = """
import os, signal, sys
from penstock.packing import pack_dir
def press(report):
    if report.stage == "copy" and report.done_samples:
        os.kill(os.getpid(), signal.SIGINT)
pack_dir(sys.argv[1], out=sys.argv[2], shard_mb=1, progress=press)
"""


def test_ctrl_c_ends_the_process_cleanly(tmp_path, sources):
    new, old = sources
    out = tmp_path / "out"
    pack_dir(old, out=out)
    before = tree_of(out)
    run = subprocess.run(
        [sys.executable, "-c", CTRL_C, new, out], capture_output=True, text=True, timeout=60, check=False
    )
    assert run.returncode == -signal.SIGINT, run.stderr
    assert run.stderr.rstrip().endswith("KeyboardInterrupt")
    assert tree_of(out) == before
