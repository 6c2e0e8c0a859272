"""The only reader of environment variables.

Penstock's own variables are called ``PENSTOCK_X``; where the seed system knew the same thing as ``MX8_X``, that
name is read second. An empty value counts as unset. An explicit argument always wins over the environment.
``VARIABLES`` is the whole list; ``docs/environment.md`` is checked against it.
"""

from __future__ import annotations

import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

from penstock.errors import ConfigError

__all__ = [
    "VARIABLES",
    "Setting",
    "Variable",
    "cache_dir",
    "choice",
    "default_manifest_store_root",
    "flag",
    "lookup",
    "positive_int",
    "runtime_dir",
    "setting",
    "state_dir",
]


@dataclass(frozen=True, slots=True)
class Variable:
    """One setting that the environment can give: its names in the order they are read, and what it means."""

    names: tuple[str, ...]
    default: str
    meaning: str


@dataclass(frozen=True, slots=True)
class Setting:
    """A value and where it came from: a variable's name, or ``"default"``."""

    value: str | None
    source: str


def _own(name: str, default: str, meaning: str, *older: str, seed: bool = True) -> Variable:
    names = (f"PENSTOCK_{name}", *((f"MX8_{name}",) if seed else ()), *older)
    return Variable(names, default, meaning)


VARIABLES: dict[str, Variable] = {
    "MANIFEST_STORE_ROOT": _own(
        "MANIFEST_STORE_ROOT",
        "/var/lib/mx8/manifests if writable, else the user's cache folder",
        "where manifests are kept: a folder, or s3://, gs://, az://",
    ),
    "DEV_MANIFEST_PATH": _own("DEV_MANIFEST_PATH", "unset", "a TSV to use instead of indexing the base"),
    "MAX_PROCESS_RSS_BYTES": _own(
        "MAX_PROCESS_RSS_BYTES",
        "unset (no guard)",
        "loaders raise RssExceeded when the process is larger; bytes or a size such as 4GiB",
    ),
    "CACHE_DIR": _own(
        "CACHE_DIR", "$XDG_CACHE_HOME/penstock", "columnar manifests, made once for each hash", seed=False
    ),
    "SNAPSHOT_LOCK_STALE_MS": _own(
        "SNAPSHOT_LOCK_STALE_MS", "60000", "age at which an indexer's lock is taken over; 0 = never"
    ),
    "SNAPSHOT_WAIT_TIMEOUT_MS": _own(
        "SNAPSHOT_WAIT_TIMEOUT_MS", "30000", "how long to wait for another process's indexing"
    ),
    "STALL_TIMEOUT_S": _own(
        "STALL_TIMEOUT_S", "300", "next() raises DeadlineExceeded after this long without a batch", seed=False
    ),
    "DECODE_BACKEND": _own("DECODE_BACKEND", "native if built", "image decoder: python, rust or native"),
    "DECODE_THREADS": _own("DECODE_THREADS", "CPUs of this process", "threads that decode images, at least 1"),
    "MAX_IMAGE_PIXELS": _own("MAX_IMAGE_PIXELS", "67108864", "larger pictures are refused", seed=False),
    "RUST_JPEG_CODEC": _own("RUST_JPEG_CODEC", "zune", "zune, image, turbo or turbojpeg"),
    "RUST_RESIZE_BACKEND": _own("RUST_RESIZE_BACKEND", "fast", "fast, fir, fast_image_resize or image"),
    "S3_ENDPOINT_URL": _own(
        "S3_ENDPOINT_URL",
        "unset (AWS)",
        "address of an S3-compatible server",
        "AWS_ENDPOINT_URL_S3",
        "AWS_ENDPOINT_URL",
        "AWS_ENDPOINT",
        "S3_ENDPOINT_URL",
    ),
    "S3_FORCE_PATH_STYLE": _own(
        "S3_FORCE_PATH_STYLE", "true when an endpoint is set", "bucket in the path, not in the host name"
    ),
    "S3_LABEL_MODE": _own(
        "S3_LABEL_MODE", "auto", "labels for a listed prefix that was not packed: auto, none or imagefolder"
    ),
    "AWS_ACCESS_KEY_ID": Variable(("AWS_ACCESS_KEY_ID",), "unset", "S3 access key"),
    "AWS_SECRET_ACCESS_KEY": Variable(("AWS_SECRET_ACCESS_KEY",), "unset", "S3 secret key"),
    "AWS_SESSION_TOKEN": Variable(("AWS_SESSION_TOKEN", "AWS_TOKEN"), "unset", "S3 session token"),
    "AWS_PROFILE": Variable(
        ("AWS_PROFILE",), "default", "without keys above: whose keys are taken from the file of `aws configure`"
    ),
    "AWS_SHARED_CREDENTIALS_FILE": Variable(
        ("AWS_SHARED_CREDENTIALS_FILE",), "~/.aws/credentials", "that file; only keys in it count, no roles or sign-ons"
    ),
    "AWS_REGION": Variable(("AWS_REGION", "AWS_DEFAULT_REGION"), "us-east-1", "S3 region"),
    "GCS_CREDENTIALS": Variable(
        ("GOOGLE_APPLICATION_CREDENTIALS", "GOOGLE_SERVICE_ACCOUNT", "GOOGLE_SERVICE_ACCOUNT_PATH"),
        "unset",
        "path of a Google service account file",
    ),
    "GCS_ENDPOINT_URL": _own("GCS_ENDPOINT_URL", "unset (Google)", "address of a GCS emulator", seed=False),
    "AZURE_STORAGE_ACCOUNT": Variable(
        ("AZURE_STORAGE_ACCOUNT_NAME", "AZURE_STORAGE_ACCOUNT", "AZURE_ACCOUNT_NAME"),
        "unset",
        "Azure storage account",
    ),
    "AZURE_STORAGE_KEY": Variable(
        ("AZURE_STORAGE_ACCOUNT_KEY", "AZURE_STORAGE_KEY", "AZURE_ACCOUNT_ACCESS_KEY"),
        "unset",
        "Azure storage key",
    ),
    "AZURE_ENDPOINT_URL": _own("AZURE_ENDPOINT_URL", "unset (Azure)", "address of an Azure emulator", seed=False),
    "STORE_CONCURRENCY": _own(
        "STORE_CONCURRENCY", "16", "most object-store requests at once in this process", seed=False
    ),
    "STORE_RETRIES": _own("STORE_RETRIES", "6", "tries for one object-store request, at least 1", seed=False),
    "STORE_TIMEOUT_S": _own("STORE_TIMEOUT_S", "30", "deadline of one object-store request", seed=False),
    "TRACE": _own("TRACE", "unset", "a folder; every loader writes a trace of its stages to it", seed=False),
    "TOP": _own("TOP", "true", "false hides this process's loaders from `penstock top`", seed=False),
    "METRICS_PORT": _own(
        "METRICS_PORT", "unset", "loaders serve Prometheus metrics on this port of 127.0.0.1", seed=False
    ),
    "EXCHANGE_HOST": _own(
        "EXCHANGE_HOST",
        "127.0.0.1",
        "address on which `compat.nixl.utils.start_server` listens; beyond loopback it takes PENSTOCK_EXCHANGE_TOKEN",
        seed=False,
    ),
    "EXCHANGE_TOKEN": _own(
        "EXCHANGE_TOKEN",
        "unset",
        "secret that `compat.nixl` servers ask for and its clients give: the key-value server, agents' listeners",
        seed=False,
    ),
    "ETCD_ENDPOINTS": _own(
        "ETCD_ENDPOINTS",
        "unset",
        "etcd that carries agents' metadata: http://host:port, several between commas",
        "NIXL_ETCD_ENDPOINTS",
        seed=False,
    ),
    "ETCD_NAMESPACE": _own(
        "ETCD_NAMESPACE",
        "/nixl/agents/",
        "what the keys of that metadata begin with",
        "NIXL_ETCD_NAMESPACE",
        seed=False,
    ),
    "ETCD_USER": _own("ETCD_USER", "unset", "who asks, where etcd wants to know", seed=False),
    "ETCD_PASSWORD": _own("ETCD_PASSWORD", "unset", "password of that user", seed=False),
    "ETCD_CA": _own("ETCD_CA", "the system's authorities", "who vouches for an https etcd: a PEM file", seed=False),
    "ETCD_CERT": _own("ETCD_CERT", "unset", "our certificate, where etcd wants one: a PEM file", seed=False),
    "ETCD_COMPACT": _own(
        "ETCD_COMPACT", "true", "whether a coordinator has etcd forget the history that its journal leaves", seed=False
    ),
    "ETCD_KEY": _own("ETCD_KEY", "in PENSTOCK_ETCD_CERT", "key of that certificate: a PEM file", seed=False),
    "TRANSFER_NETWORK": _own(
        "TRANSFER_NETWORK",
        "unset (this host only)",
        "where agents of `penstock.compat` meet other hosts: an address, an interface, loopback or any",
        "UCX_NET_DEVICES",
        seed=False,
    ),
    "NIXL_TELEMETRY_ENABLE": Variable(
        ("NIXL_TELEMETRY_ENABLE",), "unset", "on or off, for `penstock.compat.nixl`; off wins over its configuration"
    ),
    "RANK": Variable(("RANK",), "0", "which rank this process is, for `penstock.torch`; torchrun sets it"),
    "WORLD_SIZE": Variable(("WORLD_SIZE",), "1", "how many ranks there are, for `penstock.torch`; together with RANK"),
    "LOCAL_RANK": Variable(("LOCAL_RANK",), "0", "which GPU of this machine `penstock.torch.DeviceLoader` copies to"),
    "HMC_TOKEN": _own(
        "HMC_TOKEN",
        "unset",
        "what sessions of `penstock.compat.hmc` have to know to connect with each other",
        seed=False,
    ),
    "CTRL_TRANSPORT": Variable(
        ("PENSTOCK_CTRL_TRANSPORT", "CTRL_TRANSPORT"),
        "uds at our own address, else tcp",
        "tcp or uds: how control tags of `penstock.compat.hmc` travel",
    ),
    "COORD_URL": _own("COORD_URL", "unset (rank 0 leads)", "the coordinator that `penstock.torch.shared_job` finds"),
    "COORD_BIND_ADDR": _own(
        "COORD_BIND_ADDR", "127.0.0.1:50051", "where `penstock coordinator` listens; beyond loopback it takes a secret"
    ),
    "COORD_TOKEN": _own(
        "COORD_TOKEN", "unset", "secret that a coordinator asks for, and that its nodes give", seed=False
    ),
    "COORD_PAGE_ADDR": _own(
        "COORD_PAGE_ADDR",
        "127.0.0.1, the port after COORD_BIND_ADDR's",
        "where a coordinator serves the page that shows its job; off = nowhere",
        seed=False,
    ),
    "COORD_JOURNAL": _own(
        "COORD_JOURNAL",
        "a file in $XDG_STATE_HOME/penstock",
        "where a coordinator keeps its state: a file or folder, memory: or etcd://host:port",
        seed=False,
    ),
    "COORD_TLS_CERT": _own("COORD_TLS_CERT", "unset (no TLS)", "a coordinator's certificate: a PEM file", seed=False),
    "COORD_TLS_KEY": _own(
        "COORD_TLS_KEY", "in PENSTOCK_COORD_TLS_CERT", "key of that certificate: a PEM file", seed=False
    ),
    "COORD_TLS_CLIENT_CA": _own(
        "COORD_TLS_CLIENT_CA", "unset", "who vouches for nodes, which then need certificates: a PEM file", seed=False
    ),
    "COORD_WORLD_SIZE": Variable(
        ("PENSTOCK_WORLD_SIZE", "MX8_WORLD_SIZE"), "1", "nodes that a coordinator's job waits for"
    ),
    "HEARTBEAT_INTERVAL_MS": _own("HEARTBEAT_INTERVAL_MS", "1000", "how often nodes tell a coordinator that they live"),
    "LEASE_TTL_MS": _own("LEASE_TTL_MS", "10000", "a lease ends when its node isn't heard of for so long"),
    "DATASET_LINK": _own("DATASET_LINK", "unset", "the dataset that a coordinator shares out"),
    "MANIFEST_HASH": _own("MANIFEST_HASH", "dev", "without a link: the manifest that a coordinator shares out"),
    "DEV_TOTAL_SAMPLES": _own(
        "DEV_TOTAL_SAMPLES", "0 (all of the manifest)", "how many samples a coordinator shares out"
    ),
    "DEV_BLOCK_SIZE": _own("DEV_BLOCK_SIZE", "65536", "samples in a lease, at most"),
    "SHUFFLE": _own("SHUFFLE", "false", "whether a coordinator deals blocks in a random order"),
    "SEED": _own("SEED", "0", "of that order"),
    "EPOCH": _own("EPOCH", "0", "of that order; the first one that a coordinator runs"),
    "METRICS_SNAPSHOT_INTERVAL_MS": _own(
        "METRICS_SNAPSHOT_INTERVAL_MS", "0 (never)", "how often a coordinator logs how far the job is"
    ),
    "GRPC_MAX_MESSAGE_BYTES": _own("GRPC_MAX_MESSAGE_BYTES", "67108864", "most in one message of a coordinator"),
    "JOB_ID": _own("JOB_ID", "local-job", "name of a job that is shared over nodes"),
    "LOG": _own("LOG", "warning", "log level of the command line: debug, info, warning or error"),
}


