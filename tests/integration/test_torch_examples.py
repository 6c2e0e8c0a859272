"""The training examples as people run them: real processes, killed and run again."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("PIL")
import torch

from penstock.vision import ImageFolderLoader

EXAMPLES = Path(__file__).parents[2] / "examples"
IMAGES_PER_CLASS = 20

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    """The examples' own photographs, few of them, packed."""
    pytest.importorskip("skimage")
    pytest.importorskip("sklearn")
    out = tmp_path_factory.mktemp("photographs")
    code = (
        f"import sys; from pathlib import Path; sys.path.insert(0, {str(EXAMPLES / 'training')!r}); import data; "
        f"data.packed_photographs(Path({str(out)!r}), {IMAGES_PER_CLASS})"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
    return out / "packed"


@pytest.fixture
def environment(tmp_path):
    """Of the examples' processes: their own manifests, one thread for torch."""
    own = {"PENSTOCK_MANIFEST_STORE_ROOT": str(tmp_path / "store"), "PENSTOCK_CACHE_DIR": str(tmp_path / "cache")}
    return os.environ | own | {"OMP_NUM_THREADS": "1"}


def command(name: str, *arguments: object) -> list[str]:
    return [sys.executable, str(EXAMPLES / "training" / name), *map(str, arguments)]


def wait_until(true, process: subprocess.Popen) -> None:
    """Poll what another process writes; it must not end before."""
    deadline = time.monotonic() + 120
    while not true():
        assert process.poll() is None, "it ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_plain_training_that_is_killed_goes_on(photographs, environment, tmp_path):
    checkpoint = tmp_path / "plain.pt"
    run = command("plain.py", "--data", photographs, "--checkpoint", checkpoint, "--every", 3)
    first = subprocess.Popen([*run, "--epochs", "1000"], env=environment)
    wait_until(checkpoint.exists, first)
    first.kill()
    first.wait(30)
    saved = torch.load(checkpoint)
    assert 0 < saved["step"] == saved["loader"]["epoch"] * 10 + saved["loader"]["batches"]
    epochs = saved["loader"]["epoch"] + 1
    done = subprocess.run([*run, "--epochs", str(epochs)], env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0] == f"going on after step {saved['step']}, in epoch {epochs - 1}"
    assert f"epoch {epochs - 1}: {10 * epochs} steps so far" in done.stdout  # 160 images in batches of 16


def test_two_ranks_one_is_killed_and_one_rank_goes_on(photographs, environment, tmp_path):
    """The union of what counts is each image once, and ranks that train together take the same steps."""
    checkpoint, batch_size = tmp_path / "ranks.pt", 2

    def torchrun(ranks: int, journal: Path) -> list[str]:
        journal.mkdir()
        how = [
            "--epochs",
            1,
            "--checkpoint",
            checkpoint,
            "--every",
            4,
            "--batch-size",
            batch_size,
            "--journal",
            journal,
        ]
        script = command("ranks.py", "--data", photographs, *how)[1:]
        return [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks), *script]

    first = subprocess.Popen(torchrun(2, tmp_path / "first"), env=environment, stderr=subprocess.DEVNULL)
    wait_until(checkpoint.exists, first)
    os.kill(int(next((tmp_path / "first").iterdir()).stem), signal.SIGKILL)
    assert first.wait(60) != 0
    saved = torch.load(checkpoint)
    lines = journals(tmp_path / "first")
    assert len(lines) == 2
    counted = [[line for line in rank if line["step"] <= saved["step"]] for rank in lines]
    assert [[line["step"] for line in rank] for rank in counted] == [list(range(1, saved["step"] + 1))] * 2

    subprocess.run(torchrun(1, tmp_path / "second"), env=environment, check=True, timeout=120)
    (rest,) = journals(tmp_path / "second")
    steps = [line["step"] for line in rest]
    assert steps == list(range(saved["step"] + 1, saved["step"] + len(rest) + 1))
    trained_on = Counter(image for rank in [*counted, rest] for line in rank for image in line["images"])
    assert trained_on == all_images(photographs, environment["PENSTOCK_MANIFEST_STORE_ROOT"])


def test_leases_two_ranks_one_is_killed_and_three_go_on(photographs, environment, tmp_path):
    """The union of what counts is each image once in each epoch, whoever had it."""
    checkpoint = tmp_path / "leases.pt"

    def torchrun(ranks: int, journal: Path) -> list[str]:
        journal.mkdir()
        how = ["--epochs", 2, "--batch-size", 2, "--block-size", 20, "--every", 4]
        script = command("leases.py", "--data", photographs, *how, "--checkpoint", checkpoint, "--journal", journal)[1:]
        return [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks), *script]

    first = subprocess.Popen(torchrun(2, tmp_path / "first"), env=environment, stderr=subprocess.DEVNULL)
    wait_until(checkpoint.exists, first)
    os.kill(int(next((tmp_path / "first").iterdir()).stem), signal.SIGKILL)
    assert first.wait(60) != 0
    saved = torch.load(checkpoint)
    counted = [line for rank in journals(tmp_path / "first") for line in rank if line["step"] <= saved["step"]]
    assert sum(end - start for start, end in saved["loader"]["done"]) == sum(len(line["images"]) for line in counted)

    subprocess.run(torchrun(3, tmp_path / "second"), env=environment, check=True, timeout=180)
    rest = [line for rank in journals(tmp_path / "second") for line in rank]
    whole = all_images(photographs, environment["PENSTOCK_MANIFEST_STORE_ROOT"])
    for epoch in (0, 1):
        lines = [line for line in [*counted, *rest] if line["epoch"] == epoch]
        assert Counter(image for line in lines for image in line["images"]) == whole


def journals(folder: Path) -> list[list[dict]]:
    """What each process wrote down; a line that a kill cut off is of a step that doesn't count."""
    found = []
    for path in sorted(folder.iterdir()):
        whole = path.read_text().rpartition("\n")[0]
        found.append([json.loads(line) for line in whole.splitlines()])
    return found


def all_images(photographs: Path, store: str) -> Counter:
    """The digest of every image, as the example makes it."""
    sys.path.insert(0, str(EXAMPLES / "training"))
    try:
        from ranks import digests
    finally:
        sys.path.pop(0)
    with ImageFolderLoader(str(photographs), manifest_store_root=store, resize_hw=(64, 64)) as loader:
        return Counter(digest for images, _ in loader for digest in digests(images))


def test_lightning_stops_in_an_epoch_and_goes_on(photographs, environment, tmp_path):
    """One process for both runs: importing Lightning takes longer than they do."""
    pytest.importorskip("lightning")
    how = ["--data", str(photographs), "--checkpoints", str(tmp_path / "lightning"), "--every", "4", "--epochs", "1"]
    code = (
        f"import sys; sys.path.insert(0, {str(EXAMPLES / 'training')!r}); import with_lightning as example; "
        f"example.main({[*how, '--stop-after', '4']!r}); example.main({how!r})"
    )
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=180)
    assert done.returncode == 0, done.stderr
    printed = [line for line in done.stdout.splitlines() if "steps in all" in line]
    assert printed == ["4 steps in all; the next epoch is 0", "10 steps in all; the next epoch is 1"]
