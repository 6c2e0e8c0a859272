"""Which backends there are, under NIXL's names, and what each one does here."""

from __future__ import annotations

import os
from dataclasses import dataclass, field

from penstock.compat.nixl.descriptors import nixlRegDList
from penstock.compat.nixl.memory import nixl_mem_t

__all__ = ["PLUGINS", "Plugin", "file_facts"]


@dataclass(frozen=True, slots=True)
class Plugin:
    """A backend that can be created.

    Attributes:
        memory: the kinds that it works with.
        params: what ``create_backend`` may be given, and its defaults.
        moves: whether it transfers memory and notifications.
    """

    memory: tuple[nixl_mem_t, ...]
    params: dict[str, str] = field(default_factory=dict)
    moves: bool = False


PLUGINS: dict[str, Plugin] = {
    # NIXL's name for what moves memory. Between processes of one host nothing of it is UCX; docs/nixl.md.
    "UCX": Plugin(
        (nixl_mem_t.DRAM_SEG, nixl_mem_t.VRAM_SEG),
        {
            "ucx_devices": "",  # where it meets other hosts; empty: what the environment says, or nowhere
            "require": "",  # the only transport to be used: "shm", "tcp", "rdma", ...
            "timeout_s": "30",  # of each transfer
            "num_workers": "1",  # this one and those below: kept, without effect
            "num_threads": "0",
            "ucx_error_handling_mode": "peer",
        },
        moves=True,
    ),
    "POSIX": Plugin((nixl_mem_t.FILE_SEG,)),
}


def file_facts(files: nixlRegDList) -> list[dict[str, str] | None]:
    """Size, mode and time of change of each file, whose path is the row's fourth field; None = it isn't there."""
    return [_facts(meta) for *_, meta in files]


def _facts(path: bytes) -> dict[str, str] | None:
    try:
        found = os.stat(path)  # noqa: PTH116 - Path("") is the folder we are in
    except (OSError, ValueError):
        return None
    return {"size": str(found.st_size), "mode": str(found.st_mode), "mtime": str(int(found.st_mtime))}
