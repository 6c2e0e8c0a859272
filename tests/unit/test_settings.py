"""What a loader was asked for: records, dicts and keywords come to the same settings, and nothing is only stored."""

from __future__ import annotations

import pytest

from penstock.errors import ConfigError
from penstock.loader.options import AsyncPool, LoaderOptions
from penstock.loader.plan import Span
from penstock.loader.reading import Reading
from penstock.loader.settings import defaults, settle
from penstock.order.sampler import DistributedSampler, RandomSampler, SequentialSampler
from penstock.order.split import Split

BARE = defaults(512)


def settled(options=None, **arguments):
    return settle(options, arguments, BARE)


def test_a_record_a_dict_and_keywords_have_equal_effect():
    knobs = {"batch_size": 7, "shuffle": True, "seed": 3, "prefetch": 2, "shard_rank": 1, "shard_world_size": 4}
    record = settled(LoaderOptions(**knobs))
    assert settled(knobs) == record
    keywords = settled(LoaderOptions(), **knobs)
    assert keywords == record
    ours = {"batch_size_samples": 7, "shuffle": True, "seed": 3, "prefetch_batches": 2, "rank": 1, "world_size": 4}
    assert settled(LoaderOptions(), **ours) == record
    assert (record.split, record.prefetch, record.sampler) == (Split(7, 1, 4), 2, RandomSampler())


def test_keywords_win_over_the_record():
    assert settled(LoaderOptions(batch_size=7), batch_size=9).limits.samples == 9
    assert settled({"batch_size": 7}, batch_size_samples=9).limits.samples == 9


def test_without_a_record_the_loader_has_defaults_of_its_own_and_with_one_the_record_has():
    assert settled().limits.samples == 512
    assert settled(LoaderOptions()).limits.samples == 32
    assert settled({}).options == LoaderOptions()
    assert settled(max_inflight_bytes=None, prefetch_batches=None) == settled()


def test_two_names_of_one_thing_are_refused():
    with pytest.raises(ConfigError, match="batch_size_samples and batch_size are two names of one thing"):
        settled(batch_size_samples=3, batch_size=3)


def test_an_argument_that_no_loader_has_is_a_type_error():
    with pytest.raises(TypeError, match="no argument 'batchsize'; did you mean batch_size"):
        settled(batchsize=3)


def test_names_of_torchs_data_loader_are_known_for_what_they_mean_here():
    with pytest.raises(TypeError, match="'collate_fn'; did you mean collate"):
        settled(collate_fn=print)
    with pytest.raises(ConfigError, match="'max_inflight_bytes' is no option.*give it to the loader as a keyword"):
        settled({"max_inflight_bytes": "1GiB"})


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"batch_size_samples": -1}, "batch_size_samples is -1"),
        ({"tune": "yes"}, "tune is 'yes'"),
        ({"enable_transforms": True}, "enable_transforms is True, and there is no transform"),
        ({"multiprocessing_context": "fork"}, "multiprocessing_context is 'fork', and there are no processes"),
        ({"non_blocking": True}, "non_blocking is True and pin_memory False"),
        ({"pin_memory": True}, "loop over penstock.torch.EpochLoader"),
        ({"pin_memory": True, "non_blocking": True}, "loop over penstock.torch.EpochLoader"),
        ({"worker_id": 3, "num_workers_pytorch": 2}, "worker_id is 3"),
        ({"num_workers_pytorch": 2, "target_batch_bytes": 10}, "cut by count"),
        ({"rank": 1, "world_size": 2, "sampler": DistributedSampler(0, 2)}, "give them once"),
        ({"world_size": 1, "sampler": DistributedSampler(0, 2)}, "give them once"),
    ],
)
def test_what_cannot_act_is_refused_with_the_reason(arguments, says):
    with pytest.raises(ConfigError, match=says):
        settled(**arguments)


def test_shuffle_and_samplers():
    assert settled().sampler == SequentialSampler()
    assert settled(shuffle=True).sampler == RandomSampler()
    shared = settled(LoaderOptions().replace(sampler_type=DistributedSampler(2, 8)))
    assert shared.split == Split(32, 2, 8)
    preset = settled(LoaderOptions().distributed_optimized(2, 8).replace(pin_memory=False, non_blocking=False))
    assert preset.split == Split(32, 2, 8)
    other = LoaderOptions(shard_rank=2, shard_world_size=8, sampler_type=RandomSampler())
    assert (settled(other).split, settled(other).sampler) == (Split(32, 2, 8), RandomSampler())


def test_a_generator_seed_is_mixed_into_the_seed():
    plain = settled(seed=1).seed
    mixed = {settled(seed=seed, generator_seed=more).seed for seed in (0, 1) for more in (None, 0, 1)}
    assert plain == 1
    assert len(mixed) == 6
    assert settled(seed=1, generator_seed=5) == settled(seed=1, generator_seed=5)


@pytest.mark.parametrize(
    ("arguments", "prefetch"),
    [
        ({}, None),
        ({"prefetch": 0}, None),
        ({"prefetch_batches": 0}, 1),
        ({"prefetch": 3}, 3),
        ({"loading_mode": "async_pool"}, 4),
        ({"loading_mode": AsyncPool(8, 2), "prefetch": 3}, 3),
    ],
)
def test_how_many_batches_are_built_at_once(arguments, prefetch):
    assert settled(**arguments).prefetch == prefetch


def test_how_objects_are_read():
    parts = [Span(0, 100, 0, 3), Span(200, 230, 3, 4)]
    sequential = Reading.of(LoaderOptions())
    assert sequential.chains(parts) == [parts]
    ranged = Reading.of(LoaderOptions(reader_mode="range", part_size=40, max_inflight_parts=2))
    assert ranged.chains(parts) == [
        [Span(0, 40, 0, 3), Span(80, 100, 0, 3)],
        [Span(40, 80, 0, 3), Span(200, 230, 3, 4)],
    ]
    assert ranged.chains([]) == []
    assert Reading.of(LoaderOptions(num_workers=3)).requests == 3
    assert Reading.of(LoaderOptions(num_workers=3)).threads == 3
    assert Reading.of(LoaderOptions(loading_mode=AsyncPool(32, 2))).requests == 32
    assert Reading.of(LoaderOptions()).threads == 1
    assert Reading.of(BARE) == Reading()


def test_a_record_switches_transforms_on_and_leaves_no_doubt():
    def nothing(sample):
        return sample

    assert settled(transform=nothing).transform is not None
    assert settled(transform=nothing, enable_transforms=False).transform is None
    assert settled(LoaderOptions(enable_transforms=True), transform=nothing).transform is not None
    assert settled(LoaderOptions(), transform=nothing, enable_transforms=False).transform is None
    with pytest.raises(ConfigError, match="the options say enable_transforms=False"):
        settled(LoaderOptions(), transform=nothing)
