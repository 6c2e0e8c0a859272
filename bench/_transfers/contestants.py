"""Who takes part, and in what."""

from __future__ import annotations

import importlib
from dataclasses import dataclass

from .side import Side

SAME_HOST = ("latency", "notify", "scatter", "bulk", "register")
NETWORK = ("network",)


@dataclass(frozen=True, slots=True)
class Contestant:
    """Where the code of a contestant is, the memory that it moves, and what it is measured in."""

    module: str
    name: str
    memory: str
    groups: tuple[str, ...]
    pinned: bool = False  # one core for each end when that is asked for: who has no busy threads of its own

    def load(self) -> type[Side]:
        found: type[Side] = getattr(importlib.import_module(f"_transfers.{self.module}"), self.name)
        return found


CONTESTANTS = {
    "penstock": Contestant("penstock", "Penstock", "own", SAME_HOST + NETWORK, pinned=True),
    "penstock, user memory": Contestant("penstock", "Penstock", "user", SAME_HOST + NETWORK, pinned=True),
    "nixl": Contestant("nixl", "Nixl", "user", SAME_HOST + NETWORK),
    "nixl, tuned": Contestant("nixl", "TunedNixl", "user", SAME_HOST, pinned=True),
    "memcpy": Contestant("copies", "Memcpy", "own", ("latency", "notify", "scatter", "bulk"), pinned=True),
    "streaming stores": Contestant("copies", "Streaming", "own", ("scatter", "bulk"), pinned=True),
    "process_vm": Contestant("copies", "ProcessCopy", "user", ("latency", "notify", "scatter", "bulk"), pinned=True),
    "mooncake": Contestant("mooncake", "Mooncake", "user", ("latency", "scatter", "bulk", "network")),
    "gloo": Contestant("messages", "Gloo", "user", ("notify", "bulk")),
    "zmq ipc": Contestant("messages", "Zmq", "user", ("notify", "bulk")),
    "tcp socket": Contestant("messages", "Sockets", "user", NETWORK),
    "zmq tcp": Contestant("messages", "ZmqTcp", "user", ("notify", "bulk")),
}
