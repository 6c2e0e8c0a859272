"""Ranks that are all connected with each other: made from torch.distributed, which they are told of one another by."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any

from penstock.compat.hmc.enums import ConnType, MemoryType
from penstock.compat.hmc.errors import HMCError
from penstock.compat.hmc.session import Session
from penstock.errors import ConfigError, MetadataError, PenstockError

__all__ = ["Group", "Member", "init_group"]

_RECORD_BYTES = 1024
_READY = 0x6D6565740000_0000


@dataclass(frozen=True, slots=True)
class Member:
    """One rank of a group, and how it is reached."""

    rank: int
    world: int
    ip: str
    port_ucx: int
    port_rdma: int
    port_ctrl: int
    mem_type: MemoryType
    device_id: int
    buffer_size: int

    def port(self, conn: ConnType) -> int:
        """Where it listens for this kind of connection."""
        return self.port_ucx if conn is ConnType.UCX else self.port_rdma


class Group:
    """Ranks 0 to world - 1.

    Args:
        session: ours.
        rank: ours.
        members: all of them, in any order.
        group_id: a name, for messages.

    Raises:
        ConfigError: the ranks aren't 0 to world - 1, each once, or ours isn't among them.
    """

    def __init__(self, session: Session, rank: int, members: list[Member], group_id: str = "default") -> None:
        self.session = session
        self.rank = rank
        self.members = sorted(members, key=lambda member: member.rank)
        self.group_id = group_id
        self.exchanges = 0
        ranks = [member.rank for member in self.members]
        if ranks != list(range(len(ranks))) or not 0 <= rank < len(ranks):
            raise ConfigError(f"ranks are {ranks} and ours is {rank}; give 0 to world - 1, each once")

    @property
    def world(self) -> int:
        """How many ranks there are."""
        return len(self.members)

    @property
    def me(self) -> Member:
        """This rank."""
        return self.members[self.rank]

    @property
    def left(self) -> Member:
        """The rank before ours; before rank 0 is the last."""
        return self.members[(self.rank - 1) % self.world]

    @property
    def right(self) -> Member:
        """The rank after ours; after the last is rank 0."""
        return self.members[(self.rank + 1) % self.world]

    def peer(self, rank: int) -> Member:
        """The member of this rank.

        Raises:
            ConfigError: there is none.
        """
        if not 0 <= rank < self.world:
            raise ConfigError(f"rank is {rank}; the group has 0 to {self.world - 1}")
        return self.members[rank]

    def conn_with(self, peer: Member) -> ConnType:
        """The kind of connection that HMC takes for this pair: RDMA for MLU, MUSA and unlike GPUs, else UCX."""
        kinds = {self.me.mem_type, peer.mem_type}
        special = bool(kinds & {MemoryType.CAMBRICON_MLU, MemoryType.MOORE_GPU})
        unlike_gpus = len(kinds) > 1 and MemoryType.CPU not in kinds
        return ConnType.RDMA if special or unlike_gpus else ConnType.UCX

    def connect(self, peer: Member, conn: ConnType) -> None:
        """Connects with a member, data and control; being connected already is a no-op."""
        self.session.connect(
            peer_id=peer.rank,
            self_id=self.rank,
            peer_ip=peer.ip,
            data_port=peer.port(conn),
            ctrl_tcp_port=peer.port_ctrl,
            conn=conn,
        )

    def expect(self, peer: int, tag: int) -> None:
        """Receives a tag, which has to be this one.

        Raises:
            HMCError: it is another.
        """
        found = self.session.ctrl_recv(peer)
        if found != tag:
            raise HMCError(
                f"rank {peer} of group {self.group_id!r} sent tag {found:#x} where {tag:#x} is due; receive your own "
                "tags before a collective call, and make the same calls in the same order on all ranks"
            )


def init_group(
    *,
    session: Session,
    my_ip: str,
    port_ucx: int,
    port_rdma: int,
    port_ctrl: int,
    group_id: str = "default",
    ctrl_tcp_port: int | None = None,
    ctrl_uds_dir: str = "/tmp",
    start_servers: bool = True,
    server_barrier: bool = True,
) -> Group:
    """Connects all ranks of torch.distributed with each other; every rank has to call it.

    Args:
        session: this rank's.
        my_ip: where this rank lets the others in.
        port_ucx: for data by UCX.
        port_rdma: for data by RDMA.
        port_ctrl: for control tags.
        group_id: a name, the same on all ranks.
        ctrl_tcp_port: another name for ``port_ctrl``, which it wins over.
        ctrl_uds_dir: the folder of the control plane's Unix sockets.
        start_servers: False = the session listens already.
        server_barrier: without effect: nobody connects before all have said that they listen.

    Raises:
        HMCError: torch.distributed isn't initialised, or a rank can't be reached.
        ConfigError: the ranks don't agree on the group.
    """
    del server_barrier
    import torch.distributed as dist

    if not dist.is_available() or not dist.is_initialized():
        raise HMCError("torch.distributed is not initialised; call torch.distributed.init_process_group first")
    rank, world = dist.get_rank(), dist.get_world_size()
    port_ctrl = port_ctrl if ctrl_tcp_port is None else ctrl_tcp_port
    problem = ""
    try:
        if start_servers:
            session.init_server(
                bind_ip=my_ip,
                ucx_port=port_ucx,
                rdma_port=port_rdma,
                ctrl_tcp_port=port_ctrl,
                self_id=rank,
                ctrl_uds_dir=ctrl_uds_dir,
            )
    except PenstockError as error:
        problem = str(error)[: _RECORD_BYTES // 2]  # the others are told, or they would wait for us
    buf = session.buf
    me = Member(rank, world, my_ip, port_ucx, port_rdma, port_ctrl, buf.mem_type, buf.device_id, buf.size)
    members = [_member(record, group_id) for record in _gathered({**asdict(me), "group": group_id, "problem": problem})]
    group = Group(session, rank, members, group_id)
    _meet(group)
    return group


def _meet(group: Group) -> None:
    """Every rank dials those below it, and is done when it has heard from all."""
    for peer in group.members[: group.rank]:
        group.connect(peer, group.conn_with(peer))
        group.session.ctrl_send(peer.rank, _READY)
        group.expect(peer.rank, _READY)
    for peer in group.members[group.rank + 1 :]:
        group.expect(peer.rank, _READY)
        group.session.ctrl_send(peer.rank, _READY)


def _member(record: dict[str, Any], group_id: str) -> Member:
    rank, problem, theirs = record.get("rank"), record.pop("problem", ""), record.pop("group", None)
    if problem:
        raise HMCError(f"rank {rank} can't take part: {problem}")
    if theirs != group_id:
        raise ConfigError(f"group_id is {group_id!r} here and {theirs!r} on rank {rank}; give the same")
    try:
        return Member(**{**record, "mem_type": MemoryType(record["mem_type"])})
    except (KeyError, TypeError, ValueError) as error:
        raise MetadataError(f"rank {rank} says {record}, which is no member's record") from error


def _gathered(record: dict[str, Any]) -> list[dict[str, Any]]:
    """What every rank says of itself, as text in arrays of one size: torch's own way for objects is pickle."""
    import torch
    import torch.distributed as dist

    text = json.dumps(record).encode()
    if len(text) > _RECORD_BYTES:
        raise ConfigError(f"a member's record takes {len(text)} bytes, at most {_RECORD_BYTES}; use shorter names")
    where = "cuda" if dist.get_backend() == "nccl" else "cpu"
    mine = torch.frombuffer(bytearray(text.ljust(_RECORD_BYTES)), dtype=torch.uint8).to(where)
    everyones = [torch.empty_like(mine) for _ in range(dist.get_world_size())]
    dist.all_gather(everyones, mine)
    found = [json.loads(bytes(each.cpu().numpy())) for each in everyones]
    if not all(isinstance(each, dict) for each in found):
        raise MetadataError("a rank sent something that is no member's record")
    return found
