"""The layout against a naive one that follows the rule word by word."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from penstock.packing.plan import FilePiece, segments

SIZES = st.lists(st.one_of(st.integers(1, 600), st.integers(1, 20_000)), max_size=40)


def naive(sizes: list[int], shard_bytes: int) -> list[tuple[int, int]]:
    """(shard, position of the header) of each sample."""
    places, shard, used = [], 0, 0
    for size in sizes:
        needed = 512 + size + (512 - size % 512) % 512
        if used > 0 and used + needed > shard_bytes:
            shard, used = shard + 1, 0
        places.append((shard, used))
        used += needed
    return places


@given(SIZES, st.integers(1, 40_000), st.integers(1025, 9000))
def test_e2_24_every_sample_lies_where_the_rule_puts_it(sizes, shard_bytes, segment_bytes):
    entries = [(b"%d" % index, size) for index, size in enumerate(sizes)]
    found, covered = {}, {}
    shard, position = 0, 0
    for segment in segments(entries, shard_bytes=shard_bytes, segment_bytes=segment_bytes):
        assert 0 < segment.stream_bytes <= segment_bytes
        if segment.shard != shard:
            assert segment.shard == shard + 1, "no shard is empty"
            shard, position = segment.shard, 0
        if isinstance(segment, FilePiece):
            covered.setdefault(segment.sample_id, []).append((segment.begin, segment.end))
            assert (segment.path, segment.size) == entries[segment.sample_id]
            if segment.is_first:
                assert segment.start == position
                found[segment.sample_id] = (segment.shard, segment.start)
        else:
            assert segment.start == position
            for index, offset in enumerate(segment.header_offsets.tolist()):
                sample_id = segment.first_id + index
                assert (segment.paths[index], segment.sizes[index]) == entries[sample_id]
                found[sample_id] = (segment.shard, segment.start + offset)
        position += segment.stream_bytes
    assert [found[sample_id] for sample_id in range(len(sizes))] == naive(sizes, shard_bytes)
    for sample_id, ranges in covered.items():
        assert ranges[0][0] == 0
        assert ranges[-1][1] == sizes[sample_id]
        assert all(left[1] == right[0] for left, right in pairwise(ranges))


def test_e2_24_the_end_marker_does_not_count_and_a_full_shard_is_full():
    sizes = [512] * 4  # 1024 bytes each with its header
    exact = list(segments([(b"x", size) for size in sizes], shard_bytes=2048, segment_bytes=1 << 20))
    assert [(segment.shard, segment.stream_bytes) for segment in exact] == [(0, 2048), (1, 2048)]
    short = list(segments([(b"x", size) for size in sizes], shard_bytes=2047, segment_bytes=1 << 20))
    assert [segment.shard for segment in short] == [0, 1, 2, 3]
