import hashlib
import io

import numpy as np
import pytest

from penstock._core import ManifestParser
from penstock.dataset.manifest_text import ManifestWriter
from penstock.errors import ConfigError, ManifestError


def write(version=1, **columns):
    out = io.BytesIO()
    writer = ManifestWriter(out, version=version)
    writer.add(**columns)
    return out.getvalue(), writer.finish()


def test_e2_04_version_0_begins_with_its_header_and_has_five_fields_a_row():
    text, _ = write(0, locations=["/a", "/b"], offsets=[512, -1], lengths=[3, -1], hints=["h", ""])
    assert text == b"schema_version=0\n0\t/a\t512\t3\th\n1\t/b\t\t\t\n"


def test_version_1_adds_a_checksum_of_eight_hex_digits():
    text, _ = write(1, locations="s.tar", offsets=[512, 2048], lengths=[3, 4], crcs=[0xAB, -1])
    assert text == b"schema_version=1\n0\ts.tar\t512\t3\t\t000000ab\n1\ts.tar\t2048\t4\t\t\n"


@pytest.mark.parametrize("version", [0, 1])
def test_e2_05_the_hash_is_the_sha256_of_the_text(version):
    text, manifest_hash = write(version, locations=["ä", "b"])
    assert manifest_hash == hashlib.sha256(text).hexdigest()
    assert len(manifest_hash) == 64


def test_rows_may_come_in_pieces_of_any_size():
    whole = io.BytesIO()
    one = ManifestWriter(whole)
    one.add([str(i) for i in range(100)], np.arange(100), np.arange(100) + 1, "x", np.arange(100))
    pieces = io.BytesIO()
    many = ManifestWriter(pieces)
    for start, end in [(0, 1), (1, 1), (1, 60), (60, 100)]:
        span = np.arange(start, end)
        many.add([str(i) for i in span], span, span + 1, ["x"] * len(span), span)
    assert pieces.getvalue() == whole.getvalue()
    assert one.finish() == many.finish()
    assert many.rows == 100


@pytest.mark.parametrize(
    ("columns", "says"),
    [
        ({"locations": " "}, "row 0 has a blank location"),
        ({"locations": ["a", ""]}, "row 1 has a blank location"),
        ({"locations": "a\tb"}, r"'a\\tb' holds a tab"),
        ({"locations": ["a", "b\nc"]}, r"row 1: location 'b\\nc'"),
        ({"locations": "a", "hints": "x\ty"}, "decode_hint"),
        ({"locations": "a", "hints": "x\r"}, "decode_hint"),
        ({"locations": "a", "hints": "mx8:vision:imagefolder"}, "label_id"),
        ({"locations": "a", "offsets": [1]}, "give both"),
        ({"locations": "a", "lengths": [1]}, "give both"),
        ({"locations": "a", "offsets": [0], "lengths": [0]}, "length of at least 1"),
        ({"locations": "a", "offsets": [-2], "lengths": [-2]}, "give both"),
        ({"locations": "a", "offsets": [10**18], "lengths": [1]}, "offset=10"),
        ({"locations": ["a", "b\udcff"]}, "row 1 is not valid UTF-8"),
        ({"locations": "../a"}, "climbs out"),
        ({"locations": "a", "crcs": [1 << 32]}, "32-bit"),
    ],
)
def test_what_no_reader_could_read_back_is_refused_and_nothing_is_written(columns, says):
    out = io.BytesIO()
    writer = ManifestWriter(out)
    before = writer.finish()
    with pytest.raises(ManifestError, match=says):
        writer.add(**columns)
    assert writer.finish() == before
    assert writer.rows == 0
    assert out.getvalue() == b"schema_version=1\n"


def test_a_carriage_return_in_a_location_survives():
    text, _ = write(0, locations="Icon\r")
    parser = ManifestParser()
    assert parser.feed(text)[5] == b"Icon\r"
    assert parser.canonical


def test_wrong_calls_are_config_errors():
    with pytest.raises(ConfigError, match="manifest_version is 2"):
        ManifestWriter(io.BytesIO(), version=2)
    with pytest.raises(ConfigError, match="different lengths"):
        ManifestWriter(io.BytesIO()).add(["a", "b"], [1])


def test_a_parser_error_names_its_line():
    parser = ManifestParser()
    parser.feed(b"schema_version=0\n0\ta\n")
    with pytest.raises(ManifestError, match=r"^line 3: expected sample_id 1 but found 5"):
        parser.feed(b"5\ta\n")
