"""The order of an indexed dataset, whatever its names are, in memory that does not grow with it."""

from __future__ import annotations

import io
import subprocess
import sys
from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from penstock.dataset.index import _write_listing
from penstock.store.base import ObjectInfo

PART = st.text("ab-._ üÿ\U0001f600", min_size=1, max_size=4).filter(lambda part: part.strip() not in {"", ".", ".."})
KEYS = st.sets(st.lists(PART, min_size=1, max_size=3).map("/".join), min_size=1, max_size=20)


@dataclass
class Listing:
    """As much of a store as indexing needs."""

    keys: list[str]
    url: str = "s3://bucket/data"

    def locate(self, key: str) -> str:
        return f"{self.url}/{key}"

    def list(self, prefix: str = ""):
        return (ObjectInfo(key, 1) for key in self.keys)


def locations(keys: set[str], **options) -> list[str]:
    out = io.BytesIO()
    _write_listing(Listing(list(keys)), out, version=1, **options)
    return [line.split("\t")[1] for line in out.getvalue().decode().splitlines()[1:]]


@given(KEYS)
def test_e2_18_a_folder_sorts_by_the_parts_of_its_paths(keys):
    expected = sorted(keys, key=lambda key: [part.encode() for part in key.split("/")])
    assert locations(keys, is_folder=True) == expected


@given(KEYS)
def test_a_prefix_sorts_by_whole_keys(keys):
    assert locations(keys, is_folder=False) == sorted(keys, key=str.encode)


def test_a_key_that_reads_as_absolute_is_written_with_its_store():
    assert locations({"a", "gs://x", "..b/c"}, is_folder=False) == ["..b/c", "a", "s3://bucket/data/gs://x"]


MEASURE = """
import re, sys
from pathlib import Path
from penstock.dataset.index import _write_listing
from penstock.dataset.manifest_store import staging_file
from penstock.store.base import ObjectInfo

class Listing:
    url = "s3://bucket/data"
    def locate(self, key):
        return f"{self.url}/{key}"
    def list(self, prefix=""):
        for i in range(count):
            yield ObjectInfo(f"class-{i * 7919 % 100:03d}/image-{i * 7919 % count:08d}.jpeg", 1)

def peak_kib():
    return int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])

for count in (20_000, 300_000):
    with staging_file() as text:
        assert _write_listing(Listing(), text, version=1, is_folder=True).rows == count
    print(peak_kib())
"""


def test_indexing_fifteen_times_as_many_files_takes_no_more_memory(tmp_path, monkeypatch):
    monkeypatch.setenv("PENSTOCK_CACHE_DIR", str(tmp_path))
    done = subprocess.run([sys.executable, "-c", MEASURE], check=True, capture_output=True, text=True)
    few, many = (int(line) for line in done.stdout.split())
    assert many - few < 16 * 1024  # KiB; a run of the sort and a chunk of rows