def setting(name: str) -> Setting:
    """The value of a variable in ``VARIABLES`` and the environment name that gave it.

    Args:
        name: the key in ``VARIABLES``, without prefix.

    Returns:
        A setting whose value is None, and source ``"default"``, when no name is set.
    """
    for candidate in VARIABLES[name].names:
        value = os.environ.get(candidate, "").strip()
        if value:
            return Setting(value, candidate)
    return Setting(None, "default")


def lookup(name: str) -> str | None:
    """The value of a variable in ``VARIABLES``, or None when it is unset or empty."""
    return setting(name).value


def flag(name: str) -> bool | None:
    """A yes-or-no variable; None when unset.

    Raises:
        ConfigError: not one of true, false, 1, 0, yes, no, on, off.
    """
    found = setting(name)
    if found.value is None:
        return None
    text = found.value.lower()
    if text in {"true", "1", "yes", "on"}:
        return True
    if text in {"false", "0", "no", "off"}:
        return False
    raise ConfigError(f"{found.source}={found.value!r}; give true, false, 1, 0, yes, no, on or off")


def positive_int(name: str, default: int, *, least: int = 1) -> int:
    """A whole-number variable of at least ``least``, or ``default`` when unset.

    Raises:
        ConfigError: not a whole number, or below ``least``.
    """
    found = setting(name)
    if found.value is None:
        return default
    if not found.value.isdecimal() or int(found.value) < least:
        raise ConfigError(f"{found.source}={found.value!r}; give a whole number of at least {least}")
    return int(found.value)


