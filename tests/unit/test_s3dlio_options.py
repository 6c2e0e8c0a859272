"""``PyLoaderOptions``: s3dlio's names, values that read as such and are called to set them, and what is refused."""

from __future__ import annotations

import copy
import json
import pickle
from dataclasses import fields

import numpy as np
import pytest

from penstock.compat.s3dlio import PyLoaderOptions
from penstock.compat.s3dlio.options import options_of
from penstock.errors import ConfigError
from penstock.loader import AsyncPool, LoaderOptions, WeightedSampler
from penstock.loader.settings import defaults, settle

FLAGS = ["drop_last", "auto_tune", "pin_memory", "persistent_workers", "non_blocking", "enable_transforms"]
NUMBERS = ["num_workers", "prefetch", "part_size", "max_inflight_parts", "collate_buffer_size"]
EVERY_FIELD = [field.name for field in fields(LoaderOptions)]


def changed(options: PyLoaderOptions, than: PyLoaderOptions | None = None) -> dict:
    before = (than or PyLoaderOptions()).to_dict()
    return {name: value for name, value in options.to_dict().items() if value != before[name]}


@pytest.mark.parametrize("name", EVERY_FIELD)
def test_e2_66_every_default_reads_as_itself(name):
    assert getattr(PyLoaderOptions(), name) == getattr(LoaderOptions(), name)
    assert PyLoaderOptions().to_dict()[name] == LoaderOptions().to_dict()[name]


def test_e2_66_the_constructor_takes_nothing():
    with pytest.raises(TypeError):
        PyLoaderOptions(batch_size=3)


CALLS = [
    (lambda opts: opts.with_batch_size(256), {"batch_size": 256}),
    (lambda opts: opts.drop_last(True), {"drop_last": True}),
    (lambda opts: opts.shuffle(True, 42), {"shuffle": True, "seed": 42}),
    (lambda opts: opts.num_workers(8), {"num_workers": 8}),
    (lambda opts: opts.prefetch(4), {"prefetch": 4}),
    (lambda opts: opts.auto_tune(True), {"auto_tune": True}),
    (lambda opts: opts.part_size(1 << 20), {"part_size": 1 << 20}),
    (lambda opts: opts.max_inflight_parts(2), {"max_inflight_parts": 2}),
    (lambda opts: opts.shard(1, 4), {"shard_rank": 1, "shard_world_size": 4}),
    (lambda opts: opts.worker(1, 4), {"worker_id": 1, "num_workers_pytorch": 4}),
    (lambda opts: opts.pin_memory(True), {"pin_memory": True}),
    (lambda opts: opts.persistent_workers(True), {"persistent_workers": True}),
    (lambda opts: opts.with_timeout(30.0), {"timeout_seconds": 30.0}),
    (lambda opts: opts.use_fork(), {"multiprocessing_context": "fork"}),
    (lambda opts: opts.use_forkserver(), {"multiprocessing_context": "forkserver"}),
    (lambda opts: opts.use_fork().use_spawn(), {}),
    (lambda opts: opts.random_sampling(replacement=True), {"sampler_type": {"kind": "random", "replacement": True}}),
    (lambda opts: opts.weighted_sampling([1, 2]), {"sampler_type": {"kind": "weighted", "weights": [1.0, 2.0]}}),
    (
        lambda opts: opts.distributed_sampling(rank=2, world_size=8),
        {"sampler_type": {"kind": "distributed", "rank": 2, "world_size": 8}},
    ),
    (lambda opts: opts.channels_last(), {"memory_format": "channels_last"}),
    (lambda opts: opts.channels_first(), {"memory_format": "channels_first"}),
    (lambda opts: opts.non_blocking(True), {"non_blocking": True}),
    (lambda opts: opts.with_generator_seed(12345), {"generator_seed": 12345}),
    (lambda opts: opts.enable_transforms(True), {"enable_transforms": True}),
    (lambda opts: opts.collate_buffer_size(2048), {"collate_buffer_size": 2048}),
    (
        lambda opts: opts.replace(reader_mode="range", loading_mode="async_pool"),
        {"reader_mode": "range", "loading_mode": {"pool_size": 64, "readahead_batches": 4}},
    ),
]


