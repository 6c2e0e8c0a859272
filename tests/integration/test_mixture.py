"""Mixtures of real packed datasets: bytes and images under one cap, ranks, going on, and other weights from there."""

from __future__ import annotations

import io
import json
from collections import Counter

import numpy as np
import pytest
from packing import make_tree

import penstock
from penstock.cli.main import main
from penstock.errors import ConfigError, ResumeError

COUNTS = {"web": 60, "books": 25, "code": 12}


def text_of(name: str, number: int) -> bytes:
    return f"{name} {number:04d} ".encode() * (1 + number % 40)


@pytest.fixture(scope="module")
def links(tmp_path_factory):
    root = tmp_path_factory.mktemp("mixture")
    for name, count in COUNTS.items():
        make_tree(root / f"{name}-in", {f"{at:04d}.txt": text_of(name, at) for at in range(count)})
        penstock.pack_dir(root / f"{name}-in", out=str(root / name), shard_mb=1, label_mode="none")
    return {name: str(root / name) for name in COUNTS}


@pytest.fixture
def load(links, tmp_path):
    loaders = []

    def open_loader(weights=None, *, mixed=None, **arguments):
        mixture = penstock.mix(links, weights, **{"seed": 3, **(mixed or {})})
        arguments = {"shuffle": True, "seed": 1, "epoch": 2, "batch_size_samples": 8, **arguments}
        loaders.append(penstock.load(mixture, manifest_store_root=str(tmp_path / "store"), **arguments))
        return loaders[-1]

    yield open_loader
    for loader in loaders:
        loader.close()


def samples(loader, batches: int | None = None) -> list[bytes]:
    found = []
    while batches is None or batches > 0:
        batch = next(loader, None)
        if batch is None:
            break
        found += map(bytes, batch)
        batches = None if batches is None else batches - 1
    return found


def names(found: list[bytes]) -> list[str]:
    return [sample.split()[0].decode() for sample in found]


def everything() -> list[bytes]:
    return sorted(text_of(name, at) for name, count in COUNTS.items() for at in range(count))


def through_json(state: dict) -> dict:
    return json.loads(json.dumps(state))


@pytest.mark.parametrize("stop", ["first", "all"])
def test_by_default_an_epoch_has_each_sample_of_each_source_once(load, stop):
    loader = load(mixed={"stop": stop}, prefetch_batches=3)
    found = samples(loader)
    assert sorted(found) == everything()
    assert loader.stats()["source_samples_total"] == COUNTS
    # By size means: at every moment.
    third = Counter(names(found[:32]))
    assert all(abs(third[name] - 32 * count / 97) < 2 for name, count in COUNTS.items())


def test_weights_hold_at_every_prefix_and_small_sources_come_again(load):
    found = samples(load({"web": 2, "books": 1, "code": 1}, mixed={"length": 200}))
    assert len(found) == 200
    for length in range(1, 201):
        counts = Counter(names(found[:length]))
        assert all(abs(counts[name] - length * share) < 1.5 for name, share in (("web", 0.5), ("code", 0.25)))
    code = [sample for sample in found if sample.startswith(b"code")]
    passes = [code[start : start + 12] for start in range(0, 48, 12)]
    assert all(len(set(one)) == 12 for one in passes)
    assert len({tuple(one) for one in passes}) == 4  # each in an order of its own


def test_the_first_pass_of_a_source_is_in_the_order_that_it_has_alone(load, links, tmp_path):
    found = [sample for sample in samples(load([1, 1, 1])) if sample.startswith(b"code")]
    with penstock.load(
        links["code"], manifest_store_root=str(tmp_path / "store"), shuffle=True, seed=1, epoch=2
    ) as alone:
        assert found == samples(alone)[: len(found)]


