"""What tests share that pack: trees of files, small datasets, and a look at what a pack made of them."""

from __future__ import annotations

import hashlib
import os
import random
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import penstock


class Row(NamedTuple):
    sample_id: int
    location: str
    offset: int
    length: int
    hint: str
    crc32c: str | None


def make_tree(root: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return root


def pack_thousands(root: Path, names: Iterable[str]) -> str:
    """The path of a packed dataset: 1,000 bytes for each name."""
    make_tree(root / "in", {name: bytes(1000) for name in names})
    penstock.pack_dir(str(root / "in"), out=str(root / "packed"))
    return str(root / "packed")


def pack_random(root: Path, count: int, *, least: int = 1, most: int = 400) -> Path:
    """Pack so many samples of random bytes without labels into ``root / "packed"``; returns ``root``."""
    source = random.Random(count)
    make_tree(
        root / "in", {f"{index:05d}.bin": source.randbytes(source.randint(least, most)) for index in range(count)}
    )
    penstock.pack_dir(root / "in", out=str(root / "packed"), shard_mb=1, label_mode="none")
    return root


def random_files(count: int, *, folders: int = 3, largest: int = 20_000, seed: int = 0) -> dict[str, bytes]:
    source = random.Random(seed)
    return {
        f"class {index % folders}/{index:05d}.jpg": source.randbytes(source.randint(1, largest))
        for index in range(count)
    }


def in_byte_order(files: dict[str, bytes]) -> list[tuple[str, bytes]]:
    return sorted(files.items(), key=lambda item: os.fsencode(item[0]))


def rows_of(out: Path) -> list[Row]:
    header, *lines = (out / "_mx8/manifest.tsv").read_bytes().decode().split("\n")
    assert header in ("schema_version=0", "schema_version=1")
    assert lines.pop() == ""
    rows = []
    for line in lines:
        sample_id, location, offset, length, hint, *crc = line.split("\t")
        rows.append(Row(int(sample_id), location, int(offset), int(length), hint, crc[0] if crc else None))
    return rows


def payloads_of(out: Path) -> list[bytes]:
    """Every sample's bytes, cut from the shards as the manifest says."""
    shards = {}
    payloads = []
    for row in rows_of(out):
        if row.location not in shards:
            shards[row.location] = (out / row.location).read_bytes()
        payload = shards[row.location][row.offset : row.offset + row.length]
        assert len(payload) == row.length, f"{row} names bytes that are not there"
        payloads.append(payload)
    return payloads


def tree_of(root: Path) -> dict[str, str]:
    """Every file below a folder, with the hash of its bytes."""
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(root.rglob("*"))
        if not path.is_dir()
    }