@pytest.mark.parametrize(("call", "writes"), CALLS)
def test_e2_67_setters_return_new_options_and_leave_the_old_ones(call, writes):
    before = PyLoaderOptions()
    after = call(before)
    assert changed(after) == writes
    assert after is not before
    assert before == PyLoaderOptions()


def test_e2_67_options_can_not_be_assigned_to():
    for name in ("pin_memory", "num_workers", "batch_size", "anything"):
        with pytest.raises(AttributeError):
            setattr(PyLoaderOptions(), name, 1)


def test_e2_68_least_values():
    assert PyLoaderOptions().with_batch_size(0).batch_size == 1
    assert PyLoaderOptions().collate_buffer_size(1).collate_buffer_size == 64
    assert PyLoaderOptions().distributed_optimized(0, 0).shard_world_size == 1
    assert PyLoaderOptions().distributed_sampling(0, 0).sampler_type.world_size == 1
    small = PyLoaderOptions().part_size(0).max_inflight_parts(0).worker(0, 0)
    assert (small.part_size, small.max_inflight_parts, small.num_workers_pytorch) == (1, 1, 1)


def test_e2_69_the_seed_is_kept_where_shuffling_is_switched_off():
    on = PyLoaderOptions().shuffle(True, 42)
    assert (on.shuffle, on.seed) == (True, 42)
    off = on.shuffle(False, 9)
    assert (off.shuffle, off.seed) == (False, 42)
    with pytest.raises(TypeError):
        on.shuffle(True)


GPU = {
    "pin_memory": True,
    "persistent_workers": True,
    "non_blocking": True,
    "memory_format": "channels_first",
    "multiprocessing_context": "spawn",
}


def test_e2_70_gpu_optimized_writes_its_five_fields():
    base = PyLoaderOptions().with_batch_size(7).num_workers(3).use_fork().shuffle(True, 1)
    assert changed(base.gpu_optimized(), base) == GPU


def test_e2_71_distributed_optimized():
    base = PyLoaderOptions().use_fork()
    assert changed(base.distributed_optimized(2, 8), base) == {
        **GPU,
        "sampler_type": {"kind": "distributed", "rank": 2, "world_size": 8},
        "shard_rank": 2,
        "shard_world_size": 8,
    }


def test_e2_72_distributed_sampling_leaves_the_shard_fields():
    opts = PyLoaderOptions().distributed_sampling(2, 8)
    assert (opts.shard_rank, opts.shard_world_size) == (0, 1)


def test_e2_73_debug_mode_writes_its_four_fields():
    base = PyLoaderOptions().num_workers(4).persistent_workers(True).auto_tune(True).shuffle(True, 3).with_batch_size(9)
    assert changed(base.debug_mode(), base) == {
        "num_workers": 0,
        "persistent_workers": False,
        "timeout_seconds": 10.0,
        "auto_tune": False,
    }


def test_e2_74_later_calls_win():
    assert PyLoaderOptions().gpu_optimized().pin_memory(False).pin_memory == False  # noqa: E712
    assert PyLoaderOptions().pin_memory(False).gpu_optimized().pin_memory == True  # noqa: E712
    opts = PyLoaderOptions().distributed_optimized(2, 8).random_sampling(False)
    assert opts.to_dict()["sampler_type"] == {"kind": "random", "replacement": False}
    assert (opts.shard_rank, opts.shard_world_size) == (2, 8)


def test_e2_75_what_the_basic_upstream_test_reads():
    opts = PyLoaderOptions().with_batch_size(256).drop_last(True).shuffle(True, 42).num_workers(8).prefetch(4)
    opts = opts.auto_tune(False)
    assert (opts.batch_size, opts.seed, opts.shard_rank, opts.shard_world_size) == (256, 42, 0, 1)
    opts = PyLoaderOptions().distributed_optimized(rank=1, world_size=4)
    assert (opts.shard_rank, opts.shard_world_size) == (1, 4)
    assert PyLoaderOptions().gpu_optimized().with_timeout(30.0).timeout_seconds == 30.0


