"""HMC's ``Session``: a buffer and its connections, with put and get in one call."""

from __future__ import annotations

from typing import Any

from penstock.compat.hmc.buffer import DEFAULT_SIZE, IOBuffer
from penstock.compat.hmc.communicator import kind_of
from penstock.compat.hmc.enums import ConnType, MemoryType
from penstock.compat.hmc.errors import operation
from penstock.compat.hmc.remote import Remote

__all__ = ["Session", "create_session"]


def create_session(
    *,
    device_id: int = 0,
    buffer_size: int = DEFAULT_SIZE,
    mem_type: Any = MemoryType.CPU,
    num_chs: int = 1,
    local_ip: str = "",
    token: str | None = None,
    timeout_s: float = 30.0,
) -> Session:
    """A session with a buffer of its own.

    Args:
        device_id: which GPU, for a buffer on one.
        buffer_size: bytes; messages, with their offset, can't be longer.
        mem_type: where the buffer lies.
        num_chs: HMC's queue pairs; without effect.
        local_ip: our own address, for the choice of the control plane's transport.
        token: what every peer has to know; None = ``PENSTOCK_HMC_TOKEN``, or nothing.
        timeout_s: the deadline of everything that is not given one.

    Raises:
        HMCStatusError: that kind of memory isn't here.
    """
    buffer = IOBuffer.create(device_id, buffer_size, mem_type)
    return Session(buffer, num_chs, local_ip=local_ip, token=token, timeout_s=timeout_s)


class Session(Remote):
    """A buffer that peers read and write, and the calls that read and write theirs.

    Nobody calls anything where bytes arrive: ``put`` writes the peer's buffer, and the peer finds the bytes in its own
    (``buf.buffer_get_cpu(nbytes=..., offset=...)``). ``get`` and ``get_into`` read the peer's buffer.

    A call that names a peer which was never here fails at once, unless this session listens: then it waits for that
    peer, ``timeout_s`` at most. ``close()``, or ``with``, ends everything; so does letting go of the session.

    Attributes:
        buf: the ``IOBuffer``.
        comm: the ``Communicator``.
    """

    @operation("put")
    def put(
        self,
        ip: str,
        data: Any,
        *,
        bias: int = 0,
        conn: Any = ConnType.UCX,
        size: int | None = None,
        device: str | None = None,
    ) -> None:
        """Copies ``data`` to [bias, bias + size) of our buffer and writes those bytes to the same place of a peer's.

        Args:
            ip: whose buffer.
            data: bytes, an array, a tensor, or a device pointer with ``device="ptr"``.
            bias: where in both buffers, in bytes.
            conn: which connection.
            size: only so many bytes; None = all.
            device: as ``IOBuffer.put`` has it.

        Raises:
            HMCError: more than the source or our buffer has.
            HMCStatusError: not connected, more than the peer's buffer has, or the bytes didn't arrive.
        """
        found = self._connections.find(ip, None, kind_of(conn))
        with self.alone():
            count = self.buf.put(data, nbytes=size, offset=bias, device=device)
            found.move("WRITE", self.buf.core, bias, bias, count)

    @operation("get_into")
    def get_into(
        self,
        ip: str,
        dest: Any,
        *,
        bias: int = 0,
        conn: Any = ConnType.UCX,
        size: int | None = None,
        device: str | None = None,
    ) -> None:
        """Reads [bias, bias + size) of a peer's buffer into the same place of ours, and copies it to ``dest``.

        Args:
            ip: whose buffer.
            dest: writable and contiguous: bytes, an array, a tensor, or a device pointer with ``device="ptr"``.
            bias: where in both buffers, in bytes.
            conn: which connection.
            size: only so many bytes; None = as many as ``dest`` has.
            device: as ``IOBuffer.put`` has it.

        Raises:
            ConfigError: ``dest`` can't be filled, or is too small.
            HMCError: more than our buffer has.
            HMCStatusError: not connected, more than the peer's buffer has, or the bytes didn't arrive.
        """
        count = self._wanted(dest, size, device)
        self._read_out(self._connections.find(ip, None, kind_of(conn)), dest, bias, bias, count, device)

    @operation("get")
    def get(self, ip: Any, size: Any, *, bias: int = 0, conn: Any = ConnType.UCX) -> bytes:
        """``size`` bytes at ``bias`` of a peer's buffer; ``get(size, ip)`` is the same.

        Raises:
            HMCError: more than our buffer has.
            HMCStatusError: not connected, more than the peer's buffer has, or the bytes didn't arrive.
        """
        if isinstance(size, str):
            ip, size = size, ip
        if not isinstance(ip, str):
            raise TypeError(f"get({ip!r}, {size!r}): give an ip as text and a size as a whole number")
        found = self._connections.find(ip, None, kind_of(conn))
        with self.alone():
            found.move("READ", self.buf.core, bias, bias, size)
            return bytes(self.buf.buffer_get_cpu(nbytes=size, offset=bias))

    def put_torch_cuda(
        self, ip: str, t: Any, *, bias: int = 0, conn: Any = ConnType.RDMA, size: int | None = None
    ) -> None:
        """``put`` of a CUDA tensor, for which the session's buffer has to be on its GPU."""
        self.put(ip, t, bias=bias, conn=conn, size=size, device="cuda")

    def get_torch_cuda(
        self, ip: str, t: Any, *, bias: int = 0, conn: Any = ConnType.RDMA, size: int | None = None
    ) -> None:
        """``get_into`` a CUDA tensor, for which the session's buffer has to be on its GPU."""
        self.get_into(ip, t, bias=bias, conn=conn, size=size, device="cuda")

    @operation("write_to")
    def write_to(self, ip: str, ptr_bias: int, size: int, conn: Any = ConnType.RDMA) -> None:
        """Writes [ptr_bias, ptr_bias + size) of our buffer over the same place of a peer's."""
        self._connections.find(ip, None, kind_of(conn)).move("WRITE", self.buf.core, ptr_bias, ptr_bias, size)

    @operation("read_from")
    def read_from(self, ip: str, ptr_bias: int, size: int, conn: Any = ConnType.RDMA) -> None:
        """Reads [ptr_bias, ptr_bias + size) of a peer's buffer over the same place of ours."""
        self._connections.find(ip, None, kind_of(conn)).move("READ", self.buf.core, ptr_bias, ptr_bias, size)
