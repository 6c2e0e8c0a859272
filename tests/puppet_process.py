"""A process that owns one agent and does what it is told: JSON lines in, JSON lines out. Driven by `puppet.Puppet`.

A line in is ``{"id": 7, "act": "write", "aside": false, "with": {...}}``; the answer is ``{"id": 7, "gives": ...}`` or
``{"id": 7, "error": "StaleDescriptor", "text": "...", "kinds": [...]}``. Acts run one after another; one "aside" runs
on a thread of its own. Bytes are ``{"b64": "..."}``. The process ends when its input does.
"""

from __future__ import annotations

import base64
import contextlib
import faulthandler
import gc
import json
import os
import signal
import sys
import threading
import time
import traceback
from pathlib import Path
from typing import Any

import numpy as np

from penstock.transfer import Agent

POISON = 0xDE


def pattern(seed: int, nbytes: int) -> np.ndarray:
    """Bytes that differ from each other and from those of another seed; a missing or misplaced one shows."""
    index = np.arange(seed * 1_000_003, seed * 1_000_003 + (nbytes + 7) // 8, dtype=np.uint64)
    mixed = (index + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
    mixed ^= mixed >> np.uint64(29)
    return mixed.view(np.uint8)[:nbytes]


class Acts:
    """What a puppet can do; each public method is an act."""

    def __init__(self) -> None:
        self.memory: dict[str, np.ndarray] = {}
        self.held: dict[str, Any] = {}  # what owns the memory
        self.registrations: dict[str, Any] = {}
        self.transfers: dict[str, Any] = {}
        self.agent: Any = None

    # The agent and its peers.

    def open(self, name: str, **options: Any) -> None:
        self.agent = Agent(name, **options)

    def metadata(self) -> bytes:
        return self.agent.metadata()

    def add_peer(self, blob: bytes) -> str:
        return self.agent.add_peer(blob).name

    def remove_peer(self, name: str) -> None:
        self.agent.remove_peer(name)

    def connect(self, peer: str, timeout_s: float | None = None) -> str:
        self.agent.peers[peer].connect(timeout_s=timeout_s)
        return self.agent.peers[peer].transport

    def peer(self, name: str) -> dict[str, Any]:
        peer = self.agent.peers[name]
        return {"connected": peer.connected, "lost": peer.lost, "transport": peer.transport}

    def wait_lost(self, peer: str, timeout_s: float) -> float:
        """Seconds until the peer counts as lost, without anybody asking it for anything."""
        started = time.monotonic()
        while self.agent.peers[peer].lost is None:
            if time.monotonic() - started > timeout_s:
                raise TimeoutError(f"{peer} isn't lost after {timeout_s} s")
            time.sleep(0.002)
        return time.monotonic() - started

    def close(self) -> None:
        self.agent.close()

    # Memory.

    def allocate(self, key: str, nbytes: int) -> int:
        """Memory of the agent's; returns its address."""
        self.held[key] = self.agent.allocate(nbytes)
        self.memory[key] = np.asarray(self.held[key]).view(np.uint8)
        return self.memory[key].ctypes.data

    def own(self, key: str, nbytes: int) -> int:
        """Memory of the user's; returns its address."""
        self.held[key] = self.memory[key] = np.zeros(nbytes, np.uint8)
        return self.memory[key].ctypes.data

    def drop(self, key: str) -> None:
        """Lets go of memory."""
        del self.memory[key], self.held[key]
        gc.collect()

    def register(self, key: str, of: str | None = None, cuts: list[list[int]] | None = None) -> bytes:
        """Registers memory, or pieces of it; returns the descriptors as bytes."""
        memory = self.memory[of or key]
        things = self.held[of or key] if cuts is None else [memory[begin:end] for begin, end in cuts]
        self.registrations[key] = self.agent.register(things)
        return self.registrations[key].descriptors.to_bytes()

    def renew(self, key: str) -> bytes:
        self.registrations[key].renew()
        return self.registrations[key].descriptors.to_bytes()

    def deregister(self, key: str, timeout_s: float | None = None) -> None:
        self.registrations[key].close(timeout_s=timeout_s)
        del self.registrations[key]

    def fill(self, key: str, seed: int) -> None:
        self.memory[key][:] = pattern(seed, self.memory[key].nbytes)

    def wrong(self, key: str, seed: int, begin: int = 0, end: int | None = None) -> int:
        """How many bytes of memory aren't those of `fill` with the same seed."""
        memory = self.memory[key]
        return int(np.count_nonzero(memory[begin:end] != pattern(seed, memory.nbytes)[begin:end]))

    def poison(self, key: str) -> None:
        self.memory[key][:] = POISON

    def touched(self, key: str, for_s: float = 0.0) -> int:
        """How many bytes of poisoned memory were written to, now or within a time."""
        deadline = time.monotonic() + for_s
        while True:
            count = int(np.count_nonzero(self.memory[key] != POISON))
            if count or time.monotonic() >= deadline:
                return count
            time.sleep(0.001)

    def peek(self, key: str, begin: int, end: int) -> bytes:
        return self.memory[key][begin:end].tobytes()

    def poke(self, key: str, begin: int, data: bytes) -> None:
        self.memory[key][begin : begin + len(data)] = np.frombuffer(data, np.uint8)

    # Transfers.

    def prepare(
        self, key: str, operation: str, peer: str, local: list[list[Any]], remote: bytes, **options: Any
    ) -> None:
        """A transfer between [memory, begin, end] of ours and descriptors, not posted."""
        from penstock.transfer import Descriptors

        ours = self.agent.prepare([self.memory[name][begin:end] for name, begin, end in local])
        theirs = self.agent.peers[peer].prepare(Descriptors.from_bytes(remote))
        self.transfers[key] = self.agent.transfer(operation, ours, theirs, **options)

    def post(self, key: str, notify: bytes | None = None) -> str:
        transfer = self.transfers[key]
        if notify is None:
            transfer.post()
        else:
            transfer.post(notify)
        return transfer.state

    def state(self, key: str) -> str:
        transfer = self.transfers[key]
        transfer.poll()
        return transfer.state

    def wait(self, key: str, timeout_s: float | None = None) -> str:
        self.transfers[key].wait(timeout_s=timeout_s)
        return self.transfers[key].state

    def release(self, key: str) -> None:
        self.transfers.pop(key).close()

    def move(self, operation: str, peer: str, local: list[list[Any]], remote: bytes, **options: Any) -> str:
        """Prepares, posts and waits; returns the state, which is DONE."""
        notify = options.pop("notify", None)
        self.prepare("move", operation, peer, local, remote, **options)
        try:
            self.post("move", notify)
            return self.wait("move")
        finally:
            self.release("move")

    def repeat(self, key: str, for_s: float, notify: bytes | None = None) -> dict[str, Any]:
        """Posts a transfer again and again until it fails or the time is up; returns how it went."""
        done, deadline = 0, time.monotonic() + for_s
        while time.monotonic() < deadline:
            try:
                self.post(key, notify)
                self.wait(key)
            except Exception as error:
                return {"done": done, "error": type(error).__name__, "text": str(error)}
            done += 1
        return {"done": done, "error": None, "text": ""}

    def notify(self, peer: str, message: bytes, timeout_s: float | None = None) -> None:
        self.agent.notify(peer, message, timeout_s=timeout_s)

    def notifications(self) -> list[list[Any]]:
        return [[one.sender, one.message] for one in self.agent.notifications()]

    def wait_notification(self, timeout_s: float | None = None) -> list[list[Any]]:
        return [[one.sender, one.message] for one in self.agent.wait_notification(timeout_s=timeout_s)]

    # The process.

    def census(self) -> dict[str, Any]:
        """What the process holds."""
        gc.collect()
        links = []
        for entry in os.listdir("/proc/self/fd"):
            with contextlib.suppress(OSError):
                links.append(os.readlink(f"/proc/self/fd/{entry}"))
        maps = Path("/proc/self/maps").read_text().splitlines()
        return {
            "fds": len(links) - 1,  # one is the listing's own
            "kinds": sorted(link.split(":")[0] for link in links),
            "threads": len(os.listdir("/proc/self/task")),
            "segments": sum("memfd:penstock" in line for line in maps),
            "rss_bytes": int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE"),
            "children": Path(f"/proc/self/task/{os.getpid()}/children").read_text().split(),
            "cpu_s": time.process_time(),
        }

    def signal_handlers(self) -> dict[str, str]:
        """The handlers that the kernel knows: masks of ignored and caught signals."""
        lines = Path("/proc/self/status").read_text().splitlines()
        return dict(line.split(":\t") for line in lines if line.startswith(("SigIgn", "SigCgt")))

    def fork(self, code: str) -> int:
        """Starts a child that runs the code, with `acts`, and ends with 0, or with 1 where it raises; or with us."""
        mother = os.getpid()
        child = os.fork()
        if child:
            return child

        def orphaned() -> None:
            while os.getppid() == mother:
                time.sleep(0.2)
            os._exit(2)

        threading.Thread(target=orphaned, daemon=True).start()
        try:
            self.run(code)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)

    def reap(self, child: int, within_s: float = 10.0) -> int:
        """The exit status of a child, as `os.waitpid` gives it; one that doesn't end says where it stands."""
        deadline = time.monotonic() + within_s
        while True:
            found, status = os.waitpid(child, os.WNOHANG)
            if found:
                return status
            if time.monotonic() > deadline:
                os.kill(child, signal.SIGUSR1)
                time.sleep(0.5)
                os.kill(child, signal.SIGKILL)
                raise TimeoutError(f"child {child} doesn't end within {within_s} s; its stacks are in standard error")
            time.sleep(0.001)

    def run(self, code: str) -> Any:
        """Runs a function body with `acts`; what only one test needs. Its ``return`` is the answer."""
        names: dict[str, Any] = {"np": np, "os": os, "time": time, "threading": threading, "gc": gc}
        body = "\n".join("    " + line for line in code.splitlines())
        exec(f"def _act(acts, agent):\n{body}", names)
        return names["_act"](self, self.agent)


def _to_json(value: Any) -> Any:
    if isinstance(value, bytes | bytearray | memoryview):
        return {"b64": base64.b64encode(value).decode()}
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(type(value))


def _from_json(value: dict[str, Any]) -> Any:
    return base64.b64decode(value["b64"]) if value.keys() == {"b64"} else value


def main() -> None:
    # What third parties print must not stand between our lines.
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    faulthandler.enable()
    faulthandler.register(signal.SIGUSR1, all_threads=True)
    acts, lock = Acts(), threading.Lock()

    def perform(line: dict[str, Any]) -> None:
        try:
            answer = {"id": line["id"], "gives": getattr(acts, line["act"])(**line["with"])}
        except BaseException as error:
            kinds = [kind.__name__ for kind in type(error).__mro__]
            answer = {"id": line["id"], "error": kinds[0], "kinds": kinds, "text": str(error)}
        with lock:
            out.write(json.dumps(answer, default=_to_json) + "\n")
            out.flush()

    for text in sys.stdin:
        line = json.loads(text, object_hook=_from_json)
        if line["act"] == "end":
            break
        if line["aside"]:
            threading.Thread(target=perform, args=(line,), daemon=True).start()
        else:
            perform(line)


if __name__ == "__main__":
    main()
