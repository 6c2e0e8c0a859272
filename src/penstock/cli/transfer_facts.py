"""What ``penstock doctor`` finds out about memory transfers: what leads to other processes and hosts from here."""

from __future__ import annotations

import json
import os
import re
import resource
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import numpy as np

from penstock import _core
from penstock.cli.facts import Fact
from penstock.sizes import format_bytes
from penstock.transfer.host import this_host
from penstock.transfer.network_plane import Ucx, choose_ucx, find_ucx, has_rdma_device

__all__ = ["huge_pages_at", "transfer_facts", "transports_in"]

_TOPIC: Final = "transfers"
_CHILD_S: Final = 20.0
_PROBE_BYTES: Final = 4 << 20  # two huge pages, should there be any
_PAGES: Final = Path("/sys/kernel/mm/transparent_hugepage")
_REACH: Final = """
import sys
from penstock import _core
print(_core.can_reach_process(int(sys.argv[1]), int(sys.argv[2])))
"""
# UCX changes handlers of signals when it is loaded, so a child loads it.
_VERSION: Final = """
import ctypes, json, sys
library = ctypes.CDLL(sys.argv[1], ctypes.RTLD_GLOBAL)
library.ucp_get_version_string.restype = ctypes.c_char_p
print(json.dumps(library.ucp_get_version_string().decode()))
"""


def transfer_facts() -> Iterator[Fact]:
    """Everything about memory transfers on this machine; nothing is connected to, no setting is changed."""
    yield _same_host()
    yield _process_memory()
    yield from _ucx()
    yield _rdma()
    yield _locked_memory()
    yield _user_pages()
    yield _segment_pages()


def _same_host() -> Fact:
    if not this_host().boot_id:
        advice = "let /proc/sys/kernel/random/boot_id be read; until then agents here meet over the network only"
        return Fact(_TOPIC, "on this host", "no: which host this is can't be read", "note", advice)
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as probe:
            probe.bind(f"\0penstock/doctor/{os.getpid()}")
        _core.Segment.create(1)
        os.close(os.pidfd_open(os.getpid()))
    except OSError as error:
        return Fact(_TOPIC, "on this host", f"no: {error}", "note", "needs Unix sockets, memfd and pidfd")
    return Fact(_TOPIC, "on this host", "yes: shared memory (shm) for what allocate() gave")


def _process_memory() -> Fact:
    """Tried by a child on us, for a child's own memory may be open to us where that of strangers isn't."""
    probe = np.zeros(1, np.uint8)
    printed = _child(_REACH, str(os.getpid()), str(probe.ctypes.data))
    name = "other memory on this host"
    if printed == "True":
        return Fact(_TOPIC, name, "yes: process_vm_readv and process_vm_writev (shm+process_vm)")
    advice = "allow ptrace among processes of one user (kernel.yama.ptrace_scope=0), or use allocate()"
    return Fact(_TOPIC, name, "no: the kernel forbids it; such memory goes by UCX, or not at all", "note", advice)


def _ucx() -> Iterator[Fact]:
    found = find_ucx()
    chosen = choose_ucx(found, rdma_device=has_rdma_device())
    if chosen is None:
        yield Fact(
            _TOPIC, "between hosts", "no: no UCX found", "note", "pip install penstock[ucx], or the system's UCX"
        )
        return
    if not hasattr(_core, "Network"):
        advice = "install libucx-cu12 and build it again"
        yield Fact(_TOPIC, "between hosts", "no: this Penstock was built without UCX's headers", "note", advice)
    for ucx in found:
        mark = "will be used" if ucx == chosen else "not used"
        version = _version(ucx)
        rdma = "with RDMA" if ucx.speaks_rdma else "without RDMA"
        shown = f"{version or 'damaged'}, {rdma}, {ucx.path}, {mark}"
        yield Fact(_TOPIC, f"UCX ({ucx.source})", shown, "ok" if version else "note")
    offered = _transports(chosen)
    yield Fact(_TOPIC, "UCX's transports", ", ".join(offered) or "unknown: there is no ucx_info beside it")


def _version(ucx: Ucx) -> str:
    printed = _child(_VERSION, ucx.path)
    return str(json.loads(printed)) if printed else ""


