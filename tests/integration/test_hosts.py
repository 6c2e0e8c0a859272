"""Hosts as network namespaces: lines that lose, delay, slow down and break, and nothing left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from leftovers import held, left_since
from penstock.errors import ClosedError, ConfigError
from penstock.testing.hosts import Host, Network, drop_program
from waiting import wait_until

pytestmark = pytest.mark.hosts

# Answers every datagram with itself, and every connection with the number of bytes that came in.
_ECHO = """
import selectors, socket, sys
udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
udp.setsockopt(socket.SOL_SOCKET, 33, 1 << 22)  # SO_RCVBUFFORCE
udp.bind((sys.argv[1], 7))
tcp = socket.create_server((sys.argv[1], 7))
print("up", flush=True)
selector = selectors.DefaultSelector()
selector.register(udp, selectors.EVENT_READ)
selector.register(tcp, selectors.EVENT_READ)
while True:
    for key, _ in selector.select():
        if key.fileobj is udp:
            data, peer = udp.recvfrom(100)
            udp.sendto(data, peer)
        else:
            line, _ = tcp.accept()
            with line:
                count = 0
                while piece := line.recv(1 << 16):
                    count += len(piece)
                line.sendall(str(count).encode())
"""
# Sends datagrams and prints how many of them came back within a time, and the median of their round trips.
_PING = """
import select, socket, statistics, sys, time
address, count, patience = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
udp.setsockopt(socket.SOL_SOCKET, 33, 1 << 22)  # SO_RCVBUFFORCE
udp.connect((address, 7))
sent, trips = {}, []
def collect(seconds):
    while select.select([udp], [], [], seconds)[0]:
        trips.append(time.monotonic() - sent[int(udp.recv(100))])
        if len(trips) == count:
            return
for index in range(count):
    sent[index] = time.monotonic()
    try:
        udp.send(str(index).encode())
    except OSError:
        pass
    collect(0)
if len(trips) < count:
    collect(patience)
print(len(trips), statistics.median(trips) if trips else 0)
"""
_SEND = """
import socket, sys, time
started = time.monotonic()
with socket.create_connection((sys.argv[1], 7)) as line:
    line.sendall(bytes(int(sys.argv[2])))
    line.shutdown(socket.SHUT_WR)
    print(line.recv(100).decode(), time.monotonic() - started)
