"""The transfers page, as two processes run it."""

import re
import subprocess
import sys
from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs" / "transfers.md"

OWNER = """
import sys
{block}
print(blob.hex(), described.hex(), flush=True)
notifications = agent.wait_notification()
assert [tuple(each) for each in notifications] == [("prefill", b"pages 0 3 6 9")], notifications
assert cache[:12:3].all() and not cache[1].any() and not cache[12:].any()
registration.renew()
print("renewed", flush=True)
sys.stdin.readline()
registration.close()
"""

INITIATOR = """
import sys
from penstock.errors import StaleDescriptor
blob, described = map(bytes.fromhex, sys.stdin.readline().split())
{block}
sys.stdin.readline()
try:
    agent.write([*pages], remote, remote_indices=[0, 3, 6, 9]).wait()
except StaleDescriptor as error:
    print("stale", flush=True)
"""


def test_the_first_example_between_two_processes():
    blocks = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    owner, initiator = (
        subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for code in (OWNER.format(block=blocks[0]), INITIATOR.format(block=blocks[1]))
    )
    try:
        initiator.stdin.write(owner.stdout.readline())
        initiator.stdin.flush()
        assert owner.stdout.readline() == "renewed\n"
        output, _ = initiator.communicate("\n", timeout=60)
        assert output == "stale\n"
        owner.communicate("\n", timeout=60)
        assert (owner.returncode, initiator.returncode) == (0, 0)
    finally:
        owner.kill()
        initiator.kill()


RECEIVER = """
import sys
import numpy as np
{first}
print(offer.hex(), flush=True)
def train_on(array):
    print(array.tolist(), flush=True)
{second}
"""

SENDER = """
import sys
import numpy as np
from penstock.transfer import Agent, channel
offer = bytes.fromhex(sys.stdin.readline())
batch = np.arange(3, dtype=np.float32)
def make_batch_in(data):
    np.asarray(data).view(np.float32)[:2] = [7, 8]
    return 8
{block}
"""


def test_the_channel_between_two_processes():
    page = PAGE.read_text().partition("## Channels")[2]
    offer, send, receive = re.findall(r"^```python\n(.*?)^```", page, re.MULTILINE | re.DOTALL)[:3]
    receiver, sender = (
        subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for code in (RECEIVER.format(first=offer, second=receive), SENDER.format(block=send))
    )
    try:
        sender.communicate(receiver.stdout.readline(), timeout=60)
        assert receiver.communicate(timeout=60)[0] == "[0.0, 1.0, 2.0]\n[7.0, 8.0]\n"
        assert (receiver.returncode, sender.returncode) == (0, 0)
    finally:
        receiver.kill()
        sender.kill()
