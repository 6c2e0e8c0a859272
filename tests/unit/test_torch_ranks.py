"""Which rank this process is: explicit arguments, then torch.distributed, then the environment."""

from __future__ import annotations

import pytest

pytest.importorskip("torch")
import torch.distributed

from penstock.errors import ConfigError
from penstock.torch import Place, place
from penstock.torch.ranks import settle_place

NOTHING = (None, None)


@pytest.fixture
def environment(monkeypatch):
    def set_variables(**variables: str) -> None:
        for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
            monkeypatch.delenv(name, raising=False)
        for name, value in variables.items():
            monkeypatch.setenv(name, value)

    set_variables()
    return set_variables


@pytest.mark.parametrize(
    ("given", "group", "launched", "expected"),
    [
        (NOTHING, None, NOTHING, Place(0, 1)),
        (NOTHING, None, (3, 8), Place(3, 8)),
        (NOTHING, Place(3, 8), NOTHING, Place(3, 8)),
        (NOTHING, Place(3, 8), (3, 8), Place(3, 8)),
        ((1, 2), Place(3, 8), (4, 5), Place(1, 2)),  # explicit wins, whatever the others say
    ],
)
def test_the_first_that_says_something_counts(given, group, launched, expected):
    assert settle_place(given, group, launched) == expected


@pytest.mark.parametrize(
    ("given", "group", "launched", "says"),
    [
        ((1, None), None, NOTHING, "rank= is given without world_size="),
        ((None, 2), None, NOTHING, "world_size= is given without rank="),
        (NOTHING, None, (1, None), "RANK is given without WORLD_SIZE"),
        (NOTHING, None, (None, 4), "WORLD_SIZE is given without RANK"),
        (NOTHING, Place(0, 1), (1, 4), "rank 0 of 1, the environment's RANK and WORLD_SIZE say rank 1 of 4"),
        ((2, 2), None, NOTHING, "from 0 to 1"),
        ((0, 0), None, NOTHING, "world_size is 0"),
    ],
)
def test_contradictions_are_refused(given, group, launched, says):
    with pytest.raises(ConfigError, match=says):
        settle_place(given, group, launched)


def test_the_environment_is_read(environment):
    assert place() == Place(0, 1)
    environment(RANK="2", WORLD_SIZE="4")
    assert place() == Place(2, 4)
    assert place(0, 1) == Place(0, 1)
    environment(RANK="two", WORLD_SIZE="4")
    with pytest.raises(ConfigError, match="RANK='two'"):
        place()


def test_an_initialised_process_group_is_asked(environment, tmp_path):
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/group", rank=0, world_size=1)
    try:
        assert place() == Place(0, 1)
        environment(RANK="1", WORLD_SIZE="2")
        with pytest.raises(ConfigError, match=r"torch\.distributed says rank 0 of 1"):
            place()
    finally:
        torch.distributed.destroy_process_group()
