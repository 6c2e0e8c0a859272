"""A transport that is required is the one that moves the bytes, or nothing moves."""

from __future__ import annotations

import pytest

from penstock.errors import ConfigError, TransportUnavailable
from penstock.transfer import Agent
from penstock.transfer.network_plane import has_rdma_device, uses


def _write(agent: Agent, owner: Agent) -> str:
    memory = owner.register(owner.allocate(4096))
    ours = agent.register(bytearray(4096))
    transfer = agent.write(ours.descriptors, agent.add_peer(owner.metadata()).prepare(memory.descriptors))
    transfer.wait()
    return transfer.transport


@pytest.mark.skipif(has_rdma_device(), reason="this machine has RDMA")
def test_rdma_that_is_required_and_not_there_is_refused_instead_of_tcp():
    refused = pytest.raises(TransportUnavailable, match=r"owner is reached over tcp/lo, but require='rdma'")
    with (
        Agent("owner", network="loopback") as owner,
        Agent("agent", network="loopback", require="rdma") as agent,
        refused,
    ):
        _write(agent, owner)


def test_tcp_that_is_required_is_taken_even_where_memory_could_be_shared():
    with Agent("owner", network="loopback") as owner, Agent("agent", network="loopback", require="tcp") as agent:
        assert _write(agent, owner) == "ucx:tcp/lo"


def test_shared_memory_that_is_required_is_taken():
    with Agent("owner", network="loopback") as owner, Agent("agent", network="loopback", require="shm") as agent:
        assert _write(agent, owner) == "shm"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"require": "RDMA"}, r"require is 'RDMA'; give one of 'shm', 'tcp', 'rdma', or None"),
        ({"require": "rdma"}, r"require is 'rdma', which needs the network plane; open it with network="),
        ({"require": "tcp"}, r"require is 'tcp', which needs the network plane"),
    ],
)
def test_what_could_never_be_is_refused_at_once(arguments, message):
    with pytest.raises(ConfigError, match=message):
        Agent("agent", **arguments)


@pytest.mark.parametrize(
    ("require", "transport", "expected"),
    [
        ("rdma", "rc_mlx5/mlx5_0:1", True),
        ("rdma", "tcp/eth0,dc_mlx5/mlx5_0:1", True),
        ("rdma", "ud_verbs/mlx5_0:1", True),
        ("rdma", "srd/rdmap0s6:1", True),
        ("rdma", "rc/mlx5_0:1", True),
        ("rdma", "tcp/rc_mlx5", False),
        ("rdma", "sysv/memory,posix/memory", False),
        ("rdma", "", False),
        ("tcp", "tcp/lo", True),
        ("tcp", "rc_mlx5/mlx5_0:1", False),
    ],
)
def test_which_connections_have_what_is_required(require, transport, expected):
    assert uses(require, transport) is expected
