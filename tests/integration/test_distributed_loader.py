"""A loader of a shared job, from the node's side: what is handed out, when it counts, how it ends."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
from packing import pack_random

import penstock
from penstock.coordinator.state import Terms
from penstock.distributed import leased
from penstock.errors import (
    BudgetHeld,
    ClosedError,
    ConfigError,
    CoordinatorRefused,
    CoordinatorUnreachable,
    DeadlineExceeded,
    ResumeError,
    TooManyFaults,
)
from small_coordinator import SmallCoordinator
from waiting import wait_until

SAMPLES = 1003


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    return pack_random(tmp_path_factory.mktemp("shared"), SAMPLES) / "packed"


@pytest.fixture
def coordinator(packed, tmp_path):
    made = []

    def start(**job):
        made.append(SmallCoordinator(packed, tmp_path / "root", **job))
        return made[-1]

    yield start
    for each in made:
        each.stop()


@pytest.fixture
def join(tmp_path):
    def make(coordinator, node_id="node", **arguments):
        return penstock.DistributedDataLoader(
            coord_url=coordinator.url,
            job_id="job",
            node_id=node_id,
            **{"batch_size_samples": 16, "manifest_store_root": str(tmp_path / "own")} | arguments,
        )

    return make


def ids(loader, batches: int | None = None) -> list[int]:
    return [sample for batch in itertools.islice(loader, batches) for sample in batch.sample_ids]


def test_nodes_get_everything_once_between_them(coordinator, join):
    shared = coordinator(world_size=3, shuffle=True, seed=7)

    def node(number: int) -> tuple[list[int], int, int]:
        with join(shared, f"node-{number}", want=2) as loader:
            return ids(loader), loader.assigned_rank, loader.world_size

    with ThreadPoolExecutor(3) as nodes:
        results = list(nodes.map(node, range(3)))
    assert sorted(sample for taken, _, _ in results for sample in taken) == list(range(SAMPLES))
    assert [place for _, *place in results] == [[0, 3], [1, 3], [2, 3]]
    assert shared.told("job_drained")
    assert max(shared.most_leases.values()) == 2


def test_bytes_are_those_of_an_ordinary_loader(coordinator, join, packed, tmp_path):
    with penstock.load(str(packed), manifest_store_root=str(tmp_path / "own"), batch_size_samples=SAMPLES) as plain:
        whole = next(plain)
        expected = [bytes(sample) for sample in whole]
    with join(coordinator()) as loader:
        found = {sample: bytes(data) for batch in loader for sample, data in zip(batch.sample_ids, batch, strict=True)}
    assert [found[sample] for sample in range(SAMPLES)] == expected


def test_leases_are_worked_on_side_by_side_under_one_cap(coordinator, join):
    shared = coordinator(block_samples=250)
    with join(shared, want=3, max_inflight_bytes="64KiB", prefetch_batches=4) as loader:
        first = [next(loader).sample_ids[0] // 250 for _ in range(12)]
        assert sorted(set(first)) == [0, 1, 2]
        rest = ids(loader)
        stats = loader.stats()
    assert len(rest) == SAMPLES - 12 * 16
    assert stats["ram_high_water_bytes"] <= 64 << 10


def test_a_batch_counts_when_the_next_one_is_asked_for(coordinator, join):
    shared = coordinator()
    with join(shared, progress_interval_ms=20) as loader:
        next(loader)
        assert (loader.in_hand.start, loader.in_hand.end) == (0, 16)
        reports = shared.calls["ReportProgress"]
        wait_until(lambda: shared.calls["ReportProgress"] > reports + 2)
        assert [lease.cursor for lease in shared.state.leases.values()] == [0]
        next(loader)
        wait_until(lambda: [lease.cursor for lease in shared.state.leases.values()] == [16])
    assert [spare.start for spare in shared.state.spares.values()] == [32]  # close() counts the one in hand


def test_an_error_in_the_block_gives_the_batch_in_hand_to_others(coordinator, join):
    shared = coordinator()
    with pytest.raises(ZeroDivisionError), join(shared) as loader:
        next(loader)
        next(loader)
        raise ZeroDivisionError
    assert [spare.start for spare in shared.state.spares.values()] == [16]


def test_state_dict_counts_the_batch_in_hand(coordinator, join):
    shared = coordinator(seed=3, shuffle=True)
    with join(shared) as loader:
        taken = ids(loader, 5)
        state = json.loads(json.dumps(loader.state_dict()))
        assert sum(end - start for start, end in state["done"]) == len(taken) == 80
        assert state["seed"] == 3
        assert len(taken) + len(ids(loader)) == SAMPLES


@pytest.mark.parametrize(("before", "after"), [(1, 3), (3, 2)])
def test_another_job_goes_on_with_another_number_of_nodes(coordinator, join, before, after):
    first = coordinator(world_size=before, shuffle=True, seed=5)
    taken: list[int] = []
    with ThreadPoolExecutor(3) as pool:
        loaders = list(pool.map(lambda node: join(first, f"a{node}", want=2), range(before)))
        for loader, batches in zip(loaders, (7, 4, 9), strict=False):
            taken += ids(loader, batches)
        states = [loader.state_dict() for loader in loaders]
        for loader in loaders:
            loader.close()
        second = coordinator(world_size=after, shuffle=True, seed=5, block_samples=64)
        nodes = pool.map(lambda node: ids(join(second, f"b{node}", resume=states[-1])), range(after))
        rest = [sample for found in nodes for sample in found]
    assert sorted(taken + rest) == list(range(SAMPLES))


def test_a_state_of_something_else_is_refused(coordinator, join):
    with join(coordinator(seed=1)) as loader:
        state = loader.state_dict()
    with pytest.raises(ResumeError, match="seed 1, this job of 2"):
        join(coordinator(seed=2), resume=state)
    with pytest.raises(ResumeError, match="state of a loader by itself"):
        join(coordinator(seed=1), resume={"version": 3})
    with pytest.raises(ResumeError, match="a dict"):
        join(coordinator(seed=1), resume="state.json")
    with pytest.raises(ResumeError, match="no plain JSON"):
        join(coordinator(seed=1), resume={**state, "samples": np.int64(SAMPLES)})
    with join(coordinator(seed=1)) as loader, pytest.raises(ResumeError, match="has begun"):
        loader.load_state_dict({**state, "done": [[0, 16]]})


def test_a_lost_lease_is_never_handed_out(coordinator, join):
    shared = coordinator(world_size=2, terms=Terms(lease_ttl_s=5.0))
    with ThreadPoolExecutor(2) as pool:
        slow, quick = pool.map(lambda name: join(shared, name, progress_interval_ms=20), ["slow", "quick"])
    with slow, quick:
        mine = ids(slow, 2)  # and the third is ready
        wait_until(lambda: slow.stats()["inflight_bytes"] > 0 and len(shared.state.leases) == 2)
        shared.jump(6)
        assert len(shared.told("range_requeued")) == 2
        # By their own clocks they have them still; a report tells each that it hasn't.
        wait_until(lambda: all(node.stats()["leases_lost_total"] >= 1 for node in (slow, quick)))
        with ThreadPoolExecutor(2) as pool:
            rest = [sample for found in pool.map(ids, [slow, quick]) for sample in found]
    everything = mine + rest
    assert set(everything) == set(range(SAMPLES))
    repeated = len(everything) - SAMPLES
    assert repeated <= 2 * 16, "more came twice than what was in hand"


def waits_in_doubt(shared, loader, let_time_pass) -> None:
    """The coordinator is silent for longer than a lease lasts: nothing is handed out until it confirms the lease."""
    with ThreadPoolExecutor(1) as pool:
        taken = ids(loader, 2)
        shared.silent |= {"ReportProgress", "RequestLease", "Heartbeat"}
        let_time_pass()
        late = pool.submit(next, loader)
        with pytest.raises(TimeoutError):
            late.result(0.3)
        shared.silent.clear()
        taken += late.result(10).sample_ids
        assert taken == list(range(48))


def test_in_doubt_it_waits_until_the_coordinator_confirms(coordinator, join):
    shared = coordinator(terms=Terms(lease_ttl_s=2.0, heartbeat_interval_s=0.2))

    def let_time_pass():
        shared.freeze()
        time.sleep(2.1)  # the lease's time, by the node's clock

    with join(shared, coord_timeout_s=30) as loader:
        waits_in_doubt(shared, loader, let_time_pass)


def test_a_lease_that_lasts_shorter_than_was_said_at_first_is_reported_in_time(coordinator, join):
    shared = coordinator(terms=Terms(lease_ttl_s=60.0))
    with join(shared, progress_interval_ms=60_000) as loader:
        shared.state = replace(shared.state, terms=Terms(lease_ttl_s=0.4))  # a coordinator with other options leads
        next(loader)
        wait_until(lambda: shared.calls["ReportProgress"] >= 3, within_s=5)


def test_a_machine_that_slept_is_in_doubt_when_it_wakes(coordinator, join, machine_sleeps):
    shared = coordinator()
    with join(shared) as loader:
        waits_in_doubt(shared, loader, lambda: machine_sleeps(3600.0))


def test_a_state_that_another_thread_asks_for_forgets_no_batch(coordinator, join, monkeypatch):
    looked, went_on = threading.Event(), threading.Event()

    def delivered(hand):
        if threading.current_thread() is not threading.main_thread():
            looked.set()
            went_on.wait(0.3)  # the loop goes on now, or waits until we are done
        return hand.mine.get("undelivered") is None

    with join(coordinator()) as loader, ThreadPoolExecutor(1) as pool:
        next(loader)
        monkeypatch.setattr(leased._Hand, "delivered", property(delivered))
        state = pool.submit(loader.state_dict)
        assert looked.wait(10)
        second = next(loader)
        went_on.set()
        state.result(10)
        assert loader.in_hand.start == second.sample_ids[0]


@pytest.mark.parametrize("converses", [True, False])
@pytest.mark.parametrize("call", ["RequestLease", "ReportProgress", "RegisterNode", "LeaveNode"])
def test_a_lost_answer_loses_and_repeats_nothing(coordinator, join, call, converses):
    shared = coordinator(converses=converses)
    shared.lose_answers.add(call)
    with join(shared) as loader:
        assert ids(loader) == list(range(SAMPLES))
    assert not shared.lose_answers
    assert not shared.told("range_requeued")
    assert (shared.calls["Converse"] > 0) is converses


def test_a_coordinator_that_comes_back_goes_on(coordinator, join):
    shared = coordinator(terms=Terms(lease_ttl_s=5.0))
    with join(shared) as loader:
        taken = ids(loader, 3)
        shared.stop()
        shared.again()
        taken += ids(loader)
    assert taken == list(range(SAMPLES))


def test_a_coordinator_that_is_gone_for_good_is_an_error_within_the_deadline(coordinator, join):
    shared = coordinator(terms=Terms(lease_ttl_s=0.5))
    loader = join(shared, coord_timeout_s=1.0)
    next(loader)
    shared.stop()
    started = time.monotonic()
    with pytest.raises(CoordinatorUnreachable, match="coord_timeout_s"):
        ids(loader)
    assert time.monotonic() - started < 10
    loader.close()
    shared.again()


def test_a_coordinator_that_was_silent_before_isnt_waited_for_at_the_end(coordinator, join, monkeypatch):
    monkeypatch.setattr("penstock.coordinator.holder._CLOSE_S", 3.0)
    shared = coordinator()
    loader = join(shared)
    next(loader)
    shared.stop()
    wait_until(lambda: loader._holder._silent_for_s() > 2.9)
    started = time.monotonic()
    loader.close()
    assert time.monotonic() - started < 2.5
    shared.again()


def test_nobody_there_to_begin_with(join, coordinator, caplog, monkeypatch):
    shared = coordinator()
    shared.stop()
    with pytest.raises(CoordinatorUnreachable, match="RegisterNode"):
        join(shared, coord_timeout_s=0.3)
    assert caplog.text == ""
    monkeypatch.setattr("penstock.coordinator.client._TELL_S", 0.0)
    with pytest.raises(CoordinatorUnreachable, match="RegisterNode"):
        join(shared, coord_timeout_s=0.3)
    assert caplog.text.count("no coordinator answers at") == 1
    shared.again()


def test_not_all_nodes_come(coordinator, join):
    shared = coordinator(world_size=2)
    with pytest.raises(DeadlineExceeded, match="1 of 2 nodes"):
        join(shared, join_timeout_s=0.3)


def test_a_job_that_has_nothing_for_a_node_is_said(coordinator, join, caplog):
    shared = coordinator()
    with join(shared) as node:
        assert sum(len(batch) for batch in node) == SAMPLES
        assert list(node) == []
    assert "begin another job" in caplog.messages[-1]
    assert "got nothing" not in caplog.text
    with join(shared) as again:
        assert list(again) == []
    assert "job 'job' is done, and node 'node' got nothing of it" in caplog.text


def test_one_node_too_many_is_refused(coordinator, join):
    shared = coordinator()
    with join(shared, "one"), pytest.raises(CoordinatorRefused, match="isn't one of the 1 nodes") as refused:
        join(shared, "two")
    assert refused.value.code == "FAILED_PRECONDITION"


def test_another_process_under_the_same_name_takes_its_place(coordinator, join):
    shared = coordinator(terms=Terms(lease_ttl_s=0.5))
    first = join(shared, progress_interval_ms=20)
    next(first)
    with join(shared) as second:
        with pytest.raises(CoordinatorRefused, match="another process has registered"):
            ids(first)
        assert sorted(ids(second)) == list(range(SAMPLES))
    first.close()


def test_close_twice_and_then_nothing(coordinator, join):
    loader = join(coordinator())
    next(loader)
    loader.close()
    loader.close()
    with pytest.raises(ClosedError):
        next(loader)
    with pytest.raises(ClosedError):
        loader.state_dict()


def test_a_dropped_loader_gives_back_what_it_had(coordinator, join):
    shared = coordinator()
    loader = join(shared, want=2)
    batch = next(loader)
    del loader, batch
    wait_until(lambda: not shared.state.leases)
    assert shared.calls["LeaveNode"] == 1


def test_close_wakes_who_waits_for_others(coordinator, join):
    shared = coordinator(world_size=2, block_samples=SAMPLES)
    with ThreadPoolExecutor(2) as pool:
        one, two = pool.map(lambda name: join(shared, name), ["one", "two"])
        idle = two if not shared.state.queues[1].end else one
        waiting = pool.submit(list, idle)
        wait_until(lambda: idle._holder.waiting)
        idle.close()
        with pytest.raises(ClosedError):
            waiting.result(10)
    one.close()
    two.close()


def test_waiting_for_others_is_no_stall(coordinator, join):
    shared = coordinator(world_size=2, block_samples=SAMPLES)
    with ThreadPoolExecutor(2) as pool:
        busy, idle = pool.map(lambda name: join(shared, name, timeout_seconds=0.5), ["a", "b"])
        rest = pool.submit(ids, idle)
        with pytest.raises(TimeoutError):
            rest.result(1.0)
        assert ids(busy) == list(range(SAMPLES))
        assert rest.result(10) == []
    busy.close()
    idle.close()


def test_several_epochs_come_in_one_loop(coordinator, join):
    shared = coordinator(epochs=2, epoch=3, shuffle=True)
    with join(shared) as loader:
        seen = [(loader.epoch, sample) for batch in loader for sample in batch.sample_ids]
    assert sorted(seen) == [(epoch, sample) for epoch in (3, 4) for sample in range(SAMPLES)]


def test_cutting_by_bytes_and_transforms_are_as_elsewhere(coordinator, join):
    with join(coordinator(), target_batch_bytes=1000, max_batch_bytes=1500) as loader:
        assert ids(loader) == list(range(SAMPLES))
    with join(coordinator(), transform=lambda sample: {"n": np.int64(len(sample.data))}, transform_bytes=64) as loader:
        assert sum(len(batch["n"]) for batch in loader) == SAMPLES


def test_the_manifest_is_fetched_once(coordinator, join):
    shared = coordinator()
    join(shared).close()
    join(shared).close()
    assert shared.calls["GetManifestStream"] == 1


@pytest.mark.parametrize(
    "wrong",
    [
        {"shuffle": True},
        {"start_id": 1, "end_id": 2},
        {"want": 0},
        {"grpc_max_message_bytes": "2GiB"},
        {"node_id": " "},
        {"job_id": ""},
        {"job_id": "\ud800"},
        {"coord_url": "ftp://x:1"},
        {"coord_url": None},
        {"coord_url": b"localhost:1"},
        {"token": "of a file\n"},
        {"coord_url": "http://localhost"},
        {"coord_timeout_s": 0},
        {"tls_key": "key.pem"},
        {"batch_size_samples": 0, "max_queue_batches": 0},
    ],
)
def test_arguments_that_cannot_work(coordinator, wrong):
    arguments = {"coord_url": coordinator().url, "job_id": "job", "node_id": "node"} | wrong
    with pytest.raises(ConfigError):
        penstock.DistributedDataLoader(**arguments)


def test_what_a_shared_job_has_not(coordinator, join):
    with join(coordinator()) as loader:
        with pytest.raises(TypeError):
            len(loader)
        with pytest.raises(ConfigError, match="coordinator"):
            loader.set_epoch(1)
        with pytest.raises(ConfigError):
            loader.shuffle_quality()


def test_poll_says_when_others_have_the_rest(coordinator, join):
    shared = coordinator(world_size=2, block_samples=SAMPLES)
    with ThreadPoolExecutor(2) as pool:
        busy, idle = pool.map(lambda name: join(shared, name, batch_size_samples=500), ["a", "b"])
    with busy, idle:
        assert idle.poll() is None
        assert [len(busy.poll()) for _ in range(3)] == [500, 500, 3]
        assert idle.poll() is None  # the last batch may come here yet
        for loader in (busy, idle):
            with pytest.raises(StopIteration):
                while loader.poll() is None:
                    time.sleep(0.01)


def test_poll_waits_for_what_is_this_nodes_own(coordinator, join):
    with join(coordinator(block_samples=20)) as loader:
        found = [loader.poll() for _ in range(20)]
        assert [batch.sample_ids[0] for batch in found] == [n * 20 + more for n in range(10) for more in (0, 16)]
        found.clear()


def test_poll_raises_what_next_would(coordinator, join, monkeypatch):
    monkeypatch.setattr("penstock.loader.pipeline._HELD_GRACE_S", 0.1)
    shared, go_on = coordinator(), threading.Event()
    with join(shared, max_inflight_bytes="16KiB") as loader:
        first = next(loader)
        kept = [first]
        with pytest.raises(BudgetHeld):
            while len(kept) < 30:
                kept.append(loader.poll())
        del first, kept
    with join(shared, transform=lambda sample: go_on.wait(10), timeout_seconds=1) as loader:
        with pytest.raises(DeadlineExceeded, match="no batch within 1 s"):
            loader.poll()
        go_on.set()


def test_counted_by_hand_a_batch_is_done_when_that_is_said(coordinator, join):
    shared = coordinator()
    with join(shared) as loader:
        loader.count_by_hand()
        assert loader.sample_count == SAMPLES
        next(loader)
        loader.done()
        next(loader)
        assert loader.state_dict()["done"] == [[0, 16]]
    assert [spare.start for spare in shared.state.spares.values()] == [16]


def test_run_job_writes_each_sample_once(coordinator, join, tmp_path):
    shared = coordinator(world_size=2, shuffle=True)

    def node(name: str) -> tuple[str, ...]:
        with join(shared, name, want=2) as loader:
            return penstock.run_job(loader, lambda batch: batch.sample_ids, out=tmp_path / "out").parts

    with ThreadPoolExecutor(2) as pool:
        parts, also = pool.map(node, ["a", "b"])
    assert parts == also
    written = [int(line) for part in parts for line in (tmp_path / "out" / part).read_text().splitlines()]
    assert written == list(range(SAMPLES))


def ids_of(sample):
    if sample.id % 10 == 3:
        raise ValueError
    return sample.id


@pytest.mark.parametrize(
    ("transform", "work"),
    [
        (ids_of, lambda batch: batch.tolist()),
        (lambda sample: {"id": ids_of(sample)}, lambda batch: batch["id"].tolist()),
        (lambda sample: bytes(ids_of(sample)), lambda batch: np.diff(batch[1]).tolist()),
        (lambda sample: (ids_of(sample), b"x"), lambda batch: batch[0].tolist()),
    ],
)
def test_run_job_takes_a_value_for_each_sample_that_a_transform_left(coordinator, join, tmp_path, transform, work):
    with join(coordinator(), transform=transform, on_error="skip", max_errors=SAMPLES) as loader:
        parts = penstock.run_job(loader, work, out=tmp_path / "out").parts
    written = [int(line) for part in parts for line in (tmp_path / "out" / part).read_text().splitlines()]
    assert written == [number for number in range(SAMPLES) if number % 10 != 3]


FORKED = """
import os, signal, sys, penstock
with penstock.DistributedDataLoader(
    coord_url=sys.argv[1], job_id="job", node_id="node", batch_size_samples=16, manifest_store_root=sys.argv[2]
) as loader:
    next(loader)
    if (child := os.fork()) == 0:
        signal.alarm(10)  # for a child that hangs
        loader.close()
        sys.exit(7)  # by the block's end, and the interpreter's
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    print(sum(len(batch.sample_ids) for batch in loader), loader.stats()["leases_lost_total"])
"""


def test_a_forked_child_leaves_the_job_to_its_parent(coordinator, tmp_path):
    shared = coordinator()
    command = [sys.executable, "-c", FORKED, shared.url, str(tmp_path / "own")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (0, f"7\n{SAMPLES - 16} 0\n"), done.stderr
    assert shared.calls["LeaveNode"] == 1


def test_run_job_refuses_a_loader_that_has_a_batch_which_nobody_can_finish(coordinator, join, tmp_path):
    shared, out = coordinator(), tmp_path / "out"

    def fails(batch):
        raise ZeroDivisionError

    with join(shared) as loader:
        next(loader)
        with pytest.raises(ConfigError, match="1 batches of this loader were taken before"):
            penstock.run_job(loader, list, out=out)
    with join(shared) as loader:
        with pytest.raises(ZeroDivisionError):
            penstock.run_job(loader, fails, out=out)
        raised = loader.in_hand
        with pytest.raises(ConfigError, match=rf"samples {raised.start} to {raised.end - 1}, .* aren't done"):
            penstock.run_job(loader, lambda batch: batch.sample_ids, out=out)  # would wait ten minutes for itself
    with join(shared) as loader:
        assert min(ids(loader)) == raised.start


def test_an_epoch_begins_when_the_last_one_is_done_not_when_it_is_time_to_ask_again(coordinator, join):
    shared = coordinator(block_samples=SAMPLES, epochs=4, terms=Terms(wait_s=20.0))
    with join(shared, want=2, batch_size_samples=SAMPLES) as loader:
        begun = time.monotonic()
        assert len(ids(loader)) == 4 * SAMPLES
        assert time.monotonic() - begun < 20
    assert shared.calls["RequestLease"] <= 3 * 4


def test_several_threads_share_a_loader(coordinator, join):
    shared = coordinator(block_samples=400)
    with join(shared, want=2, prefetch_batches=4) as loader, ThreadPoolExecutor(4) as pool:
        taken = list(pool.map(ids, [loader] * 4))
    assert sorted(sample for some in taken for sample in some) == list(range(SAMPLES))
    assert shared.told("job_drained")


def test_a_batch_with_too_many_faults_is_not_done(coordinator, join):
    def broken(sample):
        raise ValueError(sample)

    shared = coordinator()
    loader = join(shared, transform=broken, transform_bytes=8, on_error="skip", max_errors=20)
    next(loader)
    with pytest.raises(TooManyFaults):
        next(loader)
    loader.close()
    assert [spare.start for spare in shared.state.spares.values()] == [16]
