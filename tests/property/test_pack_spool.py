from __future__ import annotations

import gc
import os
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.dataset import spool as spool_module
from penstock.dataset.spool import Spool

ENTRIES = st.lists(st.tuples(st.binary(min_size=1, max_size=40), st.integers(1, 1 << 60)), max_size=60)


@given(ENTRIES, st.integers(1, 9), st.integers(2, 4), st.integers(1, 64))
def test_a_spool_sorts_as_sorted_does_whatever_its_run_and_block_sizes(entries, run, fan_in, read_bytes):
    with pytest.MonkeyPatch.context() as patch, Spool() as spool:
        patch.setattr(spool_module, "RUN_ENTRIES", run)
        patch.setattr(spool_module, "MAX_MERGED_RUNS", fan_in)
        patch.setattr(spool_module, "READ_BYTES", read_bytes)
        spool.extend(entries)
        assert list(spool) == sorted(entries)


def test_long_paths_end_a_run_before_its_entries_do(monkeypatch):
    monkeypatch.setattr(spool_module, "RUN_BYTES", 100)
    entries = [(b"%02d" % index + b"x" * 60, index) for index in range(30, 0, -1)]
    with Spool() as spool:
        spool.extend(entries)
        assert len(spool._runs) == 15
        assert list(spool) == sorted(entries)


def test_nothing_is_left_in_the_folder_even_while_it_is_open(tmp_path):
    with Spool(tmp_path) as spool:
        spool.extend([(b"a", 1)])
        assert os.listdir(tmp_path) == []
        assert list(spool) == [(b"a", 1)]


def test_memory_is_a_run_and_a_block_of_each_whatever_the_length(monkeypatch):
    monkeypatch.setattr(spool_module, "RUN_ENTRIES", 4096)
    monkeypatch.setattr(spool_module, "READ_BYTES", 8192)
    gc.collect()
    tracemalloc.start()
    try:
        with Spool() as spool:
            spool.extend((b"folder-%04d/file-%d.jpg" % (index % 997, index), index) for index in range(60_000))
            count, last = 0, b""
            for path, _ in spool:
                assert path >= last
                count, last = count + 1, path
        assert count == 60_000
        assert tracemalloc.get_traced_memory()[1] < 4 << 20  # in one list they would take 8 MB
    finally:
        tracemalloc.stop()