def test_e2_75_what_the_realism_upstream_test_reads():
    gpu = PyLoaderOptions().gpu_optimized()
    assert gpu.pin_memory == True  # noqa: E712
    assert gpu.persistent_workers == True  # noqa: E712
    assert gpu.non_blocking == True  # noqa: E712
    debug = PyLoaderOptions().debug_mode()
    assert debug.num_workers == 0
    assert debug.persistent_workers == False  # noqa: E712
    for rank in range(4):
        opts = PyLoaderOptions().distributed_optimized(rank=rank, world_size=4).with_batch_size(32)
        opts = opts.num_workers(6).with_generator_seed(42 + rank)
        assert (opts.shard_rank, opts.shard_world_size) == (rank, 4)
        assert opts.pin_memory == True  # noqa: E712
    opts = PyLoaderOptions().with_batch_size(64).num_workers(4).prefetch(2).channels_last().enable_transforms(True)
    opts = opts.use_forkserver().collate_buffer_size(512)
    assert f"{opts.batch_size} {opts.num_workers} {opts.prefetch}" == "64 4 2"


@pytest.mark.parametrize("name", FLAGS)
@pytest.mark.parametrize("on", [True, False])
def test_a_flag_reads_as_true_or_false_and_is_called_to_set_it(name, on):
    value = getattr(PyLoaderOptions().replace(**{name: on}), name)
    assert value == on
    assert value != (not on)
    assert bool(value) is on
    assert (not value) is (not on)
    assert hash(value) == hash(on)
    assert (repr(value), str(value), f"{value}", f"{value!s:>6}") == (repr(on), str(on), f"{on}", f"{on!s:>6}")
    assert {on: "found"}[value] == "found"
    assert getattr(value(not on), name) == (not on)
    for copied in (copy.copy(value), copy.deepcopy(value), pickle.loads(pickle.dumps(value))):
        assert copied is on


