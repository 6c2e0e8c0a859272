"""From s3dlio's URIs to what Penstock loads: what lay below a URI when it was listed, pinned."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from penstock import config
from penstock.dataset.links import local_path, parse_link
from penstock.dataset.resolve import Resolved, resolve, resolve_manifest_hash
from penstock.errors import ConfigError, ObjectNotFound
from penstock.loader import DataLoader, LoaderOptions
from penstock.store import split_location

__all__ = ["Prefix"]

_SCHEMES: Final = {"file": "file", "s3": "s3", "gs": "gs", "gcs": "gs", "az": "az"}
_SCHEME: Final = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")


@dataclass(frozen=True, slots=True)
class Prefix:
    """What lay below a URI when it was listed. Small and picklable; the manifest store keeps the list.

    Attributes:
        base: the URI.
        manifest_hash: of the list.
        store_root: where that is kept: a process that was started earlier may have another environment.
    """

    base: str
    manifest_hash: str
    store_root: str

    @classmethod
    def find(cls, uri: str) -> Prefix:
        """List what lies below a URI; one that ends in ``@sha256:<hash>`` means a list that was made before.

        Raises:
            ConfigError: a scheme that isn't known, or none.
            ObjectNotFound: there is no such path.
            PenstockError: it can't be listed; the message says why.
        """
        link = parse_link(_with_known_scheme(uri))
        root = config.default_manifest_store_root().value
        assert root is not None
        if link.pinned_hash is not None:
            return cls(link.base, resolve_manifest_hash(str(link), manifest_store_root=root), root)
        path = local_path(link.base)
        if path is not None and not path.exists():
            raise ObjectNotFound(f"Path does not exist: {path}")
        if path is not None and path.is_file():
            return cls(link.base, _hash_of_file(link.base, path, root), root)
        return cls(link.base, resolve_manifest_hash(f"{link.base}@refresh", manifest_store_root=root), root)

    @property
    def link(self) -> str:
        """For loaders."""
        return f"{self.base}@sha256:{self.manifest_hash}"

    @property
    def is_local(self) -> bool:
        """Whether it is a folder or file of this machine."""
        return local_path(self.base) is not None

    def open(self) -> Resolved:
        """Its manifest."""
        return resolve(self.link, manifest_store_root=self.store_root)

    def loader(self, options: LoaderOptions) -> DataLoader:
        """One pass over all of it."""
        return DataLoader(self.link, options, manifest_store_root=self.store_root)

    def keys(self) -> list[str]:
        """Of each sample: the path below the folder, a single file's name, or the key in the bucket."""
        dataset = self.open()
        whole = [dataset.location(index) for index in dataset.manifest.location_index.tolist()]
        if not self.is_local:
            return [split_location(location)[1] for location in whole]
        below = f"{dataset.base}/"
        return [name.removeprefix(below) if name.startswith(below) else Path(name).name for name in whole]

    def samples(self, options: LoaderOptions) -> Iterator[bytes]:
        """One pass over single samples, each a copy that belongs to the caller."""
        loader = self.loader(options)
        for batch in loader:
            with batch:
                samples = [bytes(sample) for sample in batch]
            yield from samples
        loader.close()


def _with_known_scheme(uri: str) -> str:
    found = _SCHEME.match(uri)
    given = found[1].lower() if found else ""
    if given == "direct":
        raise ConfigError(f"{uri!r}: Penstock reads files through the page cache alone; give file:// instead")
    if found is None or given not in _SCHEMES:
        raise ConfigError(f"{uri!r} has no scheme that can be loaded from; give one of {'://, '.join(_SCHEMES)}://")
    return f"{_SCHEMES[given]}{uri[found.end(1) :]}"


def _hash_of_file(base: str, path: Path, root: str) -> str:
    """A single file is no base that can be indexed; it is a table of one row."""
    with tempfile.NamedTemporaryFile("w", encoding="utf-8", errors="surrogateescape", suffix=".tsv") as table:
        table.write(f"0\t{path}\n")
        table.flush()
        return resolve_manifest_hash(f"{base}@refresh", dev_manifest_path=table.name, manifest_store_root=root)
