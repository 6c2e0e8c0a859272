"""``penstock xfer-bench``: how fast memory moves between two processes, on this host or between two."""

from __future__ import annotations

import contextlib
import itertools
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict
from typing import Annotated, Final

import typer

from penstock.cli import output
from penstock.cli.options import AsJson
from penstock.cli.xfer_ends import Initiator, Measured, Move, Plane, Target, new_token
from penstock.errors import ConfigError, PeerUnreachable, PenstockError, TransferError
from penstock.net import join_address, split_address
from penstock.sizes import format_bytes, parse_bytes

__all__ = ["moves_of", "xfer_bench"]

_CONNECT_S: Final = 10.0
_WIDTHS: Final = (8, 22, 9, 8, 11, 12, 12, 8)
_HEADER: Final = ("plane", "transport", "operation", "size", "descriptors", "p50 us", "p99 us", "GB/s")
_PLANES: Final[dict[str, tuple[Plane, ...]]] = {"both": ("shm", "network"), "shm": ("shm",), "network": ("network",)}
_OPERATIONS: Final = {"both": ("WRITE", "READ"), "write": ("WRITE",), "read": ("READ",)}


def xfer_bench(
    *,
    sizes: Annotated[str, typer.Option(help="Bytes of a descriptor, with commas.")] = "8,4KiB,64KiB,1MiB,16MiB",
    counts: Annotated[str, typer.Option(help="Descriptors in a transfer, with commas; several have gaps.")] = "1,1000",
    max_bytes: Annotated[str, typer.Option(help="Leave out transfers of more than this.")] = "64MiB",
    plane: Annotated[str, typer.Option(help="shm, network, or both.")] = "both",
    operation: Annotated[str, typer.Option(help="write, read, or both.")] = "both",
    user_memory: Annotated[bool, typer.Option("--user-memory", help="Plain arrays instead of allocate().")] = False,
    seconds: Annotated[float, typer.Option(min=0.01, help="For each line.")] = 0.2,
    network: Annotated[str | None, typer.Option(help="Where the network plane listens; default: as needed.")] = None,
    listen: Annotated[str | None, typer.Option(help="Be the other end for another host: an address:port.")] = None,
    connect: Annotated[str | None, typer.Option(help="The address:port at which the other end listens.")] = None,
    token: Annotated[str | None, typer.Option(help="What the other end printed.")] = None,
    serve_fd: Annotated[int | None, typer.Option(hidden=True)] = None,
    as_json: AsJson = False,
) -> None:
    """Move memory between two processes for a few seconds, and say how fast, and over what.

    Both processes are started here and end with the command. For two hosts: `--listen` at one prints what to run at
    the other. What arrived is compared with what was sent. Run it while nothing else does.
    """
    if serve_fd is not None:
        Target(socket.socket(fileno=serve_fd), network=network or "loopback").run()
        return
    if listen is not None:
        _listen(listen, network)
        return
    moves = moves_of(sizes, counts, operation, parse_bytes(max_bytes, name="--max-bytes"))
    if plane not in _PLANES:
        raise ConfigError(f"--plane {plane!r}; it is shm, network or both")
    run = _Run(moves, seconds, own=not user_memory, quiet=as_json)
    if connect is not None:
        if token is None:
            raise ConfigError("--connect needs the --token that the other end printed")
        run.other_host(connect, network, token)
    else:
        for each in _PLANES[plane]:
            run.this_host(each, network or "loopback")
    if not run.lines:
        raise TransferError("; ".join(f"{plane}: {why}" for plane, why in run.unavailable.items()))
    if as_json:
        output.document({"lines": [asdict(line) for line in run.lines], "unavailable": run.unavailable})


def moves_of(sizes: str, counts: str, operation: str, max_bytes: int) -> list[Move]:
    """What the options ask for (pure).

    Raises:
        ConfigError: no numbers, an operation that there isn't, or nothing that is small enough.
    """
    if operation not in _OPERATIONS:
        raise ConfigError(f"--operation {operation!r}; it is write, read or both")
    size_bytes = [parse_bytes(size, name="--sizes") for size in sizes.split(",")]
    if not all(count.strip().isdecimal() and int(count) for count in counts.split(",")):
        raise ConfigError(f"--counts {counts!r}; give whole numbers above 0, with commas")
    pairs = itertools.product([int(count) for count in counts.split(",")], size_bytes)
    moves = [Move(kind, size, count) for count, size in pairs for kind in _OPERATIONS[operation]]  # type: ignore[arg-type]
    fitting = [move for move in moves if move.size_bytes and move.total_bytes <= max_bytes]
    if not fitting:
        raise ConfigError(f"no transfer of at most {format_bytes(max_bytes)} is left; see --sizes and --max-bytes")
    return fitting