@pytest.mark.parametrize("name", NUMBERS)
def test_a_number_reads_as_one_and_is_called_to_set_it(name):
    value = getattr(PyLoaderOptions().replace(**{name: 96}), name)
    assert value == 96
    assert (value + 1, 2 * value, value / 2, value // 5, value > 95) == (97, 192, 48.0, 19, True)
    assert (repr(value), str(value), f"{value:05d}", f"{value}") == ("96", "96", "00096", "96")
    assert hash(value) == hash(96)
    assert list(range(100))[value] == 96
    assert json.dumps(value) == "96"
    assert getattr(value(128), name) == 128
    for copied in (copy.deepcopy(value), pickle.loads(pickle.dumps(value))):
        assert type(copied) is int
        assert copied == 96


def test_shuffle_reads_as_a_flag():
    assert PyLoaderOptions().shuffle(True, 1).shuffle == True  # noqa: E712
    assert not PyLoaderOptions().shuffle


def test_values_may_be_passed_on_to_a_setter():
    before = PyLoaderOptions().pin_memory(True).num_workers(5)
    after = PyLoaderOptions().pin_memory(before.pin_memory).num_workers(before.num_workers)
    assert after == before
    assert type(after.to_options().pin_memory) is bool
    assert type(after.to_options().num_workers) is int


@pytest.mark.parametrize("name", [*NUMBERS, "with_batch_size", "with_generator_seed"])
def test_numbers_that_can_not_be_are_refused(name):
    setter = getattr(PyLoaderOptions(), name)
    assert setter(np.int64(70)) == setter(70)
    for outside in (-1, 1 << 64):
        with pytest.raises(OverflowError, match=str(outside)):
            setter(outside)
    for other in (2.0, "2", None, True):
        with pytest.raises(TypeError, match=repr(other)):
            setter(other)


@pytest.mark.parametrize("name", [*FLAGS, "random_sampling"])
def test_flags_that_can_not_be_are_refused(name):
    setter = getattr(PyLoaderOptions(), name)
    assert setter(np.True_) == setter(True)
    for other in (1, "true", None):
        with pytest.raises(TypeError, match="give True or False"):
            setter(other)


def test_pairs_and_times_that_can_not_be_are_refused():
    opts = PyLoaderOptions()
    for call in (opts.distributed_optimized, opts.distributed_sampling, opts.shard, opts.worker):
        with pytest.raises(OverflowError):
            call(-1, 4)
        with pytest.raises(TypeError):
            call(0, "4")
    with pytest.raises(OverflowError):
        opts.shuffle(True, -1)
    with pytest.raises(TypeError):
        opts.shuffle("yes", 1)
    for seconds in ("3", None, True):
        with pytest.raises(TypeError, match="timeout"):
            opts.with_timeout(seconds)
    with pytest.raises(ConfigError, match="timeout_seconds is 0"):
        opts.with_timeout(0)
    with pytest.raises(ConfigError, match="did you mean batch_size"):
        opts.replace(batch_sise=3)


def test_options_are_values():
    opts = PyLoaderOptions().gpu_optimized().with_batch_size(9)
    assert opts == PyLoaderOptions().with_batch_size(9).gpu_optimized()
    assert hash(opts) == hash(PyLoaderOptions().with_batch_size(9).gpu_optimized())
    assert opts != PyLoaderOptions()
    assert opts != opts.to_options()
    assert pickle.loads(pickle.dumps(opts)) == opts
    assert (
        repr(PyLoaderOptions().with_batch_size(9).pin_memory(True)) == "PyLoaderOptions(batch_size=9, pin_memory=True)"
    )
    assert PyLoaderOptions.from_options(json.loads(json.dumps(opts.to_dict()))) == opts
    assert PyLoaderOptions.from_options(opts.to_options()) == opts


def test_e2_76_a_record_of_s3dlio_settles_as_the_same_dict_does():
    knobs = {"batch_size": 7, "shuffle": True, "seed": 3, "prefetch": 2, "drop_last": True, "shard_rank": 1}
    opts = PyLoaderOptions().with_batch_size(7).shuffle(True, 3).prefetch(2).drop_last(True).shard(1, 4)
    assert settle(opts, {}, defaults(512)) == settle({**knobs, "shard_world_size": 4}, {}, defaults(512))
    assert settle(opts, {"batch_size": 9}, defaults(512)).limits.samples == 9


def test_e2_81_an_unknown_option_or_a_wrong_type_is_refused():
    with pytest.raises(ConfigError, match="'batchsize' is no option of a loader; did you mean batch_size"):
        options_of({"batchsize": 3})
    for wrong in ({"batch_size": "3"}, {"shuffle": 1}, {"reader_mode": "backwards"}, {"part_size": "8 cats"}):
        with pytest.raises(ConfigError, match=next(iter(wrong))):
            options_of(wrong)
    with pytest.raises(TypeError, match="give PyLoaderOptions, or a dict"):
        options_of([("batch_size", 3)])
    assert options_of({"reader_mode": "RANGE", "part_size": 0}).reader_mode == "range"
    assert options_of(None, batch_size=1).batch_size == 1
    assert options_of({}, batch_size=1).batch_size == 1
    assert options_of({"batch_size": 32}, batch_size=1).batch_size == 32
    assert options_of(PyLoaderOptions(), batch_size=1).batch_size == 32


def test_the_python_only_fields_read_as_they_are():
    opts = PyLoaderOptions().replace(loading_mode=AsyncPool(8, 2), sampler_type=WeightedSampler((1.0, 2.0)))
    assert opts.loading_mode == AsyncPool(8, 2)
    assert opts.sampler_type == WeightedSampler((1.0, 2.0))
    assert PyLoaderOptions().use_fork().multiprocessing_context == "fork"


def test_setters_are_documented_on_the_class():
    assert "fills no batch" in PyLoaderOptions.drop_last.__doc__