def choice(name: str, default: str, aliases: dict[str, str]) -> str:
    """A variable with a fixed set of values, case-insensitive, mapped through ``aliases``.

    Raises:
        ConfigError: another value; the message lists the choices.
    """
    found = setting(name)
    if found.value is None:
        return default
    chosen = aliases.get(found.value.lower())
    if chosen is None:
        raise ConfigError(f"{found.source}={found.value!r}; choose one of {', '.join(sorted(aliases))}")
    return chosen


def cache_dir() -> Path:
    """The folder for what can be made again: columnar manifests."""
    own = lookup("CACHE_DIR")
    if own is not None:
        return Path(own).expanduser()
    base = os.environ.get("XDG_CACHE_HOME", "").strip()
    return (Path(base) if base else Path.home() / ".cache") / "penstock"


def state_dir() -> Path:
    """The folder for what must outlive a process and isn't the user's own data: journals."""
    base = os.environ.get("XDG_STATE_HOME", "").strip()
    return (Path(base) if base else Path.home() / ".local" / "state") / "penstock"


def runtime_dir() -> Path:
    """The folder where running loaders show themselves to ``penstock top``, for this user alone."""
    session = os.environ.get("XDG_RUNTIME_DIR", "").strip()
    if session and Path(session).is_dir():
        return Path(session) / "penstock"
    return Path(tempfile.gettempdir()) / f"penstock-{os.getuid()}"


SEED_MANIFEST_STORE_ROOT = Path("/var/lib/mx8/manifests")


def default_manifest_store_root() -> Setting:
    """Where manifests are kept when no argument says so, and why there.

    Returns:
        The environment's value, else the seed's default folder when it can be written, else a folder in the
        user's cache.
    """
    found = setting("MANIFEST_STORE_ROOT")
    if found.value is not None:
        return found
    if _can_write(SEED_MANIFEST_STORE_ROOT):
        return Setting(str(SEED_MANIFEST_STORE_ROOT), "default")
    return Setting(str(cache_dir() / "manifests"), f"default ({SEED_MANIFEST_STORE_ROOT} can't be written)")


def _can_write(folder: Path) -> bool:
    existing = folder
    while not existing.exists():
        existing = existing.parent
    return existing.is_dir() and os.access(existing, os.W_OK | os.X_OK)