def test_what_is_delivered_depends_on_neither_prefetch_nor_cap(load):
    expected = samples(load([1, 1, 2]))
    assert samples(load([1, 1, 2], prefetch_batches=4, max_inflight_bytes=20_000, batch_size_samples=5)) == expected
    assert samples(load([2, 2, 4])) == expected  # the same proportion
    assert samples(load([1, 1, 2], mixed={"seed": 4})) != expected
    assert samples(load([1, 1, 2], epoch=3)) != expected


def test_batches_cut_by_bytes_are_mixed_as_well(load):
    loader = load([1, 1, 2], target_batch_bytes=2000)
    begun, state = samples(loader, 3), through_json(loader.state_dict())
    assert begun + samples(load([1, 1, 2], target_batch_bytes=2000, resume=state)) == samples(load([1, 1, 2]))


def test_a_loader_says_which_source_a_sample_is_of(load):
    loader = load()
    assert [(source.name, source.first_id, source.count) for source in loader.sources] == [
        ("web", 0, 60),
        ("books", 60, 25),
        ("code", 85, 12),
    ]
    for batch in loader:
        sources = [loader.sources[number].name for number in loader.source_of(batch.sample_ids)]
        assert sources == names([bytes(sample) for sample in batch])


def test_a_loader_without_a_mixture_has_one_source(links, tmp_path):
    with penstock.load(links["code"], manifest_store_root=str(tmp_path / "store")) as loader:
        (source,) = loader.sources
        assert (source.count, source.manifest_hash) == (12, loader.manifest_hash)
        assert loader.source_of([3, 4]).tolist() == [0, 0]
        assert "source_samples_total" not in loader.stats()


def test_set_epoch_begins_the_mixture_anew(load):
    expected = samples(load([3, 1, 1], epoch=7))
    loader = load([3, 1, 1])
    samples(loader, 2)
    loader.set_epoch(7)
    assert samples(loader) == expected


@pytest.mark.s3
def test_sources_may_lie_in_different_places(links, tmp_path, s3_root):
    penstock.pack(links["code"] + "-in", out=f"{s3_root}/code", label_mode="none")
    mixture = penstock.mix({**links, "code": f"{s3_root}/code"}, seed=3)
    with penstock.load(mixture, manifest_store_root=str(tmp_path), prefetch_batches=2, shuffle=True) as loader:
        assert sorted(samples(loader)) == everything()


# Going on


@pytest.mark.parametrize("world", [1, 2, 3])
def test_ranks_take_the_mixture_together_and_go_on_as_any_number_of_them(load, world):
    weights, mixed = [5, 2, 1], {"length": 240}
    expected = samples(load(weights, mixed=mixed))
    taken, state = [], None
    for batch, ranks, steps in ((8, world, 3), (12, 2, 4), (6, 3, None)):
        loaders = [
            load(weights, mixed=mixed, batch_size_samples=batch, rank=rank, world_size=ranks, resume=state)
            for rank in range(ranks)
        ]
        for _ in range(steps or len(loaders[0])):
            for loader in loaders:
                taken += samples(loader, 1)
        state = through_json(loaders[-1].state_dict())
    assert taken == expected
    assert loaders[0].stats()["source_samples_total"] == Counter(names(expected))


def test_states_of_ranks_that_came_differently_far_are_merged(load):
    taken, states = [], []
    for rank, steps in enumerate([4, 2]):
        loader = load([1, 1, 1], rank=rank, world_size=2, batch_size_samples=3)
        taken += samples(loader, steps)
        states.append(loader.state_dict())
    merged = penstock.merge_states(through_json(states))
    rest = samples(load([1, 1, 1], resume=merged))
    assert sorted(taken + rest) == sorted(samples(load([1, 1, 1])))
    with pytest.raises(ResumeError, match="weights of the mixture were changed, .* isn't the beginning"):
        load([1, 1, 2], resume=merged)


