"""All-to-all: block p of rank r's ``send`` becomes block r of rank p's ``recv``."""

from __future__ import annotations

from typing import Any

from penstock.compat.hmc.enums import ConnType
from penstock.compat.hmc.group import Group, Member
from penstock.compat.hmc.payload import byte_count, is_device_tensor, is_tensor, writable
from penstock.errors import ConfigError

__all__ = ["alltoall"]

_DIRECT_UP_TO = 8
_FREE = 1  # "you may write your block into my buffer"
_WRITTEN = 2  # "my block is in your buffer"


def alltoall(
    group: Group,
    send: Any,
    recv: Any,
    *,
    algo: str = "auto",
    conn: Any = "auto",
    send_bias: int = 0,
    recv_bias: int | None = None,
    chunk_bytes: int = 4 << 20,
    do_self_copy: bool = True,
) -> None:
    """Exchanges blocks with all ranks; every rank has to call it, with as many bytes.

    Both go through the session's buffer: ``send`` is copied to ``send_bias``, the others write from ``recv_bias`` on.

    Args:
        group: of ``init_group``.
        send: bytes, an array or a tensor; ``world`` blocks of equal size.
        recv: the same size, writable and contiguous.
        algo: ``"direct"`` writes to all ranks at once, ``"ring"`` to one after the other, beginning with the right
            neighbour; ``"auto"`` = direct up to 8 ranks.
        conn: ``"ucx"``, ``"rdma"``, a ``ConnType``; ``"auto"`` = what suits each pair.
        send_bias: where ``send`` goes in the buffer.
        recv_bias: where ``recv`` comes from; None = right after ``send``.
        chunk_bytes: the longest single write.
        do_self_copy: False leaves this rank's own block of ``recv`` as it is.

    Raises:
        ConfigError: sizes differ or aren't divisible by the number of ranks, the buffer is too small for both, an
            argument is none of those above.
        HMCStatusError: a rank is gone, or late.
    """
    total = byte_count(send)
    recv_bias = send_bias + total if recv_bias is None else recv_bias
    _check(group, total, recv, send_bias, recv_bias)
    if algo not in ("auto", "direct", "ring"):
        raise ConfigError(f"algo is {algo!r}; give 'auto', 'direct' or 'ring'")
    if chunk_bytes < 1:
        raise ConfigError(f"chunk_bytes is {chunk_bytes}; give at least 1")
    exchange = _Exchange(group, total // group.world, send_bias, recv_bias, chunk_bytes, _kind(conn))
    session, rank, block = group.session, group.rank, total // group.world
    with session.alone():
        exchange.prepare()
        session.buf.put(send, offset=send_bias)
        if algo == "ring" or (algo == "auto" and group.world > _DIRECT_UP_TO):
            exchange.ring()
        else:
            exchange.direct()
        own, rest = rank * block, (rank + 1) * block
        if do_self_copy:
            session.buf.buffer_copy_within(dst_offset=recv_bias + own, src_offset=send_bias + own, nbytes=block)
            session.buf.get_into(recv, nbytes=total, offset=recv_bias)
        else:
            target = _flat(recv)
            session.buf.get_into(target[:own], nbytes=own, offset=recv_bias)
            session.buf.get_into(target[rest:], nbytes=total - rest, offset=recv_bias + rest)


class _Exchange:
    """One all-to-all between the buffers."""

    def __init__(
        self, group: Group, block: int, send_bias: int, recv_bias: int, chunk_bytes: int, conn: ConnType | None
    ) -> None:
        self._group = group
        self._block = block
        self._send_bias = send_bias
        self._recv_bias = recv_bias
        self._chunk_bytes = chunk_bytes
        self._conn = conn
        self._number = group.exchanges
        group.exchanges += 1

    def prepare(self) -> None:
        """Makes the connections that aren't there yet."""
        for peer in self._others():
            self._group.connect(peer, self._kind(peer))

    def direct(self) -> None:
        """Writes to all at once."""
        for peer in self._others():
            self._tell(peer, _FREE)
        started: list[int] = []
        for peer in self._others():
            self._hear(peer, _FREE)
            started += self._write(peer)
        self._group.session.wait(started)
        for peer in self._others():
            self._tell(peer, _WRITTEN)
        for peer in self._others():
            self._hear(peer, _WRITTEN)

    def ring(self) -> None:
        """Writes to one after the other; in every step each rank has one writer."""
        others = self._others()
        for target, source in zip(others, reversed(others), strict=True):
            self._tell(source, _FREE)
            self._hear(target, _FREE)
            self._group.session.wait(self._write(target))
            self._tell(target, _WRITTEN)
            self._hear(source, _WRITTEN)

    def _others(self) -> list[Member]:
        """The other ranks, from the right neighbour on."""
        group = self._group
        return [group.members[(group.rank + step) % group.world] for step in range(1, group.world)]

    def _write(self, peer: Member) -> list[int]:
        kind = self._kind(peer)
        local = self._send_bias + peer.rank * self._block
        remote = self._recv_bias + self._group.rank * self._block
        return [
            self._group.session.put_nb(
                peer.ip, peer.port(kind), local + at, remote + at, min(self._chunk_bytes, self._block - at), kind
            )
            for at in range(0, self._block, self._chunk_bytes)
        ]

    def _kind(self, peer: Member) -> ConnType:
        return self._group.conn_with(peer) if self._conn is None else self._conn

    def _tell(self, peer: Member, what: int) -> None:
        self._group.session.ctrl_send(peer.rank, self._tag(what))

    def _hear(self, peer: Member, what: int) -> None:
        self._group.expect(peer.rank, self._tag(what))

    def _tag(self, what: int) -> int:
        return 0xA2A << 52 | what << 48 | self._number & 0xFFFFFFFFFFFF


def _check(group: Group, total: int, recv: Any, send_bias: int, recv_bias: int) -> None:
    size, world = byte_count(recv), group.world
    if total != size:
        raise ConfigError(f"send has {total} bytes and recv {size}; give the same size")
    if total % world:
        raise ConfigError(f"{total} bytes can't be cut into {world} equal blocks, one for each rank")
    if send_bias < 0 or recv_bias < 0 or max(send_bias, recv_bias) < min(send_bias, recv_bias) + total:
        raise ConfigError(
            f"send at {send_bias} and recv at {recv_bias}, {total} bytes each, overlap or begin before the buffer"
        )
    smallest = min(group.members, key=lambda member: member.buffer_size)
    if max(send_bias, recv_bias) + total > smallest.buffer_size:
        raise ConfigError(
            f"send at {send_bias} and recv at {recv_bias} of {total} bytes each don't fit the buffer of rank "
            f"{smallest.rank}, which has {smallest.buffer_size}; give its session a larger buffer_size"
        )
    if not is_device_tensor(recv):
        writable(recv)
    elif not recv.is_contiguous():
        raise ConfigError("recv is not contiguous; give recv.contiguous() and copy it back")


def _flat(recv: Any) -> Any:
    if not is_tensor(recv):
        return writable(recv)
    import torch

    return recv.detach().reshape(-1).view(torch.uint8)


def _kind(conn: Any) -> ConnType | None:
    if isinstance(conn, str) and conn.lower() in ("auto", "ucx", "rdma"):
        return None if conn.lower() == "auto" else ConnType[conn.upper()]
    if isinstance(conn, ConnType):
        return conn
    raise ConfigError(f"conn is {conn!r}; give 'auto', 'ucx', 'rdma' or a ConnType")
