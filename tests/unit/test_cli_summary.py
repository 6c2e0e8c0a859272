"""What inspect computes, on manifests that no files stand behind."""

import hashlib

import numpy as np
import pytest

from penstock.cli.summary import Bin, location_of, summarise
from penstock.dataset.manifest import Manifest
from penstock.dataset.resolve import Resolved


@pytest.fixture
def resolved(tmp_path, monkeypatch):
    """Makes a dataset of manifest rows; nothing but its text exists."""
    monkeypatch.setenv("PENSTOCK_CACHE_DIR", str(tmp_path / "cache"))

    def make(rows, version=1):
        text = f"schema_version={version}\n" + "".join(f"{number}\t{row}\n" for number, row in enumerate(rows))
        path = tmp_path / "manifest.tsv"
        path.write_text(text)
        manifest_hash = hashlib.sha256(text.encode()).hexdigest()
        manifest = Manifest.open(path, expected_hash=manifest_hash)
        return Resolved(manifest=manifest, base=str(tmp_path), hash=manifest_hash)

    return make


def test_sizes_fall_into_powers_of_two(resolved):
    sizes = [1, 2, 3, 4, 7, 8, 1 << 40]
    found = summarise(resolved([f"s.tar\t0\t{size}\t\t" for size in sizes]), most_labels=5, examples=0)
    assert (found.least_bytes, found.most_bytes, found.total_bytes) == (1, 1 << 40, sum(sizes))
    filled = [part for part in found.histogram if part.samples]
    assert filled == [Bin(1, 2, 1), Bin(2, 4, 2), Bin(4, 8, 2), Bin(8, 16, 1), Bin(1 << 40, 1 << 41, 1)]
    assert sum(part.samples for part in found.histogram) == len(sizes)
    borders = [(part.start_bytes, part.end_bytes) for part in found.histogram]
    assert all(left[1] == right[0] for left, right in zip(borders[:-1], borders[1:], strict=True))


def test_rows_without_a_size_are_counted_apart(resolved):
    found = summarise(resolved(["a\t\t\t\t", "b\t\t\t\t"]), most_labels=5, examples=5)
    assert (found.samples, found.sized, found.total_bytes, found.least_bytes) == (2, 0, 0, 0)
    assert found.histogram == []
    assert [example.length for example in found.examples] == [-1, -1]


def test_labels_are_counted_without_a_labels_file(resolved):
    hints = [f"mx8:vision:imagefolder;label_id={number}" for number in (2, 0, 2, 5_000_000)]
    found = summarise(resolved([f"s.tar\t0\t1\t{hint}\t" for hint in hints]), most_labels=1, examples=0)
    assert found.labelled == 4
    assert found.label_count == 2  # an absurd id costs no memory; it is left out of the list
    assert [(label.label_id, label.name, label.samples) for label in found.labels] == [(0, None, 1)]


def test_examples_are_spread_and_have_their_full_location(resolved, tmp_path):
    found = summarise(resolved([f"{number}.bin\t0\t1\t\t" for number in range(11)]), most_labels=0, examples=3)
    assert [example.sample_id for example in found.examples] == [0, 5, 10]
    assert found.examples[1].location == f"{tmp_path}/5.bin"


@pytest.mark.parametrize("count", [0, 1, 2, 50])
def test_any_number_of_examples(resolved, count):
    found = summarise(resolved(["a\t\t\t\t"] * 3), most_labels=0, examples=count)
    assert len(found.examples) == min(count, 3)
    assert len({example.sample_id for example in found.examples}) == len(found.examples)


def test_more_rows_than_are_looked_at_together(resolved, monkeypatch):
    monkeypatch.setattr("penstock.cli.summary._ROWS", 7)
    sizes = np.random.default_rng(0).integers(1, 1000, 50).tolist()
    found = summarise(resolved([f"s.tar\t0\t{size}\t\t00000000" for size in sizes]), most_labels=0, examples=0)
    assert (found.total_bytes, found.least_bytes, found.most_bytes) == (sum(sizes), min(sizes), max(sizes))
    assert (found.sized, found.checked) == (50, 50)


def test_locations_of_version_0_stand_as_written(resolved):
    dataset = resolved(["/elsewhere/s.tar\t0\t1\t"], version=0)
    assert location_of(dataset, 0) == "/elsewhere/s.tar"