class _Run:
    """Lines as they come: on the way to a table, or kept for a document."""

    def __init__(self, moves: list[Move], seconds: float, *, own: bool, quiet: bool) -> None:
        self.lines: list[Measured] = []
        self.unavailable: dict[str, str] = {}
        self._moves, self._seconds, self._own, self._quiet = moves, seconds, own, quiet
        self._size_bytes = max(move.span_bytes for move in moves)

    def this_host(self, plane: Plane, network: str) -> None:
        with _target(network) as sock:
            self._measure(sock, plane, network, None)

    def other_host(self, place: str, network: str | None, token: str) -> None:
        try:
            sock = socket.create_connection(split_address(place, name="--connect"), _CONNECT_S)
        except OSError as error:
            raise PeerUnreachable(f"nobody listens at {place}: {error}; is `--listen` running there?") from error
        try:
            self._measure(sock, "any", network or str(sock.getsockname()[0]), token)
        finally:
            _hang_up(sock)

    def _measure(self, sock: socket.socket, plane: Plane, network: str, token: str | None) -> None:
        try:
            initiator = Initiator(
                sock, plane=plane, network=network, own=self._own, size_bytes=self._size_bytes, token=token
            )
        except PenstockError as error:
            self.unavailable[plane] = str(error)
            output.line(f"{plane}: {error}") if not self._quiet else None
            return
        with contextlib.closing(initiator):
            for line in initiator.measure(self._moves, self._seconds):
                self._add(line)

    def _add(self, line: Measured) -> None:
        if not self._quiet:
            if not self.lines:
                _row(_HEADER)
            _row(_cells(line))
        elif sys.stderr.isatty():
            sys.stderr.write(f"penstock: {' '.join(_cells(line))}\n")
        self.lines.append(line)


@contextlib.contextmanager
def _target(network: str) -> Iterator[socket.socket]:
    """The socket of a target that is a process of its own; it is gone afterwards."""
    ours, theirs = socket.socketpair()
    command = [sys.executable, "-m", "penstock", "xfer-bench", "--serve-fd", str(theirs.fileno()), "--network", network]
    with ours, theirs:
        child = subprocess.Popen(command, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL)
        theirs.close()
        try:
            yield ours
        finally:
            _hang_up(ours)
            try:
                child.wait(_CONNECT_S)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()


def _hang_up(sock: socket.socket) -> None:
    """Now, whoever still has a file of it: the other end ends by it."""
    with contextlib.suppress(OSError):
        sock.shutdown(socket.SHUT_RDWR)
    sock.close()


def _listen(place: str, network: str | None) -> None:
    """Serve one other end after another until Ctrl-C."""
    address, port = split_address(place, name="--listen")
    token = new_token()
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.create_server((address, port), family=family) as listener:
        bound = listener.getsockname()[1]
        shown = join_address(address, bound)
        output.line(f"at the other host: penstock xfer-bench --connect {shown} --token {token}")
        sys.stdout.flush()
        while True:
            sock, peer = listener.accept()
            output.line(f"connected: {peer[0]}")
            sys.stdout.flush()
            with contextlib.suppress(PenstockError):
                Target(sock, network=network or _network_at(sock), token=token).run()


def _network_at(sock: socket.socket) -> str:
    address = str(sock.getsockname()[0])
    return "loopback" if address in ("127.0.0.1", "::1") else address


def _cells(line: Measured) -> tuple[str, ...]:
    moved = line.operation != "NOTIFY"
    return (
        line.plane,
        line.transport,
        line.operation.lower(),
        format_bytes(line.size_bytes),
        f"{line.descriptors:,}" if moved else "",
        f"{line.p50_us:,.2f}",
        f"{line.p99_us:,.2f}",
        f"{line.bytes_per_s / 1e9:.2f}" if moved else "",
    )


def _row(cells: tuple[str, ...]) -> None:
    """One line of the table, at once: it is what shows how far we are."""
    padded = (
        f"{cell:<{width}}" if column < 3 else f"{cell:>{width}}"
        for column, (cell, width) in enumerate(zip(cells, _WIDTHS, strict=True))
    )
    output.line(" ".join(padded).rstrip())
    sys.stdout.flush()
