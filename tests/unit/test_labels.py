from __future__ import annotations

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.dataset.labels import (
    hint_for,
    label_id_of,
    label_of,
    labels_active,
    number_labels,
    parse_label_mode,
    read_labels,
    write_labels,
)
from penstock.errors import ConfigError, ManifestError, PackError


@pytest.mark.parametrize(
    ("text", "mode"),
    [
        ("auto", "auto"),
        ("", "auto"),
        ("AUTO", "auto"),
        (" none ", "none"),
        ("off", "none"),
        ("False", "none"),
        ("0", "none"),
        ("imagefolder", "imagefolder"),
        ("image_folder", "imagefolder"),
        ("Image-Folder", "imagefolder"),
    ],
)
def test_e2_33_label_mode_aliases_in_any_case(text, mode):
    assert parse_label_mode(text) == mode


@pytest.mark.parametrize("text", ["folder", "true", "1", "no", "image folder", None, 0])
def test_e2_32_bad_label_mode_names_the_choices(text):
    with pytest.raises(ConfigError, match=r"auto\|none\|imagefolder") as caught:
        parse_label_mode(text)
    assert isinstance(caught.value, ValueError)


@pytest.mark.parametrize(
    ("path", "label"),
    [(b"a/x", b"a"), (b"a/b/x", b"a"), (b"x", None), (b"/x", None), (b"a/", None), (b"\xff/x", b"\xff")],
)
def test_a_label_is_the_first_part_when_a_further_part_follows(path, label):
    assert label_of(path) == label


@pytest.mark.parametrize(
    ("mode", "unlabelled", "label_count", "active"),
    [
        ("none", None, 5, False),
        ("auto", None, 2, True),
        ("auto", None, 1, False),
        ("auto", b"x", 5, False),
        ("imagefolder", None, 1, True),
    ],
)
def test_e2_27_e2_28_when_labels_are_active(mode, unlabelled, label_count, active):
    assert labels_active(mode, unlabelled=unlabelled, label_count=label_count) is active


def test_e2_27_imagefolder_refuses_a_file_at_the_root():
    with pytest.raises(
        PackError, match="require_labels/imagefolder mode requires files under <label>/<file>"
    ) as caught:
        labels_active("imagefolder", unlabelled=b"stray.jpg", label_count=3)
    assert "stray.jpg" in str(caught.value)


def test_labels_are_numbered_in_byte_order():
    assert number_labels({"é".encode(), b"z", b"a", b"B", b"\xff"}) == {
        b"B": 0,
        b"a": 1,
        b"z": 2,
        "é".encode(): 3,
        b"\xff": 4,
    }


def test_e2_30_labels_text_byte_for_byte():
    text = write_labels(["a-b_c.d~e", "golden retriever", "über", "100%\t\n"])
    assert text == (b"schema_version=1\n0\ta-b_c.d~e\n1\tgolden%20retriever\n2\t%C3%BCber\n3\t100%25%09%0A\n"), (
        hashlib.sha256(text).hexdigest()
    )


@given(st.lists(st.binary(min_size=1, max_size=12), unique=True, max_size=8))
def test_e2_30_labels_come_back_as_they_were(raw):
    labels = [label.decode("utf-8", "surrogateescape") for label in raw]
    assert read_labels(write_labels(labels)) == labels


def test_labels_read_in_any_row_order_with_blank_lines_and_carriage_returns():
    assert read_labels(b"schema_version=1\r\n1\tb\r\n\r\n0\ta%20b\r\n") == ["a b", "b"]


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        (b"", "begins with"),
        (b"schema_version=0\n0\ta\n", "begins with 'schema_version=0'"),
        (b"schema_version=2\n", "begins with"),
        (b"0\ta\n", "begins with"),
        (b"schema_version=1\n0\ta\n0\tb\n", "line 3: label id 0 is given twice"),
        (b"schema_version=1\n0\ta\n1\ta\n", "two ids"),
        (b"schema_version=1\n0\ta\n2\tb\n", "no label id 1"),
        (b"schema_version=1\n1\ta\n", "no label id 0"),
        (b"schema_version=1\n-1\ta\n", "line 2"),
        (b"schema_version=1\nx\ta\n", "line 2"),
        (b"schema_version=1\n0 a\n", "line 2"),
        (b"schema_version=1\n0\t\n", "line 2"),
        (b"schema_version=1\n0\ta\tb\n", "line 2"),
        (b"schema_version=1\n0\ta%2\n", "hex digits"),
        (b"schema_version=1\n0\ta%zz\n", "hex digits"),
        (b"schema_version=1\n" + b"9" * 5000 + b"\ta\n", "line 2"),
    ],
)
def test_e2_30_labels_reader_refuses(text, complaint):
    with pytest.raises(ManifestError, match=complaint):
        read_labels(text)


@given(st.binary(max_size=200))
def test_labels_reader_refuses_or_reads_whatever_it_is_given(noise):
    for text in (noise, b"schema_version=1\n" + noise):
        try:
            labels = read_labels(text)
        except ManifestError:
            continue
        assert read_labels(write_labels(labels)) == labels


@pytest.mark.parametrize(
    ("hint", "label_id"),
    [
        (hint_for(7), 7),
        ("mx8:vision:imagefolder;label_id=0", 0),
        ("mx8:vision:imagefolder;size=3;label_id=12;x", 12),
        ("", None),
        ("jpeg", None),
        ("mx8:vision:other;label_id=3", None),
        ("mx8:vision:imagefolders;label_id=3", None),
    ],
)
def test_label_id_in_a_hint(hint, label_id):
    assert label_id_of(hint) == label_id


@pytest.mark.parametrize(
    "hint",
    [
        "mx8:vision:imagefolder",
        "mx8:vision:imagefolder;",
        "mx8:vision:imagefolder;label_id=",
        "mx8:vision:imagefolder;label_id=x",
        "mx8:vision:imagefolder;label_id=-1",
        "mx8:vision:imagefolder;label_id=٣",
        "mx8:vision:imagefolder;label_id=" + "9" * 30,
    ],
)
def test_imagefolder_hint_without_a_number_is_an_error(hint):
    with pytest.raises(ManifestError, match="label_id"):
        label_id_of(hint)