def test_weights_may_be_changed_when_going_on(load):
    length = {"length": 300}
    first = load([8, 1, 1], mixed=length)
    begun = samples(first, 10)
    state = through_json(first.state_dict())
    second = load([1, 1, 8], mixed=length, resume=state)
    middle = samples(second, 10)
    state = through_json(second.state_dict())
    rest = samples(load([1, 1, 8], mixed=length, batch_size_samples=50, resume=state))
    assert len(begun + middle + rest) == 300
    assert abs(Counter(names(begun))["web"] - 64) < 2
    assert abs(Counter(names(middle))["code"] - 64) < 2
    for name, count in COUNTS.items():  # each source went on where it was
        own = [sample for sample in begun + middle + rest if sample.startswith(name.encode())]
        for start in range(0, len(own), count):
            assert len(set(own[start : start + count])) == len(own[start : start + count])
    # A loader that was made before takes the state as well, and later epochs have the new weights from their start.
    third = load([1, 1, 8], mixed=length)
    third.load_state_dict(state)
    assert samples(third) == rest
    third.set_epoch(5)
    assert samples(third) == samples(load([1, 1, 8], mixed=length, epoch=5))


def test_after_a_change_of_weights_the_epoch_ends_before_a_sample_is_repeated(load):
    first = load()
    begun = samples(first, 4)
    rest = samples(load([0, 1, 1], resume=through_json(first.state_dict())))
    assert len(set(begun + rest)) == len(begun + rest) < 97
    assert "web" not in names(rest)


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"mixed": {"seed": 4}}, "the seed was 3 and is 4 now"),
        ({"mixed": {"stop": "all"}}, "the stop was 'first' and is 'all' now"),
        ({"mixed": {"length": 50}}, "the stop was 'first' and is 50 now"),
        ({"seed": 2}, "seed was 1 and is 2 now"),
        ({"epoch": 3}, "epoch was 2 and is 3 now"),
        ({"shuffle": False}, "the order within the sources was 'random' and is 'sequential' now"),
    ],
)
def test_nothing_but_weights_may_be_changed(load, changed, says):
    first = load([1, 2, 3])
    samples(first, 2)
    with pytest.raises(ResumeError, match=says):
        load([3, 2, 1], resume=first.state_dict(), **changed)


def test_other_sources_are_refused_by_name(load, links, tmp_path):
    state = load().state_dict()
    store = {"manifest_store_root": str(tmp_path / "store"), "shuffle": True, "seed": 1, "epoch": 2}
    swapped = penstock.mix([links["books"], links["web"], links["code"]], seed=3)
    with pytest.raises(ResumeError, match=r"manifest of source '.*books' was .* manifest of source '.*web' was"):
        penstock.load(swapped, resume=state, **store)
    with pytest.raises(ResumeError, match="number of sources was 3 and is 1 now"):
        penstock.load(penstock.mix([links["web"]], seed=3), resume=state, **store)
    with pytest.raises(ResumeError, match="manifest_hash was"):
        penstock.load(links["web"], resume=state, **store)
    with penstock.load(links["web"], **store) as alone, pytest.raises(ResumeError, match="manifest_hash was"):
        load(resume=alone.state_dict())
    broken = {**state, "epoch": {**state["epoch"], "order": "mix {}"}}
    with pytest.raises(ResumeError, match="no state of a loader"):
        load(resume=broken)


def mixed_with_itself(link, **arguments):
    return penstock.load(penstock.mix({"a": link, "b": link}, [3, 1], stop="all"), **arguments)


def test_verify_resume_takes_a_mixture(links, tmp_path, capsys):
    name = f"{mixed_with_itself.__module__}:{mixed_with_itself.__name__}"
    store = ["--store", str(tmp_path / "store")]
    assert main(["verify-resume", links["books"], "--batch-size", "4", "--loader", name, *store]) == 0
    assert "going on is exact" in capsys.readouterr().out


