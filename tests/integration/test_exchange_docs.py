"""What docs/transfers.md says about carrying metadata, run."""

from __future__ import annotations

import re
import threading
from pathlib import Path

import pytest

from penstock.transfer import Agent
from penstock.transfer.exchange import WHOLE, EtcdExchange, Limits
from penstock.transfer.exchange import server as key_values
from penstock.transfer.exchange.frames import MOST_BODY_BYTES
from server_process import free_ports

PAGE = (Path(__file__).parents[2] / "docs" / "transfers.md").read_text()
SECTION = PAGE.split("## Carrying metadata")[1].split("\n## ")[0]
BLOCKS = re.findall(r"^```python\n(.*?)^```", SECTION, re.MULTILINE | re.DOTALL)


def run(block):
    names = {}
    try:
        exec(compile(block, "docs/transfers.md", "exec"), names)
        return names["prefill"].peers, names["decode"].peers
    finally:
        for name in ("listener", "server", "decode", "prefill"):
            if name in names:
                names[name].close()


def test_sockets():
    prefills, decodes = run(BLOCKS[0])
    assert list(prefills) == ["decode"]
    assert not decodes


def test_the_key_value_server():
    (port,) = free_ports(1)
    prefills, _ = run(BLOCKS[1].replace("9998", str(port)))
    assert list(prefills) == ["decode"]


def test_etcd_in_the_servers_place(etcd_server, etcd_namespace):
    block = re.sub(r"^server = .*\n|^server\.close.*\n", "", BLOCKS[1], flags=re.MULTILINE)
    made = f"EtcdExchange({etcd_server.endpoint!r}, namespace={etcd_namespace!r})"
    prefills, _ = run(re.sub(r"KeyValueExchange\(KeyValueClient.*", made, block))
    assert list(prefills) == ["decode"]


def test_an_agent_forgets_who_is_removed_from_etcd(etcd_server, etcd_namespace):
    with (
        EtcdExchange(etcd_server.endpoint, namespace=etcd_namespace) as exchange,
        Agent("decode") as decode,
        Agent("prefill") as prefill,
    ):
        exchange.publish("decode", WHOLE, decode.metadata())
        prefill.add_peer(exchange.retrieve("decode", WHOLE, timeout_s=5.0))
        forgotten = threading.Event()
        with exchange.watch_removals(lambda name: (prefill.remove_peer(name), forgotten.set())) as watch:
            watch.follow("decode")
            assert list(prefill.peers) == ["decode"]
            exchange.remove("decode")
            assert forgotten.wait(10)
        assert not prefill.peers


@pytest.mark.parametrize(
    ("said", "is_"),
    [
        ("16 MiB, in base64", key_values.MOST_LINE_BYTES == 16 << 20),
        ("| 64 MiB |", MOST_BODY_BYTES == 64 << 20),
        ("65,536 keys, 256 MiB", (key_values.MOST_KEYS, key_values.MOST_TOTAL_BYTES) == (65536, 256 << 20)),
        ("| connections | 256;", Limits().connections == 256),
        ("| a request that stands still | 5 s | 5 s |", Limits().stall_timeout_s == 5.0),
    ],
)
def test_the_limits_are_those_of_the_code(said, is_):
    assert said in SECTION
    assert is_
