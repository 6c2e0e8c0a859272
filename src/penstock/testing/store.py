"""What every store promises, as tests that anyone can run against a store of their own.

class TestMyStore(StoreContract):
    @pytest.fixture
    def store(self):
        return MyStore(...)          # empty, and this test's own
"""

# ruff: noqa: D102 - the name of a test says what it checks

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import TypeVar

import pytest

from penstock.errors import ClosedError, ConfigError, ObjectNotFound, PreconditionFailed, SampleChanged
from penstock.store.base import Store

__all__ = ["StoreContract", "collect", "in_threads", "pattern"]

T = TypeVar("T")
R = TypeVar("R")

_MIB = 1 << 20
_WAIT_S = 60.0


def collect(store: Store, key: str, start: int, end: int) -> bytes:
    """All that ``stream`` gives, each piece copied while it is valid."""
    return b"".join(bytes(piece) for piece in store.stream(key, start, end))


def pattern(size_bytes: int) -> bytes:
    """Bytes that differ from place to place, so that a shifted or repeated piece shows."""
    block = b"".join(index.to_bytes(4, "little") for index in range(4096))
    rounds = -(-size_bytes // len(block))
    return b"".join(bytes([turn % 251]) + block[1:] for turn in range(rounds))[:size_bytes]


class StoreContract:
    """Subclass it and give a fixture ``store``: an empty store that no other test uses."""

    def test_a_put_object_reads_back(self, store: Store) -> None:
        store.put("a/b.bin", b"bytes")
        assert store.read("a/b.bin") == b"bytes"
        assert store.size("a/b.bin") == 5

    def test_put_takes_every_kind_of_buffer(self, store: Store) -> None:
        for data in (b"123", bytearray(b"123"), memoryview(b"x123")[1:]):
            store.put("k", data)
            assert store.read("k") == b"123"

    def test_put_replaces_what_was_there(self, store: Store) -> None:
        store.put("k", b"a longer first version")
        store.put("k", b"second")
        assert store.read("k") == b"second"
        assert store.size("k") == 6

    def test_an_empty_object_is_an_object(self, store: Store) -> None:
        store.put("empty", b"")
        assert store.read("empty") == b""
        assert store.size("empty") == 0
        assert collect(store, "empty", 0, 0) == b""
        assert [found.key for found in store.list()] == ["empty"]

    def test_keys_with_unusual_characters(self, store: Store) -> None:
        keys = [
            "sp ace",
            "per%20cent",
            "q?m",
            "h#sh",
            "[b]",
            "é",
            "plus+",
            "am&p",
            "=",
            "~",
            "'",
            "a:b",
            "-",
            ".hidden",
        ]
        for key in keys:
            store.put(f"odd/{key}", key.encode())
        assert {found.key for found in store.list("odd")} == {f"odd/{key}" for key in keys}
        for key in keys:
            assert store.read(f"odd/{key}") == key.encode()

    @pytest.mark.parametrize("key", ["", "/", "/a", "a/", "a//b", ".", "..", "../a", "a/../../b", "a/./b", "a\0b"])
    def test_keys_that_leave_the_root_or_that_no_store_holds_are_refused(self, store: Store, key: str) -> None:
        for use in (store.read, store.size, store.delete, lambda key: store.put(key, b"x")):
            with pytest.raises(ConfigError, match="no key below"):
                use(key)

    def test_what_is_absent_is_not_found(self, store: Store) -> None:
        store.put("there", b"x")
        uses: list[Callable[[], object]] = [
            lambda: store.read("absent"),
            lambda: store.size("absent/below"),
            lambda: collect(store, "absent", 0, 1),
        ]
        for use in uses:
            with pytest.raises(ObjectNotFound) as caught:
                use()
            assert store.locate("absent") in str(caught.value)

    def test_locate_begins_with_the_url(self, store: Store) -> None:
        assert not store.url.endswith("/")
        assert store.locate("a/b.tar") == f"{store.url}/a/b.tar"

    @pytest.mark.parametrize(("start", "end"), [(0, 1), (0, 3 * _MIB + 5), (1, 2), (_MIB - 1, 2 * _MIB + 1), (7, 7)])
    def test_stream_gives_exactly_the_range(self, store: Store, start: int, end: int) -> None:
        data = pattern(3 * _MIB + 5)
        store.put("big", data)
        assert collect(store, "big", start, end) == data[start:end]

    def test_stream_pieces_are_of_bounded_size(self, store: Store) -> None:
        store.put("big", bytes(9 * _MIB))
        sizes = [len(piece) for piece in store.stream("big", 0, 9 * _MIB)]
        assert sum(sizes) == 9 * _MIB
        assert max(sizes) <= 4 * _MIB

    def test_stream_behind_the_end_says_that_the_object_changed(self, store: Store) -> None:
        store.put("k", b"0123456789")
        for start, end in [(0, 11), (9, 11), (10, 11), (50, 60)]:
            with pytest.raises(SampleChanged) as caught:
                collect(store, "k", start, end)
            assert store.locate("k") in str(caught.value)

    def test_stream_of_an_object_of_another_size_says_that_it_changed(self, store: Store) -> None:
        store.put("k", b"0123456789")
        assert b"".join(bytes(piece) for piece in store.stream("k", 2, 5, object_bytes=10)) == b"234"
        for size in (9, 11):
            with pytest.raises(SampleChanged) as caught:
                list(store.stream("k", 2, 5, object_bytes=size))
            assert store.locate("k") in str(caught.value)

    @pytest.mark.parametrize(("start", "end"), [(-1, 2), (3, 2)])
    def test_a_range_that_is_none_is_refused(self, store: Store, start: int, end: int) -> None:
        store.put("k", b"0123456789")
        with pytest.raises(ConfigError, match="no range"):
            collect(store, "k", start, end)

    def test_a_stream_may_be_left_half_read(self, store: Store) -> None:
        store.put("big", bytes(5 * _MIB))
        pieces = store.stream("big", 0, 5 * _MIB)
        next(iter(pieces))
        del pieces
        assert collect(store, "big", 0, 4) == bytes(4)

    def test_streams_run_side_by_side_from_several_threads(self, store: Store) -> None:
        data = pattern(2 * _MIB)
        store.put("big", data)
        ranges = [(index * 1000, index * 1000 + _MIB) for index in range(8)]
        assert in_threads(lambda span: collect(store, "big", *span) == data[slice(*span)], ranges) == [True] * 8

    def test_list_gives_every_object_once_with_its_size(self, store: Store) -> None:
        expected = {f"d{index % 3}/e/f{index}": index for index in range(25)} | {"top": 3}
        for key, size in expected.items():
            store.put(key, bytes(size))
        found = list(store.list())
        assert {each.key: each.size_bytes for each in found} == expected
        assert len(found) == len(expected)

    def test_a_list_prefix_ends_at_a_path_boundary(self, store: Store) -> None:
        for key in ("a/b", "a/c/d", "ab", "b/a/x"):
            store.put(key, b"x")
        assert {each.key for each in store.list("a")} == {"a/b", "a/c/d"}
        assert {each.key for each in store.list("a/")} == {"a/b", "a/c/d"}
        assert {each.key for each in store.list("a/c")} == {"a/c/d"}
        assert list(store.list("none")) == []
        assert list(store.list("ab")) == []

    def test_listing_nothing_gives_nothing(self, store: Store) -> None:
        assert list(store.list()) == []

    def test_put_if_absent_writes_once(self, store: Store) -> None:
        store.put_if_absent("a/k", b"first")
        with pytest.raises(PreconditionFailed) as caught:
            store.put_if_absent("a/k", b"second")
        assert store.locate("a/k") in str(caught.value)
        assert store.read("a/k") == b"first"

    def test_one_of_many_puts_if_absent_wins(self, store: Store) -> None:
        def claim(name: bytes) -> bool:
            try:
                store.put_if_absent("lock", name)
            except PreconditionFailed:
                return False
            return True

        names = [b"%d" % index for index in range(8)]
        won = in_threads(claim, names)
        assert won.count(True) == 1
        assert store.read("lock") == names[won.index(True)]

    def test_a_version_tells_writes_apart(self, store: Store) -> None:
        assert store.version("k") is None
        versions = []
        for data in (b"one", b"two", b"two", b"two", b"one"):
            store.put("k", data)
            versions.append(store.version("k"))
            assert store.version("k") == versions[-1]
        assert None not in versions
        assert len(set(versions)) == len(versions)

    def test_replace_needs_the_version_that_is_there(self, store: Store) -> None:
        store.put("k", b"one")
        first = store.version("k")
        assert first is not None
        store.replace("k", b"two", first)
        assert store.read("k") == b"two"
        with pytest.raises(PreconditionFailed) as caught:
            store.replace("k", b"three", first)
        assert store.locate("k") in str(caught.value)
        assert store.read("k") == b"two"

    def test_replace_after_a_write_of_equal_bytes_or_a_deletion_is_refused(self, store: Store) -> None:
        store.put("k", b"one")
        first = store.version("k")
        assert first is not None
        store.put("k", b"one")
        with pytest.raises(PreconditionFailed):
            store.replace("k", b"two", first)
        second = store.version("k")
        assert second is not None
        store.delete("k")
        with pytest.raises(PreconditionFailed):
            store.replace("k", b"two", second)
        assert store.version("k") is None

    def test_no_concurrent_replace_is_lost(self, store: Store) -> None:
        store.put("counter", b"0")

        def count_up(times: int) -> bool:
            for _ in range(times):
                while True:
                    version = store.version("counter")
                    assert version is not None
                    value = int(store.read("counter"))
                    if store.version("counter") != version:
                        continue
                    try:
                        store.replace("counter", b"%d" % (value + 1), version)
                    except PreconditionFailed:
                        continue
                    break
            return True

        assert in_threads(count_up, [5] * 4) == [True] * 4
        assert store.read("counter") == b"20"

    def test_delete_removes_and_may_be_repeated(self, store: Store) -> None:
        store.put("a/k", b"x")
        store.delete("a/k")
        store.delete("a/k")
        store.delete("never/was")
        assert list(store.list()) == []

    def test_a_writer_shows_nothing_before_its_commit(self, store: Store) -> None:
        writer = store.open_writer("w/k")
        data = pattern(11 * _MIB)
        writer.write(data)
        assert list(store.list()) == []
        assert store.version("w/k") is None
        writer.commit()
        assert [(each.key, each.size_bytes) for each in store.list()] == [("w/k", len(data))]
        assert collect(store, "w/k", 0, len(data)) == data

    def test_a_writer_takes_pieces_of_any_size_and_keeps_none_of_their_memory(self, store: Store) -> None:
        data = pattern(5 * _MIB)
        writer = store.open_writer("k")
        place = 0
        for size in (0, 1, 511, 4096, 3 * _MIB, 7, len(data)):
            piece = bytearray(data[place : place + size])
            writer.write(memoryview(piece))
            place += len(piece)
            piece[:] = bytes(len(piece))
        writer.commit()
        assert collect(store, "k", 0, len(data)) == data

    def test_a_writer_of_nothing_makes_an_empty_object(self, store: Store) -> None:
        store.open_writer("k").commit()
        assert store.read("k") == b""

    def test_a_writer_replaces_what_was_there(self, store: Store) -> None:
        store.put("k", b"old")
        writer = store.open_writer("k")
        writer.write(b"new")
        assert store.read("k") == b"old"
        writer.commit()
        assert store.read("k") == b"new"

    @pytest.mark.parametrize("size_bytes", [0, 100, 20 * _MIB])
    def test_an_aborted_writer_leaves_nothing(self, store: Store, size_bytes: int) -> None:
        writer = store.open_writer("w/k")
        writer.write(bytes(size_bytes))
        writer.abort()
        writer.abort()
        assert list(store.list()) == []
        with pytest.raises(ClosedError):
            writer.write(b"x")
        with pytest.raises(ClosedError):
            writer.commit()

    def test_abort_after_commit_does_nothing(self, store: Store) -> None:
        writer = store.open_writer("k")
        writer.write(b"x")
        writer.commit()
        writer.abort()
        assert store.read("k") == b"x"
        with pytest.raises(ClosedError):
            writer.commit()


def in_threads(work: Callable[[T], R], items: Sequence[T]) -> list[R]:
    """Do ``work`` on all items side by side, one thread for each; a thread that fails or hangs fails the test."""
    results: dict[int, R] = {}
    begin = threading.Barrier(len(items))

    def work_on(index: int) -> None:
        begin.wait(_WAIT_S)
        results[index] = work(items[index])

    threads = [threading.Thread(target=work_on, args=(index,), daemon=True) for index in range(len(items))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(_WAIT_S)
    assert len(results) == len(items), f"{len(items) - len(results)} of {len(items)} threads failed or hang"
    return [results[index] for index in range(len(items))]