"""


def answer(host: Host, program: str, *args: object) -> tuple[float, float]:
    """Two numbers that a program in a host prints."""
    process = host.popen([sys.executable, "-I", "-c", program, *map(str, args)], stdout=subprocess.PIPE, text=True)
    text, _ = process.communicate(timeout=60)
    one, other = text.split()
    return float(one), float(other)


def echo(host: Host) -> None:
    process = host.popen([sys.executable, "-I", "-c", _ECHO, host.address], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    with process.stdout:
        assert process.stdout.readline() == "up\n"
    _running.append(process)


_running: list[subprocess.Popen[str]] = []


@pytest.fixture
def network() -> Iterator[Network]:
    with Network(3) as made:
        for host in made.hosts:
            echo(host)
        yield made
    while _running:
        assert _running.pop().wait(10) == -signal.SIGKILL


def returned(sender: Host, receiver: Host, count: int = 20, patience: float = 0.2) -> int:
    return int(answer(sender, _PING, receiver.address, count, patience)[0])


def datagrams(host: Host) -> int:
    """How many have arrived there so far."""
    grep = host.popen(["grep", "^Udp:", "/proc/net/snmp"], stdout=subprocess.PIPE, text=True)
    table = grep.communicate(timeout=10)[0]
    names, counts = (line.split() for line in table.splitlines())
    return int(dict(zip(names, counts, strict=True))["InDatagrams"])


def test_hosts_reach_each_other_and_show_nowhere_else(network: Network) -> None:
    ours = os.listdir("/sys/class/net")
    one, two, three = network.hosts
    assert returned(one, two) == returned(two, three) == returned(three, one) == 20
    devices = one.popen(["ls", "/sys/class/net"], stdout=subprocess.PIPE, text=True).communicate(timeout=10)[0]
    assert {"eth0", "lo"} <= set(devices.split())
    assert not {"port1", "switch"} & {*devices.split(), *ours}


def test_a_lossy_line_loses_about_its_share_in_one_direction(network: Network) -> None:
    one, two, three = network.hosts
    network.lose(0.3, sender=one, receiver=two)
    # Seven standard deviations of chance; 0 or twice the loss are far outside.
    assert 1250 <= returned(one, two, 2000) <= 1550
    assert 1250 <= returned(two, one, 2000) <= 1550
    assert returned(one, three, 200) == 200
    network.lose(0)
    assert returned(one, two, 200) == 200
    assert answer(one, _SEND, two.address, 1 << 20)[0] == 1 << 20


def test_tcp_survives_loss(network: Network) -> None:
    one, two, _ = network.hosts
    network.lose(0.05)
    assert answer(one, _SEND, two.address, 1 << 18)[0] == 1 << 18


def test_a_partition_is_silent_and_heals(network: Network) -> None:
    one, two, three = network.hosts
    network.partition([one], [two, three])
    assert returned(one, two) == returned(one, three) == returned(three, one) == 0
    assert returned(two, three) == 20
    network.heal()
    assert returned(one, two) == 20


def test_a_partition_one_way(network: Network) -> None:
    one, two, three = network.hosts
    network.partition([one], [two], one_way=True)
    assert returned(two, one) == 0
    assert datagrams(one) == 20  # the questions arrived, their answers didn't
    assert datagrams(two) == 0
    assert returned(three, one) == 20


def test_a_cut_cable_takes_the_line_down(network: Network) -> None:
    one, two, three = network.hosts
    two.unplug()
    carrier = two.popen(["cat", "/sys/class/net/eth0/carrier"], stdout=subprocess.PIPE, text=True)
    assert carrier.communicate(timeout=10)[0] == "0\n"
    assert returned(one, two) == 0
    assert returned(one, three) == 20
    two.plug()
    assert returned(one, two, patience=5) >= 1


def test_a_slow_line_carries_what_it_is_told(network: Network) -> None:
    one, two, _ = network.hosts
    two.slow(1 << 20)
    count, seconds = answer(one, _SEND, two.address, 1 << 20)
    assert count == 1 << 20
    assert 0.8 < seconds < 5
    _, back = answer(two, _SEND, one.address, 1 << 20)
    assert 0.8 < back < 5
    two.slow(None)
    assert answer(one, _SEND, two.address, 1 << 20)[1] < 0.8


def test_delay_holds_packets_back_and_loses_none(network: Network) -> None:
    one, two, three = network.hosts
    two.delay(0.1)
    count, trip = answer(one, _PING, two.address, 50, 5)
    assert count == 50
    assert 0.2 <= trip < 0.5
    assert answer(one, _SEND, two.address, 1 << 20)[0] == 1 << 20
    assert answer(one, _PING, three.address, 50, 5)[1] < 0.1
    network.partition([one], [two])
    assert returned(one, two, patience=0.5) == 0
    network.heal()
    two.delay(0.02)
    assert 0.04 <= answer(one, _PING, two.address, 50, 5)[1] < 0.2
    two.delay(0)
    assert answer(one, _PING, two.address, 50, 5)[1] < 0.04


def test_a_delayed_line_holds_only_so_much(network: Network) -> None:
    one, two, _ = network.hosts
    two.delay(0.3, queue_bytes=5000)
    assert 10 <= returned(one, two, 1000, patience=1) < 500


@pytest.mark.parametrize("count", [0, 251])
def test_too_few_or_many_hosts(count: int) -> None:
    with pytest.raises(ConfigError, match=f"{count} hosts"):
        Network(count)


def test_faults_that_make_no_sense_are_refused() -> None:
    with Network(1) as network:
        for share in (-0.1, 1.1, float("nan")):
            with pytest.raises(ConfigError, match="share"):
                network.lose(share)
        with pytest.raises(ConfigError, match="delay"):
            network.hosts[0].delay(-1)
        with pytest.raises(ConfigError, match="too slow"):
            network.hosts[0].slow(10)
    with pytest.raises(ClosedError):
        network.hosts[0].popen(["true"])
    with pytest.raises(ClosedError):
        network.hosts[0].unplug()
    network.close()


def test_the_filter_of_a_perfect_line_passes_all() -> None:
    assert drop_program({}) == drop_program({3: 0.0}) == "2,32 0 0 8,6 0 0 4294967295"


def _in_namespaces_of_ours(mark: str) -> list[int]:
    """Processes whose arguments hold a mark."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if mark.encode() in (entry / "cmdline").read_bytes() and int(entry.name) != os.getpid():
                found.append(int(entry.name))
        except OSError:
            continue
    return found


def test_nothing_is_left_after_many_networks() -> None:
    before = held()
    for _ in range(5):
        with Network(2) as network:
            # A program's own children are in the host as well, and end with it.
            shell = network.hosts[0].popen(["sh", "-c", "sleep 1000 & echo; wait"], stdout=subprocess.PIPE)
            network.hosts[1].delay(0.01)
            assert shell.stdout is not None
            with shell.stdout:
                shell.stdout.readline()
        assert shell.wait(10) == -signal.SIGKILL
    assert left_since(before) == []


def test_a_crash_leaves_nothing() -> None:
    mark = f"crash-{os.getpid()}"
    program = f"""
import sys, time
from penstock.testing.hosts import Network
network = Network(2)
network.hosts[1].delay(0.5)
network.hosts[0].popen([sys.executable, "-c", "import time; print('up', flush=True); time.sleep(1000)", "{mark}"])
time.sleep(1000)
"""
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"up\n"
        assert _in_namespaces_of_ours(mark)
        lines = _in_namespaces_of_ours("delay_line.py")
        assert lines
        process.kill()
    wait_until(lambda: not _in_namespaces_of_ours(mark))
    wait_until(lambda: not set(lines) & set(_in_namespaces_of_ours("delay_line.py")))
