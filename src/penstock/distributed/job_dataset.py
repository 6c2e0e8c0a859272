"""The samples of a shared job, as its coordinator names them."""

from __future__ import annotations

from penstock import config
from penstock.coordinator.client import Client
from penstock.coordinator.events import Registered
from penstock.dataset.index import canonical_base
from penstock.dataset.links import parse_link
from penstock.dataset.manifest_store import ManifestStore, staging_file
from penstock.dataset.resolve import Resolved
from penstock.errors import ConfigError, ManifestNotFound
from penstock.proof import prove
from penstock.store import open_store

__all__ = ["job_dataset"]


def job_dataset(client: Client, registered: Registered, *, base: str | None, root: str | None) -> Resolved:
    """The job's manifest, out of the store of manifests if it is there, else from the coordinator.

    Args:
        client: to ask for it.
        registered: what the coordinator said of the job.
        base: what its relative locations are joined to, if not to what the coordinator says.
        root: of the store of manifests; None = the default one.

    Raises:
        ConfigError: nobody says what relative locations are relative to.
        ManifestError, StoreError: it can't be had, or kept.
        CoordinatorRefused, CoordinatorUnreachable: as it came.
    """
    manifest_hash = registered.manifest_hash
    store = ManifestStore(open_store(root or config.default_manifest_store_root().value or ""))
    try:
        store.check_present(manifest_hash)
    except ManifestNotFound:
        with staging_file() as text:
            version = client.manifest(manifest_hash, text)
            prove("manifest_cached", manifest_hash=manifest_hash, bytes=text.tell(), schema_version=version)
            store.put(manifest_hash, text)
    manifest = store.open(manifest_hash)
    where = base or registered.dataset_base
    if manifest.version and not where:
        raise ConfigError(
            "the manifest's locations are relative, and the coordinator doesn't say to what; give dataset_base="
        )
    return Resolved(manifest, canonical_base(parse_link(where).base if where else "."), manifest_hash)
