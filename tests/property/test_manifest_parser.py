"""The streaming parser against a plain one, on anything; and whatever is written is read back."""

import io
import itertools
import re

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from penstock._core import ManifestParser
from penstock.dataset.manifest_text import ManifestWriter
from penstock.errors import ManifestError

BLANKS = b" \t\n\v\f\r"
LABEL = b"mx8:vision:imagefolder"


def number(field):
    if not re.fullmatch(rb"[0-9]{1,18}", field):
        raise ValueError(field)
    return int(field)


def label(hint):
    kind, *parts = hint.split(b";")
    if kind.strip(BLANKS) != LABEL:
        return -1
    for part in parts:
        name, _, value = part.partition(b"=")
        if name.strip(BLANKS) == b"label_id":
            return number(value.strip(BLANKS))
    raise ValueError(hint)


def climbs(location):
    absolute = location.startswith(b"/") or re.match(rb"[A-Za-z][A-Za-z0-9+.-]*://", location)
    return not absolute and b".." in location.split(b"/")


def reference_row(line, expected_id, version):
    fields = line.split(b"\t")
    if len(fields) not in ({2, 4, 5, 6} if version else {2, 4, 5}):
        raise ValueError(line)
    fields += [b""] * (6 - len(fields))
    if number(fields[0]) != expected_id or not fields[1].strip(BLANKS):
        raise ValueError(line)
    fields[1].decode()
    fields[4].decode()
    if version and climbs(fields[1]):
        raise ValueError(line)
    offset = length = -1
    if fields[2] or fields[3]:
        offset, length = number(fields[2]), number(fields[3])
        if length == 0:
            raise ValueError(line)
    crc = -1
    if fields[5]:
        if not re.fullmatch(rb"[0-9a-fA-F]{8}", fields[5]):
            raise ValueError(line)
        crc = int(fields[5], 16)
    return fields[1], offset, length, label(fields[4]), crc


def reference(text):
    """Rows as tuples, the version; raises ValueError for what is no manifest."""
    version, rows = None, []
    for raw in text.split(b"\n"):
        line = raw.removesuffix(b"\r")
        if not line.strip(BLANKS):
            continue
        if version is None:
            version = {b"schema_version=0": 0, b"schema_version=1": 1}.get(line.strip(BLANKS))
            if version is None:
                raise ValueError(line)
        else:
            rows.append(reference_row(line, len(rows), version))
    if version is None:
        raise ValueError(text)
    return version, rows


def parse(text, cuts):
    """Rows as the reference gives them, from pieces of the text."""
    parser = ManifestParser()
    drained = []
    edges = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    for start, end in itertools.pairwise(edges):
        drained.append(parser.feed(text[start:end]))
    drained.append(parser.finish())
    locations, rows = [], []
    for index, offset, length, label_id, crc, location_text, location_lengths in drained:
        starts = np.cumsum(location_lengths) - location_lengths
        locations += [location_text[s : s + n] for s, n in zip(starts, location_lengths, strict=True)]
        numbers = (column.tolist() for column in (offset, length, label_id, crc))
        rows += [(locations[i], *rest) for i, *rest in zip(index.tolist(), *numbers, strict=True)]
    assert parser.row_count == len(rows)
    return parser, rows


LOCATIONS = [
    b"a",
    b"a/b",
    b"..",
    b"a/../b",
    b"s3://b/../k",
    b"\xff",
    "ä".encode(),
    b"\xed\xa0\x80",
    b" ",
    b"1\r",
]
NUMBERS = [b"", b"-1", b"+1", b"00", b"9" * 18, b"9" * 19, b"0123abcd", b"0123ABCD", b"xyz"]
TAILS = [b"", b";label_id=3", b";k=v; label_id = 4 ;z", b";label_id=", b"s;label_id=x"]
FIELD = st.one_of(
    st.integers(0, 5).map(lambda n: b"%d" % n),
    st.sampled_from([*LOCATIONS, *NUMBERS, *(LABEL + tail for tail in TAILS)]),
    st.binary(max_size=6),
)
HEADERS = [b"schema_version=0", b"schema_version=1", b" schema_version=1", b"schema_version=2", b""]
HEADER = st.sampled_from(HEADERS)
ENDS = st.sampled_from([b"\n", b"\n", b"\n", b"\r\n", b"\n\n", b""])


@st.composite
def near_manifests(draw):
    text = draw(HEADER) + draw(ENDS)
    for expected in range(draw(st.integers(0, 4))):
        fields = draw(st.lists(FIELD, min_size=1, max_size=6))
        sample_id = draw(st.sampled_from([b"%d" % expected, None]))
        text += b"\t".join(fields if sample_id is None else [sample_id, *fields]) + draw(ENDS)
    return text


@given(text=st.one_of(near_manifests(), st.binary(max_size=60)), cuts=st.lists(st.integers(0, 200), max_size=5))
@example(text=b"schema_version=0\n0\ta\r\n", cuts=[20, 21, 22])
@example(text=b"schema_version=1\n0\ta\t\t\t\t\n1\t\xc3", cuts=[])
def test_the_parser_reads_what_the_plain_one_reads_and_refuses_what_it_refuses(text, cuts):
    try:
        version, rows = reference(text)
    except ValueError:
        with pytest.raises(ManifestError, match=r"^line \d+: "):
            parse(text, cuts)
        return
    parser, found = parse(text, cuts)
    assert (parser.version, found) == (version, rows)


NAME = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\t\n"), min_size=1, max_size=20)


@st.composite
def written_rows(draw):
    location = draw(NAME.filter(lambda name: name.strip(" \v\f\r") and ".." not in name))
    ranged = draw(st.booleans())
    offset = draw(st.integers(0, 10**18 - 1)) if ranged else -1
    length = draw(st.integers(1, 10**18 - 1)) if ranged else -1
    label_id = draw(st.integers(-1, 10**6))
    return location, offset, length, label_id, draw(st.integers(-1, 2**32 - 1))


@given(
    rows=st.lists(written_rows(), max_size=20),
    version=st.sampled_from([0, 1]),
    cuts=st.lists(st.integers(0, 500), max_size=4),
)
def test_whatever_is_written_is_read_back_and_canonical(rows, version, cuts):
    out = io.BytesIO()
    writer = ManifestWriter(out, version=version)
    if rows:
        locations, offsets, lengths, labels, crcs = zip(*rows, strict=True)
        hints = ["" if n < 0 else f"mx8:vision:imagefolder;label_id={n}" for n in labels]
        writer.add(locations, offsets, lengths, hints, crcs)
    parser, found = parse(out.getvalue(), cuts)
    assert parser.version == version
    assert parser.canonical
    expected = [(loc.encode(), *rest, crc if version else -1) for loc, *rest, crc in rows]
    assert found == expected


@given(text=near_manifests())
def test_what_is_called_canonical_is_exactly_what_a_writer_makes_of_it(text):
    try:
        parser, rows = parse(text, [])
    except ManifestError:
        return
    hints = []
    for line in text.split(b"\n")[1:-1]:
        fields = line.split(b"\t")
        hints.append(fields[4].decode() if len(fields) > 4 else "")
    out = io.BytesIO()
    writer = ManifestWriter(out, version=parser.version)
    if rows and (len(hints) == len(rows)):
        locations, offsets, lengths, _, crcs = zip(*rows, strict=True)
        try:
            writer.add([location.decode() for location in locations], offsets, lengths, hints, crcs)
        except ManifestError:
            assert not parser.canonical
            return
    assert parser.canonical == (out.getvalue() == text)
