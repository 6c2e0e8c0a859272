"""What a loader was told to do with samples before it hands them out: one record, checked. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal, TypeAlias

from penstock.errors import ConfigError
from penstock.loader.collate import Collate, Pad, Stack
from penstock.sizes import parse_bytes, whole_number

__all__ = ["OnWorkerDeath", "Transform", "Workers", "transform_of"]

Workers: TypeAlias = Literal["threads", "processes"]
OnWorkerDeath: TypeAlias = Literal["replace", "raise"]

_COMPANIONS: Final = ("collate", "transform_bytes", "workers", "on_worker_death")


@dataclass(frozen=True, slots=True)
class Transform:
    """A transform, and how it runs.

    Attributes:
        function: the user's.
        per_batch: whether it takes the list of a batch's samples and returns the batch, instead of one sample.
        collate: what makes a batch of the results of its samples.
        most_bytes: that the result of one sample takes; None = to be found out.
        workers: where it runs.
        replace_dead: whether a worker process that dies is replaced.
    """

    function: Callable[[Any], Any]
    per_batch: bool = False
    collate: Collate = field(default_factory=Stack)
    most_bytes: int | None = None
    workers: Workers = "threads"
    replace_dead: bool = True


def transform_of(given: Mapping[str, Any]) -> Transform | None:
    """The transform that keywords ask for, or None.

    Raises:
        ConfigError: a value, or a combination of them, that can't work.
    """
    functions = [name for name in ("transform", "batch_transform") if name in given]
    companions = [name for name in _COMPANIONS if name in given]
    if not functions:
        if companions:
            raise ConfigError(f"{companions[0]} goes with a transform; give transform or batch_transform as well")
        return None
    if len(functions) > 1:
        raise ConfigError("transform and batch_transform exclude one another; give one of them")
    name = functions[0]
    per_batch = name == "batch_transform"
    if not callable(given[name]):
        raise ConfigError(f"{name} is {given[name]!r}; give a function")
    if per_batch and "collate" in given:
        raise ConfigError("collate joins the results of samples, and batch_transform makes the batch itself; leave one")
    return Transform(
        function=given[name],
        per_batch=per_batch,
        collate=_collate(given.get("collate", Stack())),
        most_bytes=_most_bytes(given.get("transform_bytes")),
        workers=_choice(given, "workers", "threads", "processes"),
        replace_dead=_choice(given, "on_worker_death", "replace", "raise") == "replace",
    )


def _collate(value: Any) -> Collate:
    if not isinstance(value, Stack | Pad) and not callable(value):
        raise ConfigError(f"collate is {value!r}; give penstock.pad(), or a function of a list of results")
    found: Collate = value
    return found


def _most_bytes(value: Any) -> int | None:
    if value is None:
        return None
    return whole_number("transform_bytes", parse_bytes(value, name="transform_bytes"), least=1)


def _choice(given: Mapping[str, Any], name: str, *choices: str) -> Any:
    value = given.get(name, choices[0])
    if value not in choices:
        raise ConfigError(f"{name} is {value!r}; choose one of {', '.join(choices)}")
    return value
