"""Checkpoints of a job: what is written is read again, and what is of something else is refused."""

from __future__ import annotations

import json

import pytest

from penstock.coordinator.events import Progress, Register, RequestLease
from penstock.coordinator.rules import apply, begin
from penstock.coordinator.state import Caps, Job, State, Terms
from penstock.coordinator.token import checkpoint_of, read_checkpoint
from penstock.errors import ResumeError

JOB = Job("ab" * 32, samples=100, block_samples=10, shuffle=True, seed=4, epoch=2, epochs=3)


def after(*events) -> State:
    state = begin(JOB, Terms()).state
    for event in (Register("j", "n", Caps()), *events):
        state = apply(state, event, 0.0).state
    return state


@pytest.fixture
def token():
    lease = next(iter(after(RequestLease("j", "n", 1)).leases.values()))
    return checkpoint_of(after(RequestLease("j", "n", 1), Progress("j", "n", "lease-0", lease.start + 3)))


def test_what_is_done_is_up_to_the_cursor(token):
    ((start, end),) = token["done"]
    assert end - start == 3
    assert token["epoch"] == 2


def test_it_is_read_as_it_was_written(token):
    for form in (token, json.dumps(token), json.loads(json.dumps(token))):
        restore = read_checkpoint(form, JOB)
        assert restore.epoch == 2
        assert restore.done == tuple(map(tuple, token["done"]))
    outcome = apply(begin(JOB, Terms()).state, restore, 0.0)
    assert checkpoint_of(outcome.state) == token


def test_a_finished_job_has_all_done():
    state = begin(Job("h", samples=5, block_samples=5), Terms()).state
    for event in (Register("j", "n", Caps()), RequestLease("j", "n", 1), Progress("j", "n", "lease-0", 5)):
        state = apply(state, event, 0.0).state
    assert checkpoint_of(state)["done"] == [[0, 5]]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"format": 2}, "no checkpoint"),
        ({"manifest_hash": "cd" * 32}, "manifest_hash"),
        ({"samples": 101}, "samples 101, this job of 100"),
        ({"shuffle": False}, "another order"),
        ({"shuffle": 1}, "shuffle 1"),
        ({"seed": 5}, "seed 5"),
        ({"seed": None}, "seed None"),
        ({"epoch": 1}, "epoch 1"),
        ({"epoch": 5}, "epoch 5"),
        ({"epoch": "2"}, "epoch '2'"),
        ({"done": None}, "ascending"),
        ({"done": [[0, 101]]}, "ascending"),
        ({"done": [[-1, 1]]}, "ascending"),
        ({"done": [[5, 5]]}, "ascending"),
        ({"done": [[5, 9], [7, 11]]}, "ascending"),
        ({"done": [[0, 1], [1, 2]]}, "ascending"),
        ({"done": [[0.0, 1.0]]}, "ascending"),
        ({"done": [[1, 2, 3]]}, "ascending"),
    ],
)
def test_what_does_not_fit_is_refused_with_the_reason(token, change, reason):
    with pytest.raises(ResumeError, match=reason):
        read_checkpoint({**token, **change}, JOB)


@pytest.mark.parametrize("state", [{"version": 2, "epoch": {}}, {"epoch": 1, "batches": 2, "loader": None}])
def test_the_state_of_a_loader_by_itself_is_called_that(state):
    with pytest.raises(ResumeError, match="state of a loader by itself"):
        read_checkpoint(state, JOB)


@pytest.mark.parametrize("token", ["", "[]", "{", "null", "7", [], "{}", "x", "[" * 100_000])
def test_what_is_no_token(token):
    with pytest.raises(ResumeError):
        read_checkpoint(token, JOB)
