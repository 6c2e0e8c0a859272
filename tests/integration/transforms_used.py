"""Transforms that the tests give to worker processes, which import them from here."""

from __future__ import annotations

import os
import random
import signal
import time
from pathlib import Path

import numpy as np


def describe(sample):
    """All that a sample is, and one random number of its own."""
    return {
        "id": sample.id,
        "label": sample.label,
        "bytes": bytes(sample),
        "head": np.resize(sample.data, 8).astype(np.float32),
        "random": sample.rng.random(),
    }


def head(sample):
    return np.resize(sample.data, 64)


def lengths(samples):
    return {"ids": [sample.id for sample in samples], "lengths": np.array([len(sample) for sample in samples])}


def thirteen_fails(sample):
    if sample.id in (13, 14):
        raise ValueError(f"{sample.id} is bad")
    return sample.id


class Speechless(Exception):
    def __str__(self):
        raise RuntimeError("no words")


def five_fails_without_words(sample):
    if sample.id == 5:
        raise Speechless
    return sample.id


def every_third_fails(sample):
    if sample.id % 3 == 0:
        raise ValueError("a multiple of three")
    return sample.id, bytes(sample)


def ids_of(samples):
    return [sample.id for sample in samples]


def object_at_7(sample):
    return object() if sample.id == 7 else 1


def large(sample):
    return np.full(200_000, sample.id, dtype=np.uint8)


def pid_and_global_random(sample):
    return os.getpid(), random.random(), np.random.random()


class DieOnce:
    """Kills its process over these samples, the first time that one of them is seen."""

    def __init__(self, folder: Path, ids: tuple[int, ...], *, always: bool = False) -> None:
        self.folder, self.ids, self.always = folder, ids, always

    def __call__(self, sample):
        if sample.id in self.ids:
            mark = self.folder / str(sample.id)
            if self.always or not mark.exists():
                mark.touch()
                os.kill(os.getpid(), signal.SIGKILL)
        return sample.id, bytes(sample)


class Announce:
    """Leaves its process's number in a folder, then stays at this sample for ever."""

    def __init__(self, folder: Path, stay_at: int) -> None:
        self.folder, self.stay_at = folder, stay_at

    def __call__(self, sample):
        (self.folder / f"pid-{os.getpid()}").touch()
        if sample.id == self.stay_at:
            (self.folder / "stays").touch()
            while True:
                time.sleep(60)
        return sample.id


def drawn(sample):
    return np.array([sample.id, sample.rng.integers(1 << 60)])
