"""What every journal does, whatever lies under it."""

from __future__ import annotations

import base64
import random
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.coordinator.journal import EtcdJournal, FileJournal, Journal, MemoryJournal, MemoryRecords
from penstock.errors import ClosedError, NotLeader

Open = Callable[..., Journal]

KEYS = st.sampled_from(["job", "node/a", "node/\n", "node/😀/b", "lease/lease-1", "queue/0"]) | st.text(max_size=4)
CHANGES = st.dictionaries(KEYS, st.none() | st.text(max_size=40), max_size=6)


def applied(records: dict[str, str], changes: dict[str, str | None]) -> dict[str, str]:
    return {key: text for key, text in {**records, **changes}.items() if text is not None}


class JournalContract:
    """``open_`` gives journals of the same records; ``depose`` ends a leader behind its back."""

    @pytest.fixture
    def open_(self) -> Iterator[Open]:
        raise NotImplementedError

    @pytest.fixture
    def depose(self) -> Callable[[], None]:
        raise NotImplementedError

    def test_it_is_one(self, open_):
        assert isinstance(open_(), Journal)

    def test_a_new_one_is_empty(self, open_):
        journal = open_()
        assert journal.leader() is None
        assert journal.lost
        assert journal.lead(0) is not None
        assert not journal.lost
        assert journal.load() == {}

    def test_only_the_leader_reads_and_writes(self, open_):
        journal = open_()
        for ask in (journal.load, lambda: journal.commit({"a": "1"})):
            with pytest.raises(NotLeader):
                ask()
        assert journal.lead(5) is not None
        assert journal.load() == {}

    def test_what_is_committed_is_there_now_and_for_the_next_leader(self, open_):
        @settings(max_examples=25)
        @given(commits=st.lists(CHANGES, max_size=5))
        def check(commits):
            with_it, after = open_(), open_()
            with_it.lead(5)
            with_it.commit(dict.fromkeys(with_it.load()))
            records: dict[str, str] = {}
            for changes in commits:
                with_it.commit(changes)
                records = applied(records, changes)
                assert with_it.load() == records
            with_it.close()
            after.lead(5)
            assert after.load() == records
            after.close()

        check()

    def test_what_is_loaded_is_the_callers_own(self, open_):
        journal = open_()
        journal.lead(5)
        journal.commit({"a": "1"})
        journal.load()["a"] = "2"
        assert journal.load() == {"a": "1"}

    @pytest.mark.parametrize(("count", "size"), [(1, 3 << 20), (10_000, 150), (300, 10_000)])
    def test_a_commit_of_any_size(self, open_, count, size):
        journal, after = open_(), open_()
        journal.lead(5)
        journal.commit({"before": "x"})
        noise = random.Random(1).randbytes(count * size).decode("latin-1")  # which can't be packed
        large = {f"lease/lease-{number}": noise[number * size : (number + 1) * size] for number in range(count)}
        journal.commit({"before": None, **large})
        journal.commit({"after": "y"})
        journal.close()
        after.lead(5)
        assert after.load() == {**large, "after": "y"}

    def test_one_leads_the_others_wait(self, open_):
        first, second = open_("first:1"), open_("second:2")
        assert first.lead(5) is not None
        began = time.monotonic()
        assert second.lead(0.3) is None
        assert 0.25 < time.monotonic() - began < 5
        assert second.leader() == first.leader() == "first:1"
        assert second.lost
        assert not first.lost

    def test_the_next_leads_when_the_first_closes(self, open_):
        first, second = open_("first:1"), open_("second:2")
        terms = [first.lead(5)]
        waiting = threading.Thread(target=lambda: terms.append(second.lead(30)))
        waiting.start()
        waiting.join(0.2)
        assert waiting.is_alive()
        first.close()
        waiting.join(30)
        assert terms[1] > terms[0]
        assert second.leader() == "second:2"

    def test_terms_grow(self, open_, depose):
        terms = []
        for number in range(4):
            journal = open_()
            terms.append(journal.lead(5))
            if number == 1:
                journal.commit({"a": "1"})
                terms.append(journal.lead(5))
            depose() if number == 2 else journal.close()
        assert terms == sorted(set(terms))

    def test_who_leads_again_has_everything(self, open_):
        journal = open_()
        journal.lead(5)
        journal.commit({"a": "1"})
        journal.lead(5)
        journal.commit({"b": "2"})
        assert journal.load() == {"a": "1", "b": "2"}

    def test_a_stale_leader_writes_nothing(self, open_, depose):
        stale, new = open_("stale:1"), open_("new:2")
        stale.lead(5)
        stale.commit({"a": "1"})
        depose()
        assert new.lead(5) is not None
        new.commit({"a": "2"})
        for _ in range(2):
            with pytest.raises(NotLeader):
                stale.commit({"a": "3", "b": "3"})
        assert stale.lost
        new.commit({"c": "4"})
        assert new.load() == {"a": "2", "c": "4"}
        new.close()
        assert stale.lead(5) is not None
        assert stale.load() == {"a": "2", "c": "4"}

    def test_a_deposed_leader_is_refused_though_nobody_took_over(self, open_, depose):
        stale, next_ = open_(), open_()
        stale.lead(5)
        stale.commit({"a": "1"})
        depose()
        with pytest.raises(NotLeader):
            stale.commit({"a": "2"})
        with pytest.raises(NotLeader):
            stale.load()
        assert next_.lead(5) is not None
        assert next_.load() == {"a": "1"}

    def test_close_wakes_who_waits(self, open_):
        first, second = open_(), open_()
        first.lead(5)
        ended: list[BaseException] = []

        def wait() -> None:
            try:
                second.lead(None)
            except ClosedError as error:
                ended.append(error)

        waiting = threading.Thread(target=wait)
        waiting.start()
        waiting.join(0.2)
        assert waiting.is_alive()
        second.close()
        waiting.join(10)
        assert len(ended) == 1
        assert first.load() == {}

    def test_a_closed_one_says_so(self, open_):
        journal = open_()
        journal.lead(5)
        journal.close()
        journal.close()
        for ask in (lambda: journal.lead(0), journal.load, lambda: journal.commit({}), journal.leader):
            with pytest.raises(ClosedError):
                ask()
        assert journal.lost

    def test_many_want_to_lead(self, open_):
        """Each adds one to a number, as leader; none is lost."""

        def add() -> None:
            journal = open_()
            terms.append(journal.lead(30))
            journal.commit({"count": str(1 + int(journal.load().get("count", "0")))})
            journal.close()

        terms: list[int | None] = []
        threads = [threading.Thread(target=add) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        last = open_()
        last.lead(5)
        assert last.load() == {"count": "6"}
        assert len(set(terms)) == 6


class TestMemoryJournal(JournalContract):
    @pytest.fixture
    def records(self) -> MemoryRecords:
        return MemoryRecords()

    @pytest.fixture
    def open_(self, records) -> Open:
        return lambda address="a:1": MemoryJournal(records, address=address)

    @pytest.fixture
    def depose(self, records) -> Callable[[], None]:
        return records.depose


class TestFileJournal(JournalContract):
    @pytest.fixture
    def path(self, tmp_path) -> Path:
        return tmp_path / "new folder" / "job.journal"

    @pytest.fixture
    def open_(self, path) -> Iterator[Open]:
        opened: list[Journal] = []

        def open_(address: str = "a:1") -> Journal:
            opened.append(FileJournal(path, job_id="job", address=address))
            return opened[-1]

        yield open_
        for journal in opened:
            journal.close()

    @pytest.fixture
    def depose(self, path) -> Callable[[], None]:
        """A copy takes the file's place, as after a restored backup."""

        def depose() -> None:
            copy = path.with_name("copy")
            copy.write_bytes(path.read_bytes())
            copy.rename(path)

        return depose


class TestFileJournalThatIsOftenWrittenAnew(TestFileJournal):
    @pytest.fixture
    def open_(self, path) -> Iterator[Open]:
        opened: list[Journal] = []

        def open_(address: str = "a:1") -> Journal:
            opened.append(FileJournal(path, job_id="job", address=address, compact_bytes=1))
            return opened[-1]

        yield open_
        for journal in opened:
            journal.close()


class TestEtcdJournal(JournalContract):
    compact_bytes = 4 << 20

    @pytest.fixture
    def open_(self, etcd_server, etcd_namespace) -> Iterator[Open]:
        opened: list[Journal] = []

        def open_(address: str = "a:1") -> Journal:
            journal = EtcdJournal(
                etcd_server.endpoint,
                job_id="job",
                address=address,
                prefix=etcd_namespace,
                compact_bytes=self.compact_bytes,
            )
            opened.append(journal)
            return journal

        yield open_
        for journal in opened:
            journal.close()

    @pytest.fixture
    def depose(self, etcd_server, etcd_namespace) -> Callable[[], None]:
        """The leader's key goes, as when its lease has ended."""
        key = base64.b64encode(f"{etcd_namespace}job/leader".encode()).decode()

        def depose() -> None:
            assert etcd_server.call("/v3/kv/deleterange", key=key)["deleted"] == "1"

        return depose


class TestEtcdJournalThatIsOftenWrittenAnew(TestEtcdJournal):
    compact_bytes = 0

    @pytest.fixture(autouse=True)
    def _always(self, monkeypatch):
        monkeypatch.setattr("penstock.coordinator.journal.etcd._COMPACT_TIMES", 0)
