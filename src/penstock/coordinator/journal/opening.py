"""Which journal an address means."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import quote

from penstock.coordinator.journal.base import Journal
from penstock.coordinator.journal.etcd import DEFAULT_PREFIX, EtcdJournal
from penstock.coordinator.journal.file import FileJournal
from penstock.coordinator.journal.memory import MemoryJournal
from penstock.errors import ConfigError

__all__ = ["open_journal"]


def open_journal(url: str, *, job_id: str, address: str, ttl_s: float = 3.0) -> Journal:
    """The journal that an address means. Nothing is read or written yet.

    Args:
        url: ``memory:``; ``file:/path`` or a path, where a folder gets a file for each job;
            ``etcd://host:port,host:port/prefix``, where the prefix may be left out, and ``etcds://`` means TLS.
        job_id: whose records it keeps.
        address: host:port of this coordinator, told to those that follow it.
        ttl_s: etcd alone: how long after a leader stood still another one may lead.

    Raises:
        ConfigError: no such journal.
    """
    kind, colon, rest = url.partition(":")
    if not job_id:
        raise ConfigError("job_id is empty; give the job a name")
    if url == "memory:":
        return MemoryJournal(address=address)
    if kind in {"etcd", "etcds"} and rest.startswith("//"):
        hosts, _, prefix = rest[2:].partition("/")
        scheme = "http" if kind == "etcd" else "https"
        endpoints = ",".join(f"{scheme}://{host.strip()}" for host in hosts.split(",") if host.strip())
        prefix = f"/{prefix}" if prefix else DEFAULT_PREFIX
        return EtcdJournal.from_environment(endpoints, job_id=job_id, address=address, prefix=prefix, ttl_s=ttl_s)
    if colon and kind != "file" and "/" not in kind:
        raise ConfigError(f"there is no journal {url!r}; give memory:, file:/path or etcd://host:port,host:port")
    path = Path(rest if colon and kind == "file" else url).expanduser()
    if not str(url).strip() or (colon and kind == "file" and not rest):
        raise ConfigError(f"journal {url!r} has no path; give file:/path")
    return FileJournal(_file_of(path, url, job_id), job_id=job_id, address=address)


def _file_of(path: Path, url: str, job_id: str) -> Path:
    """A folder gets a file for each job, whatever is in its name."""
    return path / f"{quote(job_id, safe='')}.journal" if url.endswith("/") or path.is_dir() else path
