"""All-to-all over HMC sessions: block p of rank r's ``send`` is block r of rank p's ``recv``."""

import socket
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hmc_party import PATIENCE_S, Party
from penstock.compat import hmc
from penstock.compat.hmc.group import Member
from penstock.errors import ConfigError
from puppet import PuppetError
from server_process import free_ports

torch = pytest.importorskip("torch")

IP = "127.0.0.1"
SIZE = 1 << 16
UCX, RDMA = hmc.ConnType.UCX, hmc.ConnType.RDMA
CPU, GPU, MLU = hmc.MemoryType.CPU, hmc.MemoryType.NVIDIA_GPU, hmc.MemoryType.CAMBRICON_MLU


def ranks(world, folder):
    """Groups of this many ranks, each with a session and a thread of its own; not connected yet."""
    sessions = [hmc.create_session(buffer_size=SIZE, timeout_s=10) for _ in range(world)]
    members = []
    for rank, session in enumerate(sessions):
        session.init_server(
            bind_ip=IP, ucx_port=0, rdma_port=0, ctrl_tcp_port=0, self_id=rank, ctrl_uds_dir=str(folder)
        )
        members.append(Member(rank, world, IP, session.ports[UCX], 1, session.ctrl_port, CPU, 0, SIZE))
    return [hmc.Group(session, rank, members[::-1]) for rank, session in enumerate(sessions)]


@pytest.fixture(scope="module", params=[1, 2, 3, 5])
def groups(request, tmp_path_factory):
    made = ranks(request.param, tmp_path_factory.mktemp("control"))
    yield made
    for group in made:
        group.session.close()


def together(groups, call):
    with ThreadPoolExecutor(len(groups)) as pool:
        return list(pool.map(call, groups))


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    block=st.integers(0, 3000),
    algo=st.sampled_from(["auto", "direct", "ring"]),
    conn=st.sampled_from(["auto", "ucx", UCX]),
    send_bias=st.integers(0, 100),
    gap=st.none() | st.integers(0, 100),
    chunk=st.integers(1, 4000),
    self_copy=st.booleans(),
    seed=st.integers(0, 1 << 20),
)
def test_e2_127_alltoall_is_the_transpose_of_blocks(groups, block, algo, conn, send_bias, gap, chunk, self_copy, seed):
    world, chunk = len(groups), max(chunk, block // 20)
    sent = np.random.default_rng(seed).integers(0, 256, (world, world, block), dtype=np.uint8)
    received = np.full_like(sent, 7)
    recv_bias = None if gap is None else send_bias + world * block + gap
    options = {"algo": algo, "conn": conn, "send_bias": send_bias, "recv_bias": recv_bias, "chunk_bytes": chunk}
    together(
        groups,
        lambda group: hmc.alltoall(
            group, sent[group.rank], received[group.rank], **options, do_self_copy=self_copy
        ),
    )  # fmt: skip
    expected = sent.transpose(1, 0, 2).copy()
    if not self_copy:
        for rank in range(world):
            expected[rank, rank] = 7
    assert np.array_equal(received, expected)


def test_e2_127_tensors_and_recv_before_send(groups):
    world = len(groups)
    sent = torch.arange(world * world * 6, dtype=torch.bfloat16).reshape(world, world, 6)
    received = torch.zeros_like(sent)
    total = world * 12
    together(
        groups,
        lambda group: hmc.alltoall(
            group, sent[group.rank], received[group.rank], send_bias=total, recv_bias=0, algo="ring"
        ),
    )  # fmt: skip
    assert torch.equal(received, sent.transpose(0, 1))


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"recv": bytearray(9)}, "send has 10 bytes and recv 9"),
        ({"send": bytes(9), "recv": bytearray(9)}, "9 bytes can't be cut into 2 equal blocks"),
        ({"send_bias": SIZE - 19}, f"don't fit the buffer of rank 0, which has {SIZE}"),
        ({"recv_bias": SIZE - 9}, "don't fit the buffer"),
        ({"send_bias": -1}, "overlap or begin before"),
        ({"recv_bias": 9}, "overlap or begin before"),
        ({"algo": "tree"}, "algo is 'tree'; give 'auto', 'direct' or 'ring'"),
        ({"conn": "tcp"}, "conn is 'tcp'; give 'auto', 'ucx', 'rdma' or a ConnType"),
        ({"chunk_bytes": 0}, "chunk_bytes is 0"),
        ({"recv": bytes(10)}, "read-only"),
        ({"recv": np.empty(20, np.uint8)[::2]}, "not contiguous"),
    ],
)
def test_e2_127_what_cant_be_exchanged_is_a_value_error_before_anything_moves(tmp_path, change, why):
    one, two = ranks(2, tmp_path)
    arguments = {"send": bytes(10), "recv": bytearray(10), **change}
    with pytest.raises(ValueError, match=why):
        hmc.alltoall(one, arguments.pop("send"), arguments.pop("recv"), **arguments)
    for group in (one, two):
        group.session.close()


