"""What the command line prints, without a dataset."""

import io
import json

import pytest

from penstock.cli import output
from penstock.cli.facts import facts, masked, store_facts


@pytest.mark.parametrize(
    ("done", "total", "elapsed", "expected"),
    [
        (0, 0, 0.0, "pack: 0 B"),
        (3 << 20, 0, 1.0, "pack: 3.0 MiB, 3.0 MiB/s"),
        (25 << 20, 100 << 20, 5.0, "pack: 25 %, 25.0 MiB of 100.0 MiB, 5.0 MiB/s, 15 s left"),
        (100, 100, 1.0, "pack: 100 %, 100 B of 100 B, 100 B/s"),
    ],
)
def test_a_line_of_progress_says_rate_and_time_left(done, total, elapsed, expected):
    assert output.progress_line("pack", done, total, elapsed) == expected


def test_a_note_ends_the_line():
    assert output.progress_line("verify", 0, 0, 0.0, "7 samples").endswith(", 7 samples")


def test_columns_are_aligned_and_not_padded_at_the_end(capsys):
    output.table([("a", "1"), ("bcd", "22")], header=("name", "n"), right=(1,))
    assert capsys.readouterr().out == "name   n\na      1\nbcd   22\n"


def test_no_name_of_a_file_can_break_the_terminal(capsys):
    output.table([("a\tb\x1b[31m", "x\ud800y")])
    shown = capsys.readouterr().out
    assert "\x1b" not in shown
    assert shown.count("\n") == 1
    assert "\\ud800" in shown


def test_an_error_is_one_line_on_stderr(capsys):
    output.complain("first\nsecond")
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == "penstock: error: first second\n"


class _Log(io.StringIO):
    """A stderr that is a file."""


def _report_lines(monkeypatch, clock_s, *, quiet=False):
    log = _Log()
    monkeypatch.setattr("sys.stderr", log)
    times = iter(clock_s)
    monkeypatch.setattr(output.time, "monotonic", lambda: next(times))
    with output.ProgressReport("pack", quiet=quiet) as report:
        for done in range(1, len(clock_s)):
            report.update(done << 20, len(clock_s) << 20)
    return log.getvalue().splitlines()


def test_a_log_gets_a_line_every_few_seconds(monkeypatch):
    lines = _report_lines(monkeypatch, [0.0, 1.0, 6.0, 7.0, 12.0])
    assert [line.split(",")[1] for line in lines] == [" 2.0 MiB of 5.0 MiB", " 4.0 MiB of 5.0 MiB"]
    assert all(line.startswith("penstock: pack: ") and line.endswith(" s left") for line in lines)


def test_a_machine_gets_no_lines(monkeypatch):
    assert _report_lines(monkeypatch, [0.0, 10.0, 20.0], quiet=True) == []


def test_a_document_is_json_whatever_a_label_is_called(capsys):
    output.document({"label": "caf\udce9 \x00"})
    assert json.loads(capsys.readouterr().out) == {"label": "caf\udce9 \x00"}


@pytest.mark.parametrize(
    "name", ["AWS_SECRET_ACCESS_KEY", "AWS_ACCESS_KEY_ID", "AWS_SESSION_TOKEN", "AZURE_STORAGE_KEY"]
)
def test_secrets_are_masked(name):
    secret = "abcdefghijklmnopqrstuvwxyz"
    shown = masked(name, secret)
    assert secret[:20] not in shown
    assert shown == "***wxyz (26 characters)"
    assert masked(name, "short") == "*** (5 characters)"


def test_other_settings_are_shown():
    assert masked("PENSTOCK_CACHE_DIR", "/data/cache") == "/data/cache"


def test_doctor_finds_what_every_loader_needs(monkeypatch, tmp_path):
    monkeypatch.setenv("PENSTOCK_CACHE_DIR", str(tmp_path))
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "do-not-show-me-in-any-log")
    found = {(fact.topic, fact.name): fact for fact in facts()}
    assert found["core", "crc32c"].value.split(",")[0] in {"vpclmulqdq", "sse4.2", "armv8", "table"}
    assert found["payload memory", "memfd"].health == "ok"
    assert str(tmp_path) in found["places", "columnar manifests"].value
    assert "PENSTOCK_CACHE_DIR" in found["places", "columnar manifests"].value
    assert "do-not-show" not in " ".join(fact.value for fact in found.values())
    assert all(fact.health != "bad" for fact in found.values())


def test_doctor_refuses_a_value_that_a_loader_would_refuse(monkeypatch):
    monkeypatch.setenv("MX8_DECODE_BACKEND", "quantum")
    (bad,) = [fact for fact in facts() if fact.health == "bad"]
    assert "MX8_DECODE_BACKEND" in bad.value


def test_doctor_says_what_is_wrong_with_a_store(tmp_path):
    missing = tmp_path / "nowhere"
    (bad,) = [fact for fact in store_facts(str(missing)) if fact.health == "bad"]
    assert str(missing) in bad.value
    assert all(fact.health == "ok" for fact in store_facts(str(tmp_path)))
