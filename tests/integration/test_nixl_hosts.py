"""Programs for NIXL on two hosts: metadata by listen threads with a token, memory and notifications by UCX."""

import os
import subprocess
import sys

import pytest

from penstock import _core
from penstock.testing.hosts import Network

pytest.importorskip("libucx")
pytestmark = [
    pytest.mark.hosts,
    pytest.mark.skipif(not _core.has_ucx_plane, reason="this core was built without UCX's headers"),
]

TARGET = """
import hashlib, time
import numpy as np
from penstock.compat.nixl import nixl_agent, nixl_agent_config

agent = nixl_agent("target", nixl_agent_config(enable_listen_thread=True, listen_port=5555))
buffer = np.arange(1 << 20, dtype=np.uint64).view(np.uint8)
agent.register_memory([(buffer.ctypes.data, buffer.nbytes, 0, "")], "DRAM")
print(buffer.ctypes.data, flush=True)
until = time.monotonic() + 30
while not agent.check_remote_xfer_done("initiator", b"written"):
    assert time.monotonic() < until
    time.sleep(0.001)
print(hashlib.sha256(buffer).hexdigest(), flush=True)
agent.send_notif("initiator", b"seen")
input()
"""

INITIATOR = """
import hashlib, sys, time
import numpy as np
from penstock.compat.nixl import nixl_agent, nixl_agent_config

host, base = sys.argv[1], int(sys.argv[2])
until = time.monotonic() + 30
def wait(condition):
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.001)

agent = nixl_agent("initiator", nixl_agent_config(enable_listen_thread=True, listen_port=5555))
buffer = np.zeros(1 << 20, np.uint64)
agent.register_memory([(buffer.ctypes.data, buffer.nbytes, 0, "")], "DRAM")
agent.send_local_metadata(host, 5555)
agent.fetch_remote_metadata("target", host, 5555)
wait(lambda: agent.check_remote_metadata("target"))

half = buffer.nbytes // 2
ours = [(buffer.ctypes.data, half, 0), (buffer.ctypes.data + half, half, 0)]
theirs = [(base, half, 0), (base + half, half, 0)]
read = agent.initialize_xfer("READ", ours, theirs, "target")
state = agent.transfer(read)
wait(lambda: agent.check_xfer_state(read) == "DONE")
assert (buffer == np.arange(1 << 20)).all()

local = agent.prep_xfer_dlist("", ours, "DRAM")
remote = agent.prep_xfer_dlist("target", theirs, "DRAM")
write = agent.make_prepped_xfer("WRITE", local, [0, 1], remote, [1, 0], b"written")
agent.transfer(write)
wait(lambda: agent.check_xfer_state(write) == "DONE")
wait(lambda: agent.check_notif("target", b"seen"))
print(write.transfer.transport)
print(hashlib.sha256(np.concatenate([buffer[1 << 19:], buffer[:1 << 19]])).hexdigest())
"""


def test_two_programs_on_two_hosts():
    with Network(2) as network:
        left, right = network.hosts
        settings = {"UCX_NET_DEVICES": "eth0", "PENSTOCK_EXCHANGE_TOKEN": "what both know"}

        def start(host, code, *args):
            environment = {**os.environ, **settings, "PENSTOCK_EXCHANGE_HOST": host.address}
            pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
            return host.popen([sys.executable, "-c", code, *args], env=environment, **pipes)

        with start(right, TARGET) as target:
            base = target.stdout.readline().strip()
            with start(left, INITIATOR, right.address, base) as initiator:
                said, _ = initiator.communicate(timeout=60)
            assert initiator.returncode == 0
            written, _ = target.communicate("\n", timeout=60)
            assert target.returncode == 0
    transport, expected = said.splitlines()
    assert transport.startswith("ucx:tcp")
    assert written.strip() == expected