def test_a_rank_that_doesnt_come_is_an_error_at_the_deadline(tmp_path):
    one, two = ranks(2, tmp_path)
    one.session.close()
    with hmc.create_session(buffer_size=SIZE, timeout_s=0.3) as hasty:
        alone = hmc.Group(hasty, 0, one.members)
        with pytest.raises(hmc.HMCStatusError, match="TIMEOUT"):
            hmc.alltoall(alone, bytes(10), bytearray(10))
    two.session.close()


def test_ranks_are_0_to_world_each_once():
    def member(rank, mem_type=CPU):
        return Member(rank, 3, IP, 1, 2, 3, mem_type, 0, SIZE)

    group = hmc.Group(None, 1, [member(2), member(0), member(1)])
    assert (group.me.rank, group.left.rank, group.right.rank, group.peer(2).rank) == (1, 0, 2, 2)
    for bad in ([0, 2], [1, 2, 3], [0, 0, 1], []):
        with pytest.raises(ValueError, match="give 0 to world - 1, each once"):
            hmc.Group(None, 0, [member(rank) for rank in bad])
    with pytest.raises(ConfigError):
        group.peer(3)
    kinds = {(CPU, CPU): UCX, (CPU, GPU): UCX, (GPU, GPU): UCX, (GPU, hmc.MemoryType.AMD_GPU): RDMA, (CPU, MLU): RDMA}
    for (ours, theirs), conn in kinds.items():
        pair = hmc.Group(None, 0, [member(0, ours), member(1, theirs)])
        assert pair.conn_with(pair.right) is conn


RANK = """
import os, torch, torch.distributed as dist
from penstock.compat import hmc
os.environ["GLOO_SOCKET_IFNAME"] = "lo"
def begin(rank, world, file, ports, folder, **more):
    global group, session
    dist.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=world)
    session = hmc.create_session(buffer_size=1 << 20, timeout_s=20)
    ucx, rdma, control = ports
    group = hmc.init_group(session=session, my_ip="127.0.0.1", port_ucx=ucx, port_rdma=rdma, port_ctrl=control,
                           ctrl_uds_dir=folder, **more)
def exchange(algo):
    world, rank = dist.get_world_size(), dist.get_rank()
    send = torch.arange(world * 5, dtype=torch.float32) + 100 * rank
    recv = torch.empty_like(send)
    hmc.alltoall(group, send, recv, algo=algo)
    expected = torch.cat([torch.arange(5, dtype=torch.float32) + 100 * p + 5 * rank for p in range(world)])
    return torch.equal(recv, expected)
"""


@pytest.fixture(scope="module")
def parties():
    """Three processes that are about to be ranks."""
    with Party() as one, Party() as two, Party() as three:
        for each in [party.start(RANK) for party in (one, two, three)]:
            each.result(PATIENCE_S)
        yield one, two, three


def begin(parties, tmp_path, ports):
    """Starts to make a group of these processes."""
    world, store = len(parties), tmp_path / "store"
    return [
        party.start(f"begin({rank}, {world}, {str(store)!r}, {ports[rank::world]}, {str(tmp_path)!r})")
        for rank, party in enumerate(parties)
    ]


def test_e2_127_ranks_of_torch_distributed_exchange_blocks(parties, tmp_path):
    with pytest.raises(PuppetError, match="call torch.distributed.init_process_group first"):
        parties[0].do("hmc.init_group(session=None, my_ip='127.0.0.1', port_ucx=1, port_rdma=2, port_ctrl=3)")
    for each in begin(parties, tmp_path, free_ports(9)):
        each.result(PATIENCE_S)
    assert [party.value("[member.rank for member in group.members]") for party in parties] == [[0, 1, 2]] * 3
    for algo in ("direct", "ring", "auto"):
        done = [party.begin("run", code=f"return acts.names['exchange']({algo!r})") for party in parties]
        assert [each.result(PATIENCE_S) for each in done] == [True] * 3
    parties[0].do("session.ctrl_send(1, 7)")
    done = [party.start("exchange('direct')") for party in parties]
    with pytest.raises(PuppetError, match=r"rank 0 of group 'default' sent tag 0x7 where 0xa2a\w+ is due"):
        done[1].result(PATIENCE_S)
    for party in parties:
        party.do("session.close(); dist.destroy_process_group()")  # the others needn't wait for their deadline


def test_all_ranks_learn_that_one_cant_take_part(parties, tmp_path):
    ports = free_ports(6)
    with socket.create_server((IP, ports[0])):
        for each in begin(parties[:2], tmp_path, ports):
            with pytest.raises(PuppetError, match=f"rank 0 can't take part: .*:{ports[0]}: somebody listens there"):
                each.result(PATIENCE_S)
    for party in parties[:2]:
        party.do("session.close(); dist.destroy_process_group()")
