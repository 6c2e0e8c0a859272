"""How many lease operations a coordinator does a second on one core: its seat alone, and all of it through gRPC, by
a conversation with each node, as our nodes have them, or by calls, as MX8's make them.

    python bench/coordinator.py [--nodes 64] [--operations 20000] [--journal file|memory]

An operation is a request for a lease, a report of progress or a report that a lease is done, each kept in the journal
before it is answered. What counts is processor time of the coordinator's process (user and system, all its threads, the
writing to its journal included), so that what else the machine does hardly shows; wall time stands beside it.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from penstock.coordinator.events import Granted, Progress, Register, RequestLease
from penstock.coordinator.journal.opening import open_journal
from penstock.coordinator.seat import Seat
from penstock.coordinator.server import CoordinatorServer, Settings
from penstock.coordinator.state import Caps, Job, Terms

BLOCK = 65536
REPORTS = 3  # of progress in a lease, the last one of which completes it


def job_for(nodes: int, operations: int) -> Job:
    leases = max(nodes, operations // (1 + REPORTS))
    return Job("m" * 64, leases * BLOCK, BLOCK, world_size=nodes)


def processor_s() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


async def drive_seat(seat: Seat, node_id: str) -> int:
    """One node, as its messages would come: operations that it did."""
    count = 0
    while True:
        granted = await seat.do(RequestLease("job", node_id, 1, node_id, str(count)))
        assert isinstance(granted, Granted)
        if not granted.leases:
            return count
        count += 1
        (lease,) = granted.leases
        for step in range(1, REPORTS + 1):
            cursor = lease.start + (lease.end - lease.start) * step // REPORTS
            await seat.do(Progress("job", node_id, lease.lease_id, cursor, 1, 1, node_id, lease.fence))
            count += 1


async def bench_seat(nodes: int, operations: int, journal: str) -> dict[str, float]:
    seat = Seat(
        open_journal(journal, job_id="job", address="127.0.0.1:1"), job_for(nodes, operations), Terms(lease_ttl_s=600)
    )
    running = asyncio.ensure_future(seat.run())
    while not seat.leads:
        await asyncio.sleep(0.01)
    for number in range(nodes):
        await seat.do(Register("job", f"n{number}", Caps(), f"n{number}"))
    began, began_cpu = time.perf_counter(), processor_s()
    counts = await asyncio.gather(*(drive_seat(seat, f"n{number}") for number in range(nodes)))
    wall, cpu = time.perf_counter() - began, processor_s() - began_cpu
    assert seat.state is not None and seat.state.course.phase == "drained"
    await seat.close()
    await running
    return {"operations": sum(counts), "wall_s": wall, "cpu_s": cpu}


async def serve(nodes: int, operations: int, journal: str) -> None:
    """A coordinator that says its address, and at the end of stdin what it took."""
    settings = Settings(addr="127.0.0.1:0", journal=journal)
    server = CoordinatorServer(settings, job_for(nodes, operations), Terms(lease_ttl_s=600))
    running = asyncio.ensure_future(server.run())
    while not server.seat.leads:
        await asyncio.sleep(0.01)
    loop = asyncio.get_running_loop()
    print(server.addr, flush=True)
    while await loop.run_in_executor(None, sys.stdin.readline):
        print(json.dumps({"cpu_s": processor_s()}), flush=True)
    server.stop()
    await running


async def drive_grpc(addr: str, count: int, *, calls: bool) -> int:
    import grpc

    from penstock.coordinator.wire import coordinator_pb2 as wire
    from penstock.coordinator.wire.coordinator_pb2_grpc import CoordinatorStub

    async def node(node_id: str) -> int:
        done = 0
        conversation = None if calls else stub.Converse()

        async def say(what: str, message: Any) -> Any:
            if conversation is None:
                return await (stub.RequestLease if what == "request" else stub.ReportProgress)(message)
            await conversation.write(wire.Saying(**{what: message}))
            answer = await conversation.read()
            assert not answer.refused, answer.reason
            return answer.granted

        while True:
            fields = {"job_id": "job", "node_id": node_id, "instance": node_id}
            granted = await say("request", wire.RequestLeaseRequest(**fields, want=1, request=str(done)))
            if not granted.leases:
                return done
            done += 1
            (lease,) = granted.leases
            start, size = lease.range.start_id, lease.range.end_id - lease.range.start_id
            for step in range(1, REPORTS + 1):
                cursor = start + size * step // REPORTS
                report = wire.ReportProgressRequest(**fields, lease_id=lease.lease_id, cursor=cursor, fence=lease.fence)
                await say("progress", report)
                done += 1

    async with grpc.aio.insecure_channel(addr) as channel:
        stub = CoordinatorStub(channel)
        names = [f"n{number}" for number in range(count)]
        for name in names:
            caps = wire.NodeCaps(max_ram_bytes=1)
            await stub.RegisterNode(wire.RegisterNodeRequest(job_id="job", node_id=name, instance=name, caps=caps))
        return sum(await asyncio.gather(*map(node, names)))


def bench_grpc(nodes: int, operations: int, journal: str, *, calls: bool) -> dict[str, float]:
    command = [sys.executable, __file__, "--serve", f"--nodes={nodes}", f"--operations={operations}"]
    pipe = subprocess.PIPE
    with subprocess.Popen([*command, f"--at={journal}"], stdin=pipe, stdout=pipe, text=True) as server:
        assert server.stdin is not None and server.stdout is not None
        addr = server.stdout.readline().strip()

        def cpu() -> float:
            server.stdin.write("\n")
            server.stdin.flush()
            return float(json.loads(server.stdout.readline())["cpu_s"])

        before, began = cpu(), time.perf_counter()
        count = asyncio.run(drive_grpc(addr, nodes, calls=calls))
        wall, used = time.perf_counter() - began, cpu() - before
        server.stdin.close()
    return {"operations": count, "wall_s": wall, "cpu_s": used}


def show(what: str, found: dict[str, float]) -> None:
    count, wall, cpu = found["operations"], found["wall_s"], found["cpu_s"]
    print(
        f"{what:<28} {count:>8,.0f} operations  {count / cpu:>7,.0f}/s of processor time "
        f"({cpu / count * 1e6:,.0f} us each)  {count / wall:>7,.0f}/s of wall time",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", type=int, default=64)
    parser.add_argument("--operations", type=int, default=20_000)
    parser.add_argument("--journal", choices=("file", "memory"), default="file")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--only", choices=("seat", "grpc"))
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--at", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.serve:
        asyncio.run(serve(asked.nodes, asked.operations, asked.at))
        return
    print(f"{asked.nodes} nodes, journal: {asked.journal}, {os.cpu_count()} cores")
    for run in range(asked.runs):
        with tempfile.TemporaryDirectory() as folder:
            names = ("seat", "conversations", "calls")
            paths = [f"{Path(folder) / name}" if asked.journal == "file" else "memory:" for name in names]
            if asked.only != "grpc":
                show(f"run {run + 1}, seat alone", asyncio.run(bench_seat(asked.nodes, asked.operations, paths[0])))
            if asked.only != "seat":
                for way, path in zip(("conversations", "calls"), paths[1:], strict=True):
                    found = bench_grpc(asked.nodes, asked.operations, path, calls=way == "calls")
                    show(f"run {run + 1}, gRPC {way}", found)


if __name__ == "__main__":
    main()
