"""What ``penstock doctor`` finds out: what this machine has, and which path will be taken for each thing."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

import psutil

import penstock
from penstock import _core, config
from penstock.errors import ConfigError, PenstockError
from penstock.sizes import available_memory_bytes, format_bytes, parse_bytes
from penstock.store import preflight

__all__ = ["Fact", "Health", "facts", "store_facts"]

Health = Literal["ok", "note", "bad"]

_CRC_BYTES: Final = 16 << 20
_SHMEM: Final = "/sys/kernel/mm/transparent_hugepage/shmem_enabled"
_SECRET: Final = ("KEY", "SECRET", "TOKEN", "PASSWORD")
_PACKAGES: Final = {
    "numpy": "needed",
    "pyarrow": "needed: manifests as mapped columns",
    "obstore": "needed: object stores",
    "torch": "optional: tensors, penstock.vision",
    "pillow": "optional: decodes the images of penstock.vision",
    "prometheus-client": "optional: penstock.metrics",
}


@dataclass(frozen=True, slots=True)
class Fact:
    """One line of a diagnosis.

    Attributes:
        topic: the heading that it stands under.
        name: what it is about.
        value: what was found.
        health: ``note`` works, but not as well as it could; ``bad`` doesn't work.
        advice: what to do about it; "" when nothing is needed.
    """

    topic: str
    name: str
    value: str
    health: Health = "ok"
    advice: str = ""


def facts() -> Iterator[Fact]:
    """Everything about this machine, this installation and this environment; no network is used."""
    yield from _machine()
    yield from _core_facts()
    yield from _memory()
    yield from _places()
    yield from _packages()
    yield from _settings()


def _machine() -> Iterator[Fact]:
    yield Fact("machine", "system", f"{platform.system()} {platform.release()} {platform.machine()}")
    yield Fact("machine", "python", platform.python_version())
    usable = len(os.sched_getaffinity(0))
    yield Fact("machine", "CPUs", f"{usable} usable of {os.cpu_count()}")
    total = int(psutil.virtual_memory().total)
    allowed = available_memory_bytes()
    limited = f", a memory cgroup allows {format_bytes(allowed)}" if allowed < total else ", no cgroup limit below it"
    yield Fact("machine", "memory", format_bytes(total) + limited)


def _core_facts() -> Iterator[Fact]:
    yield Fact("core", "penstock", f"{penstock.__version__} at {Path(penstock.__file__).parent}")
    implementation = _core.crc32c_implementation()
    data = bytearray(_CRC_BYTES)
    _core.crc32c(data)
    started_s = time.perf_counter()
    _core.crc32c(data)
    rate = _CRC_BYTES / (time.perf_counter() - started_s)
    table = implementation == "table"
    yield Fact(
        "core",
        "crc32c",
        f"{implementation}, {format_bytes(rate)}/s",
        "note" if table else "ok",
        "this CPU has no instruction for it; checking takes several times as long" if table else "",
    )


def _memory() -> Iterator[Fact]:
    try:
        os.close(os.memfd_create("penstock-doctor", os.MFD_CLOEXEC))
        yield Fact("payload memory", "memfd", "works; nothing is left behind when a process is killed")
    except OSError as error:
        yield Fact("payload memory", "memfd", str(error), "bad", "loaders can't run here: allow memfd_create")
    shmem = _chosen(_SHMEM)
    small = shmem in {"never", "deny"}
    yield Fact(
        "payload memory",
        "huge pages for it",
        f"{shmem} (shmem_enabled)",
        "note" if small else "ok",
        f"pages of 4 KiB are used; `advise` in {_SHMEM} allows larger ones" if small else "",
    )
    yield _guard()


def _guard() -> Fact:
    text = config.lookup("MAX_PROCESS_RSS_BYTES")
    try:
        limit = 0 if text is None else parse_bytes(text)
    except ConfigError:
        return Fact("payload memory", "RSS guard", f"off: {text!r} is no size", "note", "give bytes, or such as 4GiB")
    return Fact("payload memory", "RSS guard", format_bytes(limit) if limit else "off")


def _chosen(path: str) -> str:
    """The bracketed word of a file such as ``always [madvise] never``."""
    try:
        text = Path(path).read_text()
    except OSError:
        return "unknown"
    return text.partition("[")[2].partition("]")[0] or text.strip()


def _places() -> Iterator[Fact]:
    root = config.default_manifest_store_root()
    if root.value is not None:
        yield _place("manifest store", root.value, root.source)
    yield _place("columnar manifests", str(config.cache_dir() / "manifests"), config.setting("CACHE_DIR").source)


def _place(name: str, location: str, source: str) -> Fact:
    shown = f"{location}, from {source}"
    if "://" in location:
        return Fact("places", name, f"{shown}; `penstock doctor {location}` tries it")
    existing = Path(location).expanduser().absolute()
    while not existing.exists():
        existing = existing.parent
    if not os.access(existing, os.W_OK | os.X_OK):
        return Fact("places", name, f"{shown}; can't be written", "note", f"make {existing} writable")
    free = psutil.disk_usage(str(existing)).free
    return Fact("places", name, f"{shown}; {format_bytes(free)} free")


def _packages() -> Iterator[Fact]:
    for package, purpose in _PACKAGES.items():
        try:
            yield Fact("packages", package, f"{importlib.metadata.version(package)} ({purpose})")
        except importlib.metadata.PackageNotFoundError:
            optional = purpose.startswith("optional")
            advice = f"pip install {package}"
            yield Fact("packages", package, f"missing ({purpose})", "note" if optional else "bad", advice)


def _settings() -> Iterator[Fact]:
    for key in config.VARIABLES:
        found = config.setting(key)
        if found.value is not None:
            yield Fact("environment", found.source, masked(found.source, found.value))
    yield from _wrong_settings()


_NUMBERS = {
    "STALL_TIMEOUT_S": 1,
    "STORE_CONCURRENCY": 1,
    "STORE_RETRIES": 1,
    "STORE_TIMEOUT_S": 1,
    "SNAPSHOT_LOCK_STALE_MS": 0,
    "SNAPSHOT_WAIT_TIMEOUT_MS": 0,
}


def _wrong_settings() -> Iterator[Fact]:
    """The values that would be refused later, found now."""
    from penstock.vision import DecodeSettings

    try:
        settings = DecodeSettings.from_environment()
        native = settings.backend == "native"
        way = "libjpeg-turbo in the core for JPEG, Pillow for the rest" if native else "Pillow"
        yield Fact(
            "decoding",
            "images",
            f"{way}, {settings.threads} threads",
            "ok" if _core.HAS_JPEG else "note",
            "" if _core.HAS_JPEG else "the core was built without libjpeg-turbo: install libjpeg-dev and build again",
        )
    except PenstockError as error:
        yield Fact("decoding", "images", str(error), "bad", "unset it or give what is allowed")
    for name, least in _NUMBERS.items():
        try:
            config.positive_int(name, least, least=least)
        except ConfigError as error:
            yield Fact("environment", config.setting(name).source, str(error), "bad", "unset it or change it")


def store_facts(url: str) -> Iterator[Fact]:
    """Whether a store can be reached, and what its client was told; asks the store, within seconds.

    Raises:
        ConfigError: ``url`` is no store's address.
    """
    found = preflight(url)
    topic = f"store {found.url}"
    for setting in found.settings:
        yield Fact(topic, setting.name, f"{setting.shown}, from {setting.source}")
    for step in found.tried:
        yield Fact(topic, "tried", step)
    if found.reachable:
        waited = "" if found.latency_s is None else f" in {found.latency_s * 1000:.0f} ms"
        yield Fact(topic, "reachable", f"yes{waited}")
    else:
        yield Fact(topic, "reachable", found.error or "no", "bad")


def masked(name: str, value: str) -> str:
    """A setting as it may be shown: of a secret, only its last four characters and its length."""
    if not any(word in name.upper() for word in _SECRET):
        return value
    tail = value[-4:] if len(value) >= 16 else ""
    return f"***{tail} ({len(value)} characters)"