# What can't be mixed


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"start_id": 0, "end_id": 5}, "start_id and end_id are of one dataset"),
        ({"dev_manifest_path": "table.tsv"}, "dev_manifest_path is of one dataset"),
        ({"sampler": {"kind": "weighted", "weights": [1.0] * 97}}, "give the mixture's sources weights"),
        ({"weights": [1, 0, 1], "mixed": {"stop": "all"}}, "'books' has weight 0 and would never be seen whole"),
        ({"world_size": 200}, "can't be shared"),
    ],
)
def test_what_a_mixture_cannot_do_is_refused(load, arguments, says):
    with pytest.raises(ConfigError, match=says):
        load(**arguments)


# Images


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    image = pytest.importorskip("PIL.Image")
    root = tmp_path_factory.mktemp("pictures")

    def picture(shade: int) -> bytes:
        out = io.BytesIO()
        image.new("RGB", (48, 40), (shade, shade, shade)).save(out, format="PNG")
        return out.getvalue()

    for name, classes, low in (("day", "ab", 0), ("night", "ab", 100), ("other", "xy", 200)):
        files = {f"{label}/{at:02d}.png": picture(low + at) for at in range(20) for label in classes}
        make_tree(root / f"{name}-in", files)
        penstock.pack_dir(root / f"{name}-in", out=str(root / name), label_mode="imagefolder")
    return {name: str(root / name) for name in ("day", "night", "other")}


@pytest.fixture(scope="module")
def gradients(tmp_path_factory):
    """Eight pictures, each with a label of its own, of which no two parts are the same."""
    image = pytest.importorskip("PIL.Image")
    root = tmp_path_factory.mktemp("gradients")
    files = {}
    for label in range(8):
        out = io.BytesIO()
        pixels = np.random.default_rng(label).integers(0, 256, (40, 48, 3), dtype=np.uint8)
        image.fromarray(pixels).save(out, format="PNG")
        files[f"{label}/picture.png"] = out.getvalue()
    make_tree(root / "in", files)
    penstock.pack_dir(root / "in", out=str(root / "packed"), label_mode="imagefolder")
    return str(root / "packed")


def load_images(mixture, store, **arguments):
    pytest.importorskip("torch")
    arguments = {"batch_size_samples": 8, "shuffle": True, "to_float": False, "resize_hw": (40, 48), **arguments}
    return penstock.vision.ImageFolderLoader(mixture, manifest_store_root=str(store), **arguments)


def test_images_of_several_datasets_come_in_their_shares_under_one_cap(pictures, tmp_path):
    mixture = penstock.mix([pictures["day"], pictures["night"]], [3, 1], length=64)
    cap = 3 * 8 * 40 * 48 * 3
    with load_images(mixture, tmp_path, max_inflight_bytes=cap, prefetch_batches=2) as loader:
        assert loader.classes == ["a", "b"]
        shades, labels = [], []
        for images, batch_labels in loader:
            assert images.shape == (len(batch_labels), 3, 40, 48)
            shades += images[:, 0, 0, 0].tolist()
            labels += batch_labels.tolist()
            del images
        assert loader.stats()["ram_high_water_bytes"] <= cap
        assert list(loader.stats()["source_samples_total"].values()) == [48, 16]
    assert sum(shade < 100 for shade in shades) == 48
    assert set(labels) == {0, 1}


def test_an_image_is_cropped_anew_whenever_it_comes_and_the_same_when_going_on(gradients, tmp_path):
    mixture = penstock.mix([gradients], length=30)  # 8 images, each almost four times

    def open_loader(**arguments):
        crop = {"resize_hw": None, "random_resized_crop_hw": (8, 8), "horizontal_flip": 0.5}
        return load_images(mixture, tmp_path, **{**crop, "batch_size_samples": 5, **arguments})

    def shown(loader, batches=None):
        batches = list(loader) if batches is None else [next(loader) for _ in range(batches)]
        rows = [row for images, labels in batches for row in zip(images, labels.tolist(), strict=True)]
        return [(label, image.numpy().tobytes()) for image, label in rows]

    with open_loader() as whole, open_loader(prefetch_batches=2) as first:
        expected = shown(whole)
        begun, state = shown(first, 2), through_json(first.state_dict())
    rest = []
    halves = [open_loader(rank=rank, world_size=2, batch_size_samples=2, resume=state) for rank in range(2)]
    for _ in range(len(halves[0])):
        rest += shown(halves[0], 1) + shown(halves[1], 1)
    for half in halves:
        half.close()
    assert begun + rest == expected
    assert sorted(Counter(label for label, _ in expected).values()) == [3, 3, 4, 4, 4, 4, 4, 4]
    assert len(set(expected)) == 30


