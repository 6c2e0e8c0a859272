"""Several hosts in one machine: network namespaces with a cable to one switch, and lines that go wrong on request.

    if reason := unavailable():
        pytest.skip(reason)
    with Network(2) as network:
        left, right = network.hosts
        server = right.popen([sys.executable, "server.py", right.address])
        network.lose(0.05)                       # 5 % of all packets
        network.partition([left], [right])       # silence; nothing tells either end
        network.heal()
        right.unplug()                           # the cable: both see their line go down

It needs root and ``ip``, ``tc``, ``nsenter``, ``unshare``, ``setpriv`` (Debian: iproute2, util-linux), and nothing that
kernels often lack: no netem, nft or iptables. Losses are drawn by a small packet filter at the switch, delay is a
process of ours that holds packets back (`penstock.testing.delay_line`).

Namespaces have no names. They live as long as this process holds them, or a program runs in one; programs die with the
process that started them. So nothing is left behind, whatever ends it.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from penstock.errors import ClosedError, ConfigError

__all__ = ["Host", "Network", "drop_program", "unavailable"]

MAX_HOSTS = 250
_TOOLS = ("ip", "tc", "nsenter", "unshare", "setpriv", "mount", "sh")
_CLONE_NEWNET = 0x40000000
_COMMAND_TIMEOUT_S = 20.0
# What /sys/class/net shows depends on who mounted it, and UCX reads its devices there.
_OWN_SYS = 'mount -t sysfs sysfs /sys && exec "$@"'
_NO_IPV6 = "echo 1 > /proc/sys/net/ipv6/conf/all/disable_ipv6"
# A slow line holds back what it has taken on for about so long.
_SLOW_LINE_QUEUE_S = 0.2
_SLOW_LINE_BURST_BYTES = 1 << 16


def drop_program(shares: Mapping[int, float]) -> str:
    """The packet filter that drops a share of what some hosts send, as ``tc ... bpf bytecode`` takes it.

    Hosts are told apart by the last four bytes of the sender's Ethernet address, at offset 8 of a frame.

    Args:
        shares: number of the sending host -> share of its packets to drop, 0 to 1.

    Returns:
        ``count,opcode jump-if-true jump-if-false operand,...``, classic BPF for a filter in direct action mode.
    """
    load_sender, load_random, equal, greater, ret = 0x20, 0x20, 0x15, 0x25, 0x06
    random_word, drop, go_on = 0xFFFFF000 + 56, 2, 0xFFFFFFFF
    program = [(load_sender, 0, 0, 8)]
    for sender, share in sorted(shares.items()):
        last_dropped = round(share * 2**32) - 1
        if last_dropped < 0:
            continue
        program += [
            (equal, 0, 4, sender),
            (load_random, 0, 0, random_word),
            (greater, 1, 0, last_dropped),
            (ret, 0, 0, drop),
            (ret, 0, 0, go_on),
        ]
    program.append((ret, 0, 0, go_on))
    return ",".join([str(len(program)), *(" ".join(map(str, instruction)) for instruction in program)])


class Host:
    """One host: a network namespace with loopback and ``eth0``. Made by `Network`, and closed with it.

    Attributes:
        name: ``host1``, ``host2``, ...
        address: its IPv4 address on the switch's network.
        interface: the name of its network interface.
    """

    interface = "eth0"

    def __init__(self, network: Network, number: int, namespace: int) -> None:
        self.name = f"host{number}"
        self.address = f"10.77.0.{number}"
        self._network = network
        self._number = number
        self._namespace = namespace
        self._line: subprocess.Popen[bytes] | None = None

    def popen(self, args: Sequence[str], **options: Any) -> subprocess.Popen[Any]:
        """Starts a program in this host; what `subprocess.Popen` takes beside ``args`` goes to it.

        The process that it returns is the program itself: it can be stopped and killed. It is killed with the network,
        with this process, and with the thread that called this.

        Raises:
            ClosedError: the network is closed.
        """
        entered = _entering(self._network._held(self), "unshare", "--mount", "sh", "-c", _OWN_SYS, "sh")
        return subprocess.Popen([*entered, "setpriv", "--pdeathsig", "KILL", *args], **options)

    def unplug(self) -> None:
        """Cuts the cable: nothing arrives any more, and the host sees its line go down."""
        self._network._switch_ip(f"link set port{self._number} down")

    def plug(self) -> None:
        """Puts the cable back."""
        self._network._switch_ip(f"link set port{self._number} up")

    def slow(self, bytes_per_s: int | None) -> None:
        """Makes its line slow in both directions; None makes it fast again.

        Raises:
            ConfigError: less than 1,000 bytes a second.
        """
        if bytes_per_s is not None and bytes_per_s < 1000:
            raise ConfigError(
                f"a line of {bytes_per_s} bytes/s is too slow to be told from a cut one; at least 1000, or None"
            )
        ends = ((self._namespace, self.interface), (self._network._switch, f"port{self._number}"))
        for namespace, interface in ends:
            _call(namespace, "sh", "-c", f"tc qdisc del dev {interface} root 2>/dev/null || true")
            if bytes_per_s is not None:
                limit = max(4 * _SLOW_LINE_BURST_BYTES, int(bytes_per_s * _SLOW_LINE_QUEUE_S))
                shape = f"rate {bytes_per_s}bps burst {_SLOW_LINE_BURST_BYTES} limit {limit}"
                _call(namespace, "tc", "qdisc", "add", "dev", interface, "root", "tbf", *shape.split())

    def delay(self, seconds: float, *, queue_bytes: int = 64 << 20) -> None:
        """Holds every packet from and to this host back for so long; 0 ends it, and loses what is held back.

        Args:
            seconds: in each direction, so that a round trip takes twice as much longer.
            queue_bytes: what the line holds in each direction at most; packets beyond it are lost.

        Raises:
            ConfigError: a negative or endless delay.
        """
        if not 0 <= seconds < 3600:
            raise ConfigError(f"a delay of {seconds} s; give 0 to 3600")
        port, line, far = f"port{self._number}", f"line{self._number}", f"far{self._number}"
        if self._line is not None:
            _end(self._line)
            self._line = None
            self._network._switch_ip(f"link del {line}", f"link set {port} master switch")
        if seconds:
            self._network._switch_ip(
                f"link set {port} nomaster", f"link add {line} type veth peer name {far}",
                f"link set {line} master switch up", f"link set {far} up",
            )  # fmt: skip
            program = [sys.executable, "-I", str(Path(__file__).with_name("delay_line.py"))]
            self._line = subprocess.Popen(
                _entering(self._network._switch, *program, port, far, str(seconds), str(queue_bytes)),
                stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            )  # fmt: skip
            assert self._line.stdout is not None
            if not self._line.stdout.readline():
                raise ConfigError(f"the delay line of {self.name} did not start; its standard error says why")

    def __repr__(self) -> str:
        return f"<{self.name} {self.address}>"


class Network:
    """Hosts and the switch between them; a context manager.

    Args:
        count: how many hosts.
        mtu: the most bytes in a packet, without its Ethernet header.

    Raises:
        ConfigError: this machine can't make one; the message says what is missing.
    """

    def __init__(self, count: int = 2, *, mtu: int = 1500) -> None:
        if not 1 <= count <= MAX_HOSTS:
            raise ConfigError(f"{count} hosts; 1 to {MAX_HOSTS} fit into one network")
        _need_root_and_tools()
        self._closed = False
        self._loss: dict[tuple[int, int], float] = {}
        self._blocked: set[tuple[int, int]] = set()
        self._namespaces: list[int] = []
        try:
            self._namespaces += [_new_namespace() for _ in range(count + 1)]
            self._switch = self._namespaces[0]
            self.hosts = tuple(Host(self, number, self._namespaces[number]) for number in range(1, count + 1))
            self._wire(mtu)
        except BaseException:
            self.close()
            raise

    def lose(self, share: float, sender: Host | None = None, receiver: Host | None = None) -> None:
        """Loses a share of the packets, drawn at random; 0 ends it.

        Args:
            share: 0 to 1.
            sender: only what this host sends; None is every host.
            receiver: only what is on its way to this host; None is every host.

        Raises:
            ConfigError: a share that is none.
        """
        if not 0 <= share <= 1:
            raise ConfigError(f"a share of {share} can't be lost; give 0 to 1")
        for pair in self._pairs([sender] if sender else self.hosts, [receiver] if receiver else self.hosts):
            self._loss[pair] = share
        self._set_filters()

    def partition(self, left: Iterable[Host], right: Iterable[Host], *, one_way: bool = False) -> None:
        """Nothing passes between two groups of hosts, and nobody is told; until `heal`.

        Args:
            left: hosts.
            right: other hosts.
            one_way: what ``right`` sends still arrives.
        """
        left, right = list(left), list(right)
        self._blocked |= self._pairs(left, right)
        if not one_way:
            self._blocked |= self._pairs(right, left)
        self._set_filters()

    def heal(self) -> None:
        """Ends every partition. Losses stay: they end with ``lose(0)``."""
        self._blocked.clear()
        self._set_filters()

    def close(self) -> None:
        """Kills what runs in the hosts and lets go of them. Again: nothing."""
        if self._closed:
            return
        self._closed = True
        for host in getattr(self, "hosts", ()):
            if host._line is not None:
                _end(host._line)
        for pid in _inhabitants({os.fstat(namespace).st_ino for namespace in self._namespaces}):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for namespace in self._namespaces:
            os.close(namespace)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _held(self, host: Host) -> int:
        if self._closed:
            raise ClosedError(f"the network of {host.name} is closed")
        return host._namespace

    def _pairs(self, senders: Iterable[Host], receivers: Iterable[Host]) -> set[tuple[int, int]]:
        receivers = list(receivers)
        return {(one._number, other._number) for one in senders for other in receivers if one is not other}

    def _wire(self, mtu: int) -> None:
        _call(self._switch, "sh", "-c", _NO_IPV6)
        self._switch_ip("link set lo up", "link add switch type bridge", "link set switch up")
        for host in self.hosts:
            n, port = host._number, f"port{host._number}"
            own = f"peer name {host.interface} address {_mac(n)} mtu {mtu} netns {_path(host._namespace)}"
            self._switch_ip(f"link add {port} mtu {mtu} type veth {own}", f"link set {port} master switch up")
            _call(self._switch, "tc", "qdisc", "add", "dev", port, "clsact")
        for host in self.hosts:
            _call(host._namespace, "sh", "-c", _NO_IPV6)
            # Neighbours are told, not asked for: a lost question would take a second, and is not what is tested.
            known = [
                f"neigh add {other.address} lladdr {_mac(other._number)} dev {host.interface} nud permanent"
                for other in self.hosts
                if other is not host
            ]
            own = f"addr add {host.address}/24 dev {host.interface}"
            _ip(host._namespace, "link set lo up", own, f"link set {host.interface} up", *known)

    def _switch_ip(self, *lines: str) -> None:
        if self._closed:
            raise ClosedError("the network is closed")
        _ip(self._switch, *lines)

    def _set_filters(self) -> None:
        """Each port gets the filter for what leaves the switch through it."""
        for receiver in self.hosts:
            shares = {one: share for (one, other), share in self._loss.items() if other == receiver._number}
            shares |= {one: 1.0 for one, other in self._blocked if other == receiver._number}
            where = f"dev port{receiver._number} egress handle 1 prio 1 protocol all bpf da bytecode"
            _call(self._switch, "tc", "filter", "replace", *where.split(), drop_program(shares))


@functools.lru_cache(maxsize=1)
def unavailable() -> str:
    """Why this machine can't make a `Network`, or "" where it can. Tries it, once in a process."""
    try:
        with Network(2) as network:
            network.lose(0.5)
            network.hosts[0].slow(1 << 20)
    except (ConfigError, OSError) as error:
        return f"hosts as network namespaces: {error}"
    return ""