def _transports(ucx: Ucx) -> list[str]:
    library = Path(ucx.path)
    for tool in (library.parent.parent / "bin" / "ucx_info", Path("/usr/bin/ucx_info")):
        if tool.exists() and (ucx.source == "system" or tool.is_relative_to(library.parent.parent)):
            return transports_in(_run([str(tool), "-d"], LD_LIBRARY_PATH=str(library.parent)))
    return []


def transports_in(text: str) -> list[str]:
    """The transports and their devices (``tcp/eth0``) in what ``ucx_info -d`` prints (pure)."""
    pairs = re.findall(r"Transport: (\S+)\s+#\s+Device: (\S+)", text)
    return list(dict.fromkeys(name if device == "memory" else f"{name}/{device}" for name, device in pairs))


def _rdma() -> Fact:
    devices = sorted(path.name for path in Path("/sys/class/infiniband").glob("*"))
    if not devices:
        return Fact(_TOPIC, "RDMA", "no: the kernel knows no device")
    if not any(ucx.speaks_rdma for ucx in find_ucx()):
        advice = "install the system's UCX, which is built with RDMA; wheels aren't"
        return Fact(_TOPIC, "RDMA", f"no: there is {', '.join(devices)}, but no UCX that speaks it", "note", advice)
    return Fact(_TOPIC, "RDMA", f"yes: {', '.join(devices)}")


def _locked_memory() -> Fact:
    limit, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    if limit == resource.RLIM_INFINITY:
        return Fact(_TOPIC, "locked memory", "no limit")
    shown = f"at most {format_bytes(limit)}"
    if has_rdma_device() and os.geteuid() != 0:
        advice = "ulimit -l unlimited: RDMA locks what is registered"
        return Fact(_TOPIC, "locked memory", shown, "note", advice)
    return Fact(_TOPIC, "locked memory", f"{shown}; only RDMA locks any")


def _user_pages() -> Fact:
    try:
        text = (_PAGES / "enabled").read_text()
    except OSError:
        text = ""
    chosen = text.partition("[")[2].partition("]")[0] or "unknown"
    advice = f"`madvise` in {_PAGES / 'enabled'} lets arrays be copied faster" if chosen == "never" else ""
    return Fact(_TOPIC, "huge pages, your arrays", f"{chosen} (THP)", "note" if advice else "ok", advice)


def _segment_pages() -> Fact:
    """Tried, for what the setting says isn't what one gets."""
    segment = _core.Segment.create(_PROBE_BYTES)
    view = np.asarray(memoryview(segment))
    view.fill(1)
    try:
        got = huge_pages_at(Path("/proc/self/smaps").read_text(), segment.address)
    except OSError:
        got = None
    name, of = "huge pages, allocate()", format_bytes(_PROBE_BYTES)
    if got is None:
        return Fact(_TOPIC, name, "unknown: /proc/self/smaps can't be read")
    advice = "" if got else f"`advise` in {_PAGES / 'shmem_enabled'}; large copies then take less time"
    return Fact(_TOPIC, name, f"{format_bytes(got)} of {of} that were tried", "ok" if got else "note", advice)


def huge_pages_at(smaps: str, address: int) -> int | None:
    """Bytes on huge pages in the mapping at an address, from the text of ``/proc/<pid>/smaps`` (pure)."""
    inside = False
    for line in smaps.splitlines():
        if found := re.match(r"([0-9a-f]+)-([0-9a-f]+) ", line):
            inside = int(found[1], 16) <= address < int(found[2], 16)
        elif inside and line.startswith("ShmemPmdMapped:"):
            return int(line.split()[1]) * 1024
    return None


def _child(code: str, *arguments: str) -> str:
    return _run([sys.executable, "-c", code, *arguments], UCX_DEBUG_SIGNO="", UCX_LOG_LEVEL="fatal").strip()


def _run(command: list[str], **environment: str) -> str:
    """What it prints; nothing when it fails."""
    try:
        done = subprocess.run(
            command, env={**os.environ, **environment}, capture_output=True, text=True, timeout=_CHILD_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return "" if done.returncode else done.stdout
