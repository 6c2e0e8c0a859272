"""``pack_dir`` and ``pack``: arguments in, a dict out."""

from __future__ import annotations

import os
from typing import TypeAlias

from penstock.dataset.labels import parse_label_mode
from penstock.dataset.links import local_path
from penstock.dataset.manifest_text import check_version
from penstock.errors import ConfigError
from penstock.packing.progress import ProgressCallback
from penstock.packing.run import Options, Packed, run
from penstock.packing.sink import Sink
from penstock.packing.sink_folder import FolderSink
from penstock.packing.source import Source
from penstock.packing.source_folder import FolderSource

__all__ = ["pack", "pack_dir"]

_MOST_SHARD_MB = 1 << 30  # a PiB: what isn't a mistake is smaller

Location: TypeAlias = str | os.PathLike[str]
Result: TypeAlias = dict[str, int | str | None]


def pack_dir(
    in_dir: Location,
    *,
    out: Location,
    shard_mb: int = 512,
    label_mode: str = "auto",
    require_labels: bool = False,
    manifest_version: int = 1,
    progress: ProgressCallback | None = None,
) -> Result:
    """Pack a folder into another one, all or nothing.

    Every regular file below ``in_dir`` becomes a sample, in the byte order of the relative paths; symlinks,
    and anything below a name ``_mx8`` or ``shards``, are left out. A dataset that is already in ``out`` stays
    as it is until the new one is complete, and is then replaced.

    Args:
        in_dir: the folder to pack.
        out: the folder for the dataset; it is made when it isn't there.
        shard_mb: where shards are split, in MiB; a larger file gets a shard to itself.
        label_mode: ``auto`` labels samples when every file lies under ``<label>/`` and there are two labels
            or more, ``imagefolder`` insists on it, ``none`` never does.
        require_labels: the same as ``label_mode="imagefolder"``, and stronger.
        manifest_version: 1, or 0 for the seed system's format, without checksums and with absolute paths.
        progress: called as packing goes on.

    Returns:
        ``samples`` and ``shards`` (counts), ``manifest_path``, ``manifest_hash`` (the hash that
        ``<out>@refresh`` resolves to), ``labels_path`` and ``labels_hash`` (None without labels).

    Raises:
        ConfigError: an argument that can't be.
        EmptyDataset: no file to pack.
        PackError: a file of zero length, a file without a label where one is required, or another pack that
            is writing to ``out``.
        SampleChanged: a file grew or shrank while it was being packed.
        StoreError: a file or folder that can't be read or written; ``StoreFull`` when the disk is full.
    """
    options = _options(shard_mb, label_mode, require_labels, manifest_version)
    for name, location in (("in_dir", in_dir), ("out", out)):
        if "://" in os.fspath(location) and not os.path.lexists(location):
            raise ConfigError(f"{name} is {os.fspath(location)!r}; pack_dir takes folders, pack() takes URLs as well")
    source, sink = FolderSource(os.fspath(in_dir)), FolderSink(out)
    _check_apart(source, sink)
    return _result(run(source, sink, options, progress), "path")


def pack(
    pack_in: Location,
    *,
    out: Location,
    shard_mb: int = 512,
    label_mode: str = "auto",
    require_labels: bool = False,
    manifest_version: int = 1,
    progress: ProgressCallback | None = None,
) -> Result:
    """Pack a folder or an object store's prefix into a folder or a prefix.

    As ``pack_dir``, and:

    * From a prefix, every object is a sample but ``_mx8/...`` and ``shards/shard-NNNNN.tar``, so that a
      prefix can be packed onto itself. Samples come in the byte order of their keys.
    * Into a prefix, shards are uploaded in parts, side by side, and the manifest last. A dataset that is
      already there stays whole until the first new shard is complete; from then on, and after a crash, the
      prefix has no manifest until a pack succeeds. Only one pack may write to a prefix at a time; nothing
      checks that.

    Args:
        pack_in: a folder, or ``s3://bucket/prefix``, ``gs://...``, ``az://...``.
        out: the same, for the dataset.
        shard_mb: see ``pack_dir``, as for the other arguments.
        label_mode: see ``pack_dir``.
        require_labels: see ``pack_dir``.
        manifest_version: see ``pack_dir``.
        progress: see ``pack_dir``.

    Returns:
        ``samples``, ``shards``, ``manifest_key``, ``manifest_hash``, ``labels_key``, ``labels_hash``; keys
        are keys within the bucket, or paths when ``out`` is a folder.

    Raises:
        ConfigError: an argument that can't be: an unknown scheme, a URL without a bucket, and what
            ``pack_dir`` refuses.
        EmptyDataset: as ``pack_dir``, and so for the others.
        PackError: see ``pack_dir``.
        SampleChanged: see ``pack_dir``.
        StoreError: the source can't be read or the destination not be written.
    """
    options = _options(shard_mb, label_mode, require_labels, manifest_version)
    source, sink = _source(pack_in), _sink(out)
    _check_apart(source, sink)
    return _result(run(source, sink, options, progress), "key")


def _source(location: Location) -> Source:
    folder = local_path(os.fspath(location))
    if folder is not None:
        return FolderSource(str(folder))
    from penstock.packing.source_objects import ObjectSource
    from penstock.store import open_store

    return ObjectSource(open_store(os.fspath(location)))


def _sink(location: Location) -> Sink:
    folder = local_path(os.fspath(location))
    if folder is not None:
        return FolderSink(folder)
    from penstock.packing.sink_objects import ObjectSink
    from penstock.store import open_store

    return ObjectSink(open_store(os.fspath(location)))


def _check_apart(source: Source, sink: Sink) -> None:
    """Refuse a source that lies where the shards or the manifest would go."""
    if isinstance(source, FolderSource) and isinstance(sink, FolderSink):
        for folder in (sink.locate("shards"), sink.locate("_mx8")):
            if source.root.is_relative_to(folder):
                raise ConfigError(f"{source.url} lies in {folder}, where the pack would write; choose another out")


def _options(shard_mb: int, label_mode: str, require_labels: bool, manifest_version: int) -> Options:
    mode = parse_label_mode(label_mode)
    return Options(
        shard_bytes=_shard_bytes(shard_mb),
        label_mode="imagefolder" if require_labels else mode,
        manifest_version=check_version(manifest_version),
    )


def _shard_bytes(shard_mb: int) -> int:
    try:
        fits = not isinstance(shard_mb, bool) and 0 < shard_mb < _MOST_SHARD_MB
    except TypeError:
        fits = False
    if not fits:
        raise ConfigError(f"shard_mb must be > 0, in MiB; it is {shard_mb!r}")
    return int(shard_mb * (1 << 20))


def _result(packed: Packed, suffix: str) -> Result:
    return {
        "samples": packed.samples,
        "shards": packed.shards,
        f"manifest_{suffix}": packed.manifest_key,
        "manifest_hash": packed.manifest_hash,
        f"labels_{suffix}": packed.labels_key,
        "labels_hash": packed.labels_hash,
    }