def _mac(number: int) -> str:
    return f"02:00:00:00:00:{number:02x}"


def _need_root_and_tools() -> None:
    if os.geteuid() != 0:
        raise ConfigError("network namespaces need root; run this as root")
    if missing := [tool for tool in _TOOLS if shutil.which(tool) is None]:
        raise ConfigError(
            f"not installed: {', '.join(missing)}; Debian and Ubuntu have them in iproute2 and util-linux"
        )


def _new_namespace() -> int:
    """A descriptor of a new network namespace, which lives as long as it."""
    libc = ctypes.CDLL(None, use_errno=True)
    found: list[int] = []

    def leave() -> None:
        # Only this thread moves; it ends at once.
        if libc.unshare(_CLONE_NEWNET) == 0:
            found.append(os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC))
        else:
            reasons.append(os.strerror(ctypes.get_errno()))

    reasons: list[str] = []
    thread = threading.Thread(target=leave, name="new-namespace")
    thread.start()
    thread.join()
    if not found:
        raise ConfigError(f"a network namespace was refused: {''.join(reasons)}")
    return found[0]


def _path(namespace: int) -> str:
    return f"/proc/{os.getpid()}/fd/{namespace}"


def _entering(namespace: int, *args: str) -> list[str]:
    return ["nsenter", f"--net={_path(namespace)}", *args]


def _call(namespace: int, *args: str, given: str | None = None) -> None:
    """Runs a tool in a namespace; what it complains about becomes the error."""
    done = subprocess.run(
        _entering(namespace, *args),
        input=given,
        capture_output=True,
        text=True,
        timeout=_COMMAND_TIMEOUT_S,
        check=False,
    )
    if done.returncode:
        what = given.strip() if given else " ".join(args)
        raise ConfigError(f"{args[0]} failed ({done.stderr.strip()}) at: {what}")


def _ip(namespace: int, *lines: str) -> None:
    _call(namespace, "ip", "-batch", "-", given="\n".join(lines) + "\n")


def _inhabitants(inodes: set[int]) -> list[int]:
    """Processes that live in one of the network namespaces, this one left out."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if int(entry.name) != os.getpid() and (entry / "ns/net").stat().st_ino in inodes:
                found.append(int(entry.name))
    return found


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.communicate()