def test_labels_must_mean_the_same_or_be_said_not_to(pictures, tmp_path):
    both = [pictures["day"], pictures["other"]]
    with pytest.raises(ConfigError, match=r"have different labels \(2: a, b and 2: x, y\)"):
        load_images(penstock.mix(both), tmp_path)
    with load_images(penstock.mix(both, labels="own"), tmp_path) as loader:
        assert loader.classes is None
        assert sum(len(labels) for _, labels in loader) == 80


def test_datasets_with_and_without_labels_mix_when_labels_are_left_out(pictures, links, tmp_path):
    both = {"text": links["code"], "images": pictures["day"]}
    store = {"manifest_store_root": str(tmp_path), "shuffle": True, "max_inflight_bytes": 60_000}
    for labels in ("same", "own"):
        with pytest.raises(ConfigError, match="those of 'text' have none"):
            penstock.load(penstock.mix(both, labels=labels), **store)
    with penstock.load(penstock.mix(both, labels="none"), batch_size_samples=4, **store) as loader:
        found = [bytes(sample) for batch in loader for sample in batch]
        assert loader.stats()["ram_high_water_bytes"] <= 60_000
    assert sum(sample.startswith(b"\x89PNG") for sample in found) == 40
    assert sum(sample.startswith(b"code") for sample in found) == 12


# Samplers that draw, in a loader


@pytest.mark.parametrize("sampler", [{"kind": "random", "replacement": True}, "weighted"])
def test_draws_go_on_exactly_on_other_ranks(links, tmp_path, sampler):
    weights = np.arange(60) % 4
    if sampler == "weighted":
        sampler = penstock.loader.WeightedSampler(weights)

    def open_loader(**arguments):
        arguments = {"seed": 5, "batch_size_samples": 6, **arguments}
        return penstock.load(links["web"], sampler=sampler, manifest_store_root=str(tmp_path), **arguments)

    with open_loader() as whole, open_loader() as first:
        expected = samples(whole)
        taken = samples(first, 4)
        state = through_json(first.state_dict())
    halves = []
    for rank in range(2):
        with open_loader(rank=rank, world_size=2, batch_size_samples=3, resume=state) as loader:
            halves.append([samples(loader, 1) for _ in range(len(loader))])
    for both in zip(*halves, strict=True):
        taken += both[0] + both[1]
    assert taken == expected
    assert len(expected) == 60 > len(set(expected)) > 20
    if not isinstance(sampler, dict):
        assert not {text_of("web", at) for at in range(60) if weights[at] == 0} & set(expected)


def test_a_state_of_other_weights_is_refused(links, tmp_path):
    store = {"manifest_store_root": str(tmp_path)}
    with penstock.load(links["code"], sampler={"kind": "weighted", "weights": [1] * 12}, **store) as loader:
        state = loader.state_dict()
    with pytest.raises(ResumeError, match="order was 'weighted .* and is 'weighted"):
        penstock.load(links["code"], sampler={"kind": "weighted", "weights": [1] * 11 + [2]}, resume=state, **store)
    with pytest.raises(ConfigError, match="has 3 weights for 12 samples"):
        penstock.load(links["code"], sampler={"kind": "weighted", "weights": [1, 2, 3]}, **store)
