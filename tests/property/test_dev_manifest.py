"""Tables in any order against the writer, and anything at all as a table."""

from __future__ import annotations

import io
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock._core import ManifestParser
from penstock.dataset.dev_manifest import parse_dev_row, write_dev_manifest
from penstock.dataset.manifest_text import ManifestWriter
from penstock.errors import ManifestError

LOCATION = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=12).filter(
    lambda text: text.strip() and ".." not in text
)
ROW = st.one_of(
    st.tuples(LOCATION, st.just(-1), st.just(-1)),
    st.tuples(LOCATION, st.integers(0, 10**17), st.integers(1, 10**17)),
)
NOISE = st.sampled_from(["# a comment\t", "", "   ", "#"])
ENDS = st.sampled_from(["\n", "\r\n"])


def canonical(table: bytes, version: int) -> tuple[bytes, str]:
    with tempfile.NamedTemporaryFile() as file:
        file.write(table)
        file.flush()
        out = io.BytesIO()
        written = write_dev_manifest(Path(file.name), out, version=version)
        return out.getvalue(), written.hash


@given(rows=st.lists(ROW, min_size=1, max_size=12), version=st.sampled_from([0, 1]), data=st.data())
def test_e2_06_any_order_comments_and_line_ends_give_the_canonical_text(rows, version, data):
    expected = io.BytesIO()
    writer = ManifestWriter(expected, version=version)
    locations, offsets, lengths = zip(*rows, strict=True)
    writer.add(locations, offsets, lengths)

    lines = []
    for i in data.draw(st.permutations(range(len(rows)))):
        location, offset, length = rows[i]
        lines.append(f"{i}\t{location}" + ("" if offset < 0 else f"\t{offset}\t{length}"))
        lines += data.draw(st.lists(NOISE, max_size=1))
    end = data.draw(ENDS)
    table = end.join(lines) + data.draw(st.sampled_from(["", end]))
    assert canonical(table.encode(), version) == (expected.getvalue(), writer.finish())


@given(line=st.one_of(st.binary(max_size=40), st.text("0123\t#ab \r", max_size=20).map(str.encode)))
def test_any_line_is_a_row_or_nothing_or_a_manifest_error(line):
    if b"\n" in line:
        return
    try:
        row = parse_dev_row(line)
    except ManifestError:
        return
    if row is None:
        assert not line.strip() or line.strip().startswith(b"#")
    else:
        assert line.split(b"\t")[0] == b"%d" % row.sample_id or line.startswith(b"0")
        assert (row.offset < 0) == (row.length < 0)


@given(table=st.text("012\t\na#", max_size=30).map(str.encode))
def test_a_table_that_is_accepted_makes_a_manifest_that_reads(table):
    try:
        text, _ = canonical(table, 1)
    except ManifestError:
        return
    parser = ManifestParser()
    parser.feed(text)
    parser.finish()
    assert parser.canonical


def test_a_line_without_end_is_refused_before_it_fills_the_memory(tmp_path):
    path = tmp_path / "table"
    with open(path, "wb") as file:
        file.truncate(1 << 30)  # a hole: a gigabyte of NUL
    with pytest.raises(ManifestError, match="line 1: longer than 1048512 bytes"):
        write_dev_manifest(path, io.BytesIO(), version=1)
