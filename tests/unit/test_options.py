"""LoaderOptions: names, defaults, least values, presets, and the way through a dict."""

from __future__ import annotations

import dataclasses
import json

import pytest

from penstock.errors import ConfigError
from penstock.loader.options import AsyncPool, LoaderOptions
from penstock.order.sampler import (
    BlockSampler,
    DistributedSampler,
    RandomSampler,
    SequentialSampler,
    WeightedSampler,
)

DEFAULTS = {
    "batch_size": 32,
    "drop_last": False,
    "shuffle": False,
    "seed": 0,
    "num_workers": 0,
    "prefetch": 0,
    "auto_tune": False,
    "loading_mode": "sequential",
    "reader_mode": "sequential",
    "part_size": 8 << 20,
    "max_inflight_parts": 4,
    "shard_rank": 0,
    "shard_world_size": 1,
    "worker_id": 0,
    "num_workers_pytorch": 1,
    "pin_memory": False,
    "persistent_workers": False,
    "timeout_seconds": None,
    "multiprocessing_context": "spawn",
    "sampler_type": {"kind": "sequential"},
    "memory_format": "auto",
    "non_blocking": False,
    "generator_seed": None,
    "enable_transforms": False,
    "collate_buffer_size": 1024,
}


def changed(options: LoaderOptions, than: LoaderOptions | None = None) -> dict:
    before = (than or LoaderOptions()).to_dict()
    return {name: value for name, value in options.to_dict().items() if value != before[name]}


def test_every_default():
    assert LoaderOptions().to_dict() == DEFAULTS


@pytest.mark.parametrize(
    ("given", "becomes"),
    [
        ({"batch_size": 0}, {"batch_size": 1}),
        ({"collate_buffer_size": 1}, {"collate_buffer_size": 64}),
        ({"shard_world_size": 0}, {"shard_world_size": 1}),
        ({"num_workers_pytorch": 0}, {"num_workers_pytorch": 1}),
        ({"part_size": 0, "max_inflight_parts": 0}, {"part_size": 1, "max_inflight_parts": 1}),
        ({"part_size": "1MiB"}, {"part_size": 1 << 20}),
        ({"memory_format": "NHWC"}, {"memory_format": "channels_last"}),
        ({"reader_mode": "Range"}, {"reader_mode": "range"}),
        ({"timeout_seconds": 3}, {"timeout_seconds": 3.0}),
        ({"loading_mode": "async_pool"}, {"loading_mode": {"pool_size": 64, "readahead_batches": 4}}),
        ({"sampler_type": "random"}, {"sampler_type": {"kind": "random", "replacement": False}}),
    ],
)
def test_values_are_brought_into_one_form(given, becomes):
    assert {name: LoaderOptions(**given).to_dict()[name] for name in becomes} == becomes


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"batch_size": -1}, "batch_size is -1"),
        ({"batch_size": 2.5}, "batch_size is 2.5"),
        ({"shuffle": "false"}, "shuffle is 'false'; give True or False"),
        ({"shuffle": 1}, "shuffle is 1"),
        ({"timeout_seconds": 0}, "timeout_seconds is 0"),
        ({"timeout_seconds": float("nan")}, "timeout_seconds is nan"),
        ({"reader_mode": "random"}, "choose one of sequential, range"),
        ({"multiprocessing_context": "thread"}, "spawn, fork, forkserver"),
        ({"memory_format": 3}, "memory_format is 3"),
        ({"loading_mode": {"pool": 3}}, "pool_size and readahead_batches"),
        ({"loading_mode": {"pool_size": 257}}, "pool_size is 257"),
        ({"sampler_type": "biased"}, "sampler is 'biased'"),
        ({"sampler_type": {"kind": "random", "weights": [1]}}, "'random' takes replacement"),
        ({"sampler_type": {"kind": "weighted"}}, "'weighted' takes weights"),
        ({"part_size": "8 cats"}, "part_size is '8 cats'"),
        ({"generator_seed": "x"}, "generator_seed is 'x'"),
    ],
)
def test_what_cannot_be_is_refused_by_name(given, says):
    with pytest.raises(ConfigError, match=says):
        LoaderOptions(**given)


def test_a_name_that_is_no_option_is_refused_with_the_nearest():
    with pytest.raises(ConfigError, match="'batchsize' is no option of a loader; did you mean batch_size"):
        LoaderOptions.from_dict({"batchsize": 3})
    with pytest.raises(ConfigError, match="there are batch_size, drop_last"):
        LoaderOptions().replace(zzz=3)
    with pytest.raises(ConfigError, match="give LoaderOptions, or a dict"):
        LoaderOptions.from_dict([1])


@pytest.mark.parametrize("weights", [[], [0, 0], [1, -1], [float("nan")], ["x"], 3])
def test_weights_that_cannot_be_are_refused(weights):
    with pytest.raises(ConfigError, match="weights"):
        WeightedSampler(weights)


def test_presets_write_their_fields_and_no_other():
    base = LoaderOptions(batch_size=7, shuffle=True, num_workers=3, auto_tune=True, multiprocessing_context="fork")
    gpu = {
        "pin_memory": True,
        "persistent_workers": True,
        "non_blocking": True,
        "memory_format": "channels_first",
        "multiprocessing_context": "spawn",
    }
    assert changed(base.gpu_optimized(), base) == gpu
    assert changed(base.distributed_optimized(2, 8), base) == {
        **gpu,
        "sampler_type": {"kind": "distributed", "rank": 2, "world_size": 8},
        "shard_rank": 2,
        "shard_world_size": 8,
    }
    kept = base.replace(persistent_workers=True)
    assert changed(kept.debug_mode(), kept) == {
        "num_workers": 0,
        "persistent_workers": False,
        "timeout_seconds": 10.0,
        "auto_tune": False,
    }
    assert base.gpu_optimized().replace(pin_memory=False).pin_memory is False
    assert base.replace(pin_memory=False).gpu_optimized().pin_memory is True


def test_options_do_not_change():
    options = LoaderOptions()
    options.replace(batch_size=64)
    assert options == LoaderOptions()
    with pytest.raises(dataclasses.FrozenInstanceError):
        options.batch_size = 3


@pytest.mark.parametrize(
    "sampler",
    [
        SequentialSampler(),
        RandomSampler(replacement=True),
        WeightedSampler([1, 2.5]),
        DistributedSampler(1, 4),
        BlockSampler("1MiB", "20MiB"),
    ],
)
@pytest.mark.parametrize("mode", ["sequential", AsyncPool(8, 2)])
def test_options_go_through_json_unchanged(sampler, mode):
    options = LoaderOptions(sampler_type=sampler, loading_mode=mode, timeout_seconds=1.5, generator_seed=4)
    assert LoaderOptions.from_dict(json.loads(json.dumps(options.to_dict()))) == options
