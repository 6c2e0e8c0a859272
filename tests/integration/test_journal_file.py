"""The journal in a file: killed at every step, damaged, waited for, and written anew."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from journal_crash import COMMITS, changes_of
from penstock.coordinator.journal import FileJournal, open_journal
from penstock.coordinator.journal.base import apply_changes
from penstock.coordinator.journal.lines import Head, read_journal, write_line
from penstock.errors import ConfigError, CoordinatorError, JournalUnavailable, NotLeader

TESTS = Path(__file__).parent.parent


def opened(path, address="a:1", job_id="job", **options) -> FileJournal:
    return FileJournal(path, job_id=job_id, address=address, **options)


def records_after(commits: int) -> dict[str, str]:
    records: dict[str, str] = {}
    for number in range(1, commits + 1):
        apply_changes(records, changes_of(number))
    return records


def test_killed_at_every_step_nothing_that_was_committed_is_lost(tmp_path):
    subprocess.run([sys.executable, TESTS / "journal_crash.py", tmp_path], check=True, timeout=60)
    folders = sorted(tmp_path.iterdir())
    assert len(folders) > 70  # moments
    seen = set()
    for folder in folders:
        acknowledged = (folder / "acknowledged").stat().st_size
        lines = (folder / "journal").read_bytes().count(b"\n") if (folder / "journal").exists() else 0
        for number in (1, 2):  # what was mended stays so
            journal = opened(folder / "journal")
            assert journal.lead(0) is not None
            records = journal.load()
            there = int(records.get("count", "0"))
            assert there in {acknowledged, acknowledged + 1}
            assert {key: text for key, text in records.items() if key != "mended"} == records_after(there)
            journal.commit({"mended": str(number)})
            journal.close()
        seen.add((acknowledged, there))
    assert {acknowledged for acknowledged, _ in seen} == set(range(COMMITS + 1))
    assert lines < COMMITS - 3 + 2  # the last one was written anew since it was begun the second time
    assert any(there > acknowledged for acknowledged, there in seen)


CHANGES = st.dictionaries(st.sampled_from("abcd"), st.none() | st.text(max_size=30), max_size=3)
COMMITS_MADE = st.lists(CHANGES, min_size=1, max_size=5)


def lines_of(commits) -> list[bytes]:
    head = Head("job", 7, "a:1").as_json()
    return [write_line(number, content) for number, content in enumerate([head, {"whole": "1"}, *commits])]


def after(commits) -> dict[str, str]:
    records = {"whole": "1"}
    for changes in commits:
        apply_changes(records, changes)
    return records


@given(commits=COMMITS_MADE, data=st.data())
def test_a_tail_that_is_cut_off_anywhere_leaves_whole_commits(commits, data):
    lines = lines_of(commits)
    begun, text = sum(map(len, lines[:2])), b"".join(lines)
    cut = data.draw(st.integers(0, len(text)))
    zeros = data.draw(
        st.sampled_from([0, 0, 1, 4096])
    )  # a file system may have made the file longer than what it wrote
    left = text[:cut] + bytes(zeros)
    if cut < begun and left:
        with pytest.raises(CoordinatorError, match="damaged"):
            read_journal(left)
        return
    ends = [sum(map(len, lines[: 2 + count])) for count in range(len(commits) + 1)]
    whole = max((count for count, end in enumerate(ends) if end <= cut), default=0)
    read = read_journal(left)
    assert read.records == (after(commits[:whole]) if left else {})
    assert read.commits == (whole if left else 0)
    assert read.dropped_bytes == (len(left) - ends[whole] if left else 0)


@given(commits=COMMITS_MADE, data=st.data())
def test_what_was_damaged_is_told_or_is_the_last_commit(commits, data):
    lines = lines_of(commits)
    text = bytearray(b"".join(lines))
    at = data.draw(st.integers(0, len(text) - 1))
    text[at] = data.draw(st.integers(0, 255).filter(lambda byte: byte != text[at]))
    last = len(text) - len(lines[-1])
    try:
        read = read_journal(bytes(text))
    except CoordinatorError:
        return
    assert at >= last
    assert read.records == after(commits[:-1])


@given(commits=st.lists(CHANGES, min_size=2, max_size=5), data=st.data())
def test_a_line_that_is_missing_or_twice_is_told(commits, data):
    lines = lines_of(commits)
    at = data.draw(st.integers(0, len(lines) - 2))
    for changed in (lines[:at] + lines[at + 1 :], lines[: at + 1] + lines[at:]):
        with pytest.raises(CoordinatorError, match="damaged"):
            read_journal(b"".join(changed))


def test_it_is_written_anew_when_it_is_long(tmp_path):
    path = tmp_path / "journal"
    journal = opened(path, compact_bytes=2000)
    journal.lead(0)
    journal.commit({"stays": "x"})
    sizes = []
    for number in range(300):
        journal.commit({"lease": str(number), "other": "y" * 40})
        sizes.append(path.stat().st_size)
    assert max(sizes) < 2300
    assert sum(after < before for before, after in zip(sizes, sizes[1:], strict=False)) > 5
    assert journal.load() == {"stays": "x", "lease": "299", "other": "y" * 40}
    assert sorted(each.name for each in tmp_path.iterdir()) == ["journal"]
    journal.close()
    again = opened(path)
    assert again.lead(0) == 2
    assert again.load() == {"stays": "x", "lease": "299", "other": "y" * 40}
    again.close()


_LEADER = """
import sys
from penstock.coordinator.journal.file import FileJournal
journal = FileJournal(sys.argv[1], job_id="job", address="killed:1")
term = journal.lead(0)
journal.commit({"term": str(term)})
print("leads", flush=True)
sys.stdin.read()
"""


def test_another_process_waits_for_the_lock_and_leads_when_its_holder_is_killed(tmp_path):
    path = tmp_path / "journal"
    leader = subprocess.Popen([sys.executable, "-c", _LEADER, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert leader.stdout.readline() == b"leads\n"
        follower = opened(path)
        assert follower.lead(0) is None
        assert follower.leader() == "killed:1"
        terms: list[int | None] = []
        waiting = threading.Thread(target=lambda: terms.append(follower.lead(30)))
        waiting.start()
        waiting.join(0.2)
        assert waiting.is_alive()
        leader.kill()
        waiting.join(30)
        assert terms == [2]
        assert follower.load() == {"term": "1"}
        follower.close()
    finally:
        leader.kill()
        leader.communicate()


@pytest.mark.parametrize("step", ["write", "fdatasync"])
def test_after_a_disk_that_is_full_or_fails_it_steps_down_and_can_go_on(tmp_path, monkeypatch, step):
    journal = opened(tmp_path / "journal")
    journal.lead(0)
    journal.commit({"a": "1"})

    def fails(descriptor, *data):
        if data:
            real(descriptor, bytes(data[0])[:20])
        raise OSError(28, "No space left on device")

    real = getattr(os, step)
    with monkeypatch.context() as patch:
        patch.setattr(os, step, fails)
        with pytest.raises(JournalUnavailable, match="No space left"):
            journal.commit({"a": "2"})
        assert journal.lost
        with pytest.raises(NotLeader):
            journal.commit({"a": "3"})
    assert journal.lead(0) == 2
    assert journal.load() == {"a": "1" if step == "write" else "2"}
    journal.close()


def test_a_disk_that_is_full_while_it_is_written_anew_loses_nothing(tmp_path, monkeypatch):
    journal = opened(tmp_path / "journal", compact_bytes=500)
    journal.lead(0)
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left on device")))
        for number in range(100):
            journal.commit({"a": f"{number:50}"})
            if journal.lost:
                break
    assert 3 < number < 50
    assert journal.lead(0) == 2
    assert journal.load() == {"a": f"{number:50}"}
    journal.close()


def test_the_file_of_another_job_is_refused(tmp_path):
    first = opened(tmp_path / "journal")
    first.lead(0)
    first.close()
    other = opened(tmp_path / "journal", job_id="other")
    with pytest.raises(CoordinatorError, match="job 'job', not of 'other'"):
        other.lead(0)
    other.close()
    assert opened(tmp_path / "journal").leader() is None


@pytest.mark.parametrize("text", [b"hello\n", b"\0" * 100, b'{"format": 1}\n' * 3])
def test_a_file_that_is_something_else_is_refused_and_left_alone(tmp_path, text):
    path = tmp_path / "journal"
    path.write_bytes(text)
    journal = opened(path)
    with pytest.raises(CoordinatorError, match="damaged, or it isn't one"):
        journal.lead(0)
    assert path.read_bytes() == text
    journal.close()


def test_a_later_format_is_refused(tmp_path):
    path = tmp_path / "journal"
    path.write_bytes(write_line(0, {"format": 2}) + write_line(1, {}))
    with pytest.raises(CoordinatorError, match="format 2"):
        opened(path).lead(0)


def test_a_place_that_cant_be_written_is_told(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(JournalUnavailable, match="can't be taken over"):
        opened(tmp_path / "file" / "journal").lead(0)
    assert opened(tmp_path / "nowhere" / "journal").leader() is None


def test_asking_who_leads_in_vain_ends_no_leader(tmp_path):
    """Another thread than that of commits asks; what it did to the file, it would do in the middle of one."""
    folder, away = tmp_path / "here", tmp_path / "away"
    leader = opened(folder / "journal")
    leader.lead(0)
    folder.rename(away)
    folder.write_bytes(b"")
    with pytest.raises(JournalUnavailable, match="can't be read"):
        leader.leader()
    folder.unlink()
    away.rename(folder)
    assert not leader.lost
    leader.commit({"a": "1"})
    leader.close()


def test_addresses_of_journals(tmp_path):
    for url, name in (
        (f"file:{tmp_path}/a", "a"),
        (f"{tmp_path}/b", "b"),
        (f"file:{tmp_path}", "my%2Fjob.journal"),
        (f"{tmp_path}/new/", "new/my%2Fjob.journal"),
    ):
        journal = open_journal(url, job_id="my/job", address="a:1")
        journal.lead(0)
        assert (tmp_path / name).is_file()
        journal.close()
    for url in ("etcd://127.0.0.1:2379/x", "etcds://a,b:1", "memory:"):
        open_journal(url, job_id="job", address="a:1").close()
    for url in ("", "file:", "redis://x", "etcd://", "etcd:"):
        with pytest.raises(ConfigError, match="journal|endpoints"):
            open_journal(url, job_id="job", address="a:1")
    with pytest.raises(ConfigError, match="job_id"):
        open_journal("memory:", job_id="", address="a:1")


def test_what_is_no_file_keeps_its_place(tmp_path):
    os.mkfifo(tmp_path / "pipe")  # as /dev/null, whose place a journal took
    for url in (f"file:{tmp_path / 'pipe'}", str(tmp_path / "pipe")):
        with pytest.raises(ConfigError, match="memory: to keep nothing"):
            open_journal(url, job_id="job", address="a:1")
    with pytest.raises(ConfigError, match="folder"):
        opened(tmp_path)
    assert (tmp_path / "pipe").is_fifo()


def test_a_link_leads_to_the_one_file_that_it_means(tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "disk" / "journal")
    through = opened(tmp_path / "link")
    assert through.lead(0) is not None
    through.commit({"by": "link"})
    assert (tmp_path / "link").is_symlink()
    other = opened(tmp_path / "disk" / "journal", "b:1")
    assert other.lead(0) is None and other.leader() == "a:1"
    through.close()
    assert other.lead(0) is not None
    assert other.load() == {"by": "link"}
    other.close()


def test_a_commit_that_is_cut_off_is_told_of_once_however_often_somebody_tries_to_lead(tmp_path, caplog):
    journal = opened(tmp_path / "journal")
    assert journal.lead(0) is not None
    journal.commit({"key": "kept"})
    journal.close()
    with (tmp_path / "journal").open("ab") as file:
        file.write(b"cut off")
    (tmp_path / "journal.new").mkdir()  # as a disk that is full: no new file can be begun
    again = opened(tmp_path / "journal")
    for _ in range(3):
        with pytest.raises(JournalUnavailable, match="can't be taken over"):
            again.lead(0)
    again.close()
    assert [record.getMessage().count("dropped 7 bytes") for record in caplog.records] == [1]
