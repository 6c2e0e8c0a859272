"""Whole runs of mixtures, on paper: any sources, weights, ranks, batches and interruptions, through states as JSON."""

from __future__ import annotations

import json
from collections import Counter

import numpy as np
import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.dataset.joined import join
from penstock.dataset.manifest import Manifest
from penstock.dataset.resolve import Resolved
from penstock.errors import ConfigError
from penstock.loader.course import begin
from penstock.loader.settings import defaults, settle
from penstock.order.mixture import mix
from penstock.order.state import LoaderState, merge_states


def dataset(number: int, count: int, locations: int = 1) -> Resolved:
    column = np.arange(count, dtype=np.int64)
    manifest = Manifest(
        hash=f"{number + 1:x}".ljust(64, "0"),
        version=0,
        row_count=count,
        location_index=(column * locations // max(1, count)).astype(np.uint32),
        offset=column * 10 + number,
        length=column + 1000 * number,
        label_id=column % 3,
        crc32c=column + 7,
        labelled_count=count,
        sized_count=count,
        checked_count=count,
        _locations=pa.array([f"{number}/{at}" for at in range(locations)], pa.large_string()),
    )
    return Resolved(manifest, f"base{number}", manifest.hash)


def joined(counts):
    names = [f"s{at}" for at in range(len(counts))]
    return names, join(names, [dataset(at, count) for at, count in enumerate(counts)], "own")


COUNTS = st.lists(st.integers(1, 30), min_size=1, max_size=5)


class Run:
    """A mixture and where it is; ``step`` lets some ranks take some steps and keeps the state that they save."""

    def __init__(self, counts, **mixed):
        self.names, self.dataset = joined(counts)
        self.mixed, self.state, self.taken = mixed, None, []

    def courses(self, weights, batch, world):
        mixture = mix(self.names, weights, labels="own", **self.mixed)
        return [
            begin(
                self.dataset,
                mixture,
                settle(None, {"batch_size": batch, "rank": rank, "world_size": world, "shuffle": True}, defaults(1)),
                5,
                self.state,
            )
            for rank in range(world)
        ]

    def step(self, weights, batch, world, take) -> None:
        """Rank r takes take[r] of its steps; where the ranks can't share what is left, one does."""
        try:
            courses = self.courses(weights, batch, world)
        except ConfigError:
            courses, take = self.courses(weights, batch, 1), take[:1]
        states = []
        for course, steps in zip(courses, take, strict=False):
            steps = min(steps, course.steps.count)
            for step in range(steps):
                self.taken += course.left.at(np.arange(*course.steps.batch(step))).tolist()
            split = settle(
                None, {"batch_size": batch, "rank": len(states), "world_size": len(courses)}, defaults(1)
            ).split
            states.append(LoaderState(course.epoch, course.begun.done, split, steps).to_dict())
        together = len(set(take[: len(courses)])) == 1
        self.state = json.loads(json.dumps(states[-1] if together else merge_states(states)))

    def finish(self, weights) -> None:
        self.step(weights, 1000, 1, [10**6])


@settings(max_examples=80)
@given(counts=COUNTS, stop=st.sampled_from(["first", "all", 150]), data=st.data())
def test_runs_that_are_interrupted_take_what_one_run_would(counts, stop, data):
    weights = data.draw(st.lists(st.integers(1, 20), min_size=len(counts), max_size=len(counts)))
    mixed = {"length": stop} if isinstance(stop, int) else {"stop": stop}
    whole = Run(counts, **mixed)
    whole.finish(weights)
    run = Run(counts, **mixed)
    for _ in range(data.draw(st.integers(0, 4))):
        world = data.draw(st.integers(1, 4))
        take = st.integers(0, 6)
        together = data.draw(st.booleans())
        steps = [data.draw(take)] * world if together else [data.draw(take) for _ in range(world)]
        run.step(weights, data.draw(st.integers(2, 20)), world, steps)
    run.finish(weights)
    assert Counter(run.taken) == Counter(whole.taken)


@settings(max_examples=80)
@given(counts=COUNTS, data=st.data())
def test_whatever_becomes_of_weights_each_source_is_passed_through_whole(counts, data):
    length = data.draw(st.integers(1, 250))
    run = Run(counts, length=length)
    some_weights = st.lists(st.integers(1, 20), min_size=len(counts), max_size=len(counts))
    weights = data.draw(some_weights)
    for _ in range(data.draw(st.integers(0, 4))):
        world = data.draw(st.integers(1, 3))
        weights = data.draw(st.one_of(st.just(weights), some_weights))
        run.step(weights, data.draw(st.integers(2, 12)), world, [data.draw(st.integers(0, 5))] * world)
    run.finish(data.draw(some_weights))
    assert len(run.taken) == length
    for source in run.dataset.sources:
        own = Counter(sample for sample in run.taken if source.first_id <= sample < source.first_id + source.count)
        passes, rest = divmod(own.total(), source.count)
        seen = Counter(own.values())
        assert (seen[passes + 1] if passes or rest else 0) == rest
        assert not passes or seen[passes] == source.count - rest


def test_the_order_of_a_mixture_is_the_one_that_states_were_saved_in():
    # See test_order.py: whoever changes it raises the version in state.py.
    run = Run([100, 30, 7], seed=3, length=1000)
    (course,) = run.courses([5, 2, 1], 1, 1)
    assert course.whole.at(np.array([0, 1, 2, 3, 500, 998, 999])).tolist() == [84, 104, 99, 135, 50, 6, 136]
    assert json.loads(course.epoch.order.removeprefix("mix ")) == {
        "hashes": ["1000000000000000", "2000000000000000", "3000000000000000"],
        "segments": [{"start": 0, "shares": [5, 2, 1]}],
        "seed": 3,
        "stop": 1000,
        "visits": "random",
    }


@given(counts=COUNTS, labels=st.sampled_from(["own", "none"]), data=st.data())
def test_joined_columns_are_those_of_their_sources_one_after_the_other(counts, labels, data):
    parts = [dataset(at, count, locations=1 + at) for at, count in enumerate(counts)]
    whole = join([f"s{at}" for at in range(len(counts))], parts, labels)
    rows = st.integers(0, sum(counts) - 1)
    asked = np.array(data.draw(st.lists(rows, min_size=1, max_size=40)))
    start = data.draw(rows)
    end = min(start + 3, sum(counts))
    for name in ("offset", "length", "crc32c", "label_id", "location_index"):
        expected = np.concatenate([getattr(part.manifest, name) for part in parts]).astype(np.int64)
        if name == "location_index":
            firsts = np.cumsum([0] + [part.manifest.location_count for part in parts])
            expected += np.repeat(firsts[:-1], counts)
        if name == "label_id" and labels == "none":
            expected[:] = -1
        assert np.array_equal(getattr(whole, name)[asked], expected[asked])
        assert np.array_equal(getattr(whole, name)[start:end], expected[start:end])
    for source, part in enumerate(parts):
        for location in range(part.manifest.location_count):
            index = sum(other.manifest.location_count for other in parts[:source]) + location
            assert whole.location(index) == f"{source}/{location}"
    assert np.array_equal(whole.source_of(asked), np.repeat(np.arange(len(counts)), counts)[asked])
