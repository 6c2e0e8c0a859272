"""Programs written to NIXL's Python guide run with only their import line changed, each between two processes.

Where a folder of the guides is at hand (``PENSTOCK_GUIDES``, or ``../shared/guides`` beside this checkout), each of the
guide's Python blocks is run verbatim. The numbers are those of the behaviours that a NIXL program counts on.
"""

import os
import re
import textwrap
import time
import uuid
from pathlib import Path

import numpy as np
import pytest

from penstock.compat.nixl import nixl_agent
from penstock.compat.nixl._bindings import nixl_mem_t, nixlXferDList
from penstock.compat.nixl.utils import read_uint64, write_uint64

CHECKOUT = Path(__file__).parents[2]
GUIDE = Path(os.environ.get("PENSTOCK_GUIDES") or CHECKOUT.parent / "shared" / "guides") / "nixl-python-guide.md"
SLOT = 4096


class Sides:
    """Our agent and one in another process, each with a buffer of slots that the other knows."""

    def __init__(self, other, ours="sender", theirs="receiver", slots=4):
        self.agent = nixl_agent(ours)
        self.other = other
        self.theirs = theirs
        self.buffer = np.zeros((slots, SLOT), np.uint8)
        self.agent.register_memory([(self.buffer.ctypes.data, self.buffer.nbytes, 0, "")], "DRAM")
        base = other.agent(theirs, slots * SLOT)[0]
        other("register_memory", [(base, slots * SLOT, 0, "")], "DRAM")
        other("add_remote_agent", self.agent.get_agent_metadata())
        self.agent.add_remote_agent(other("get_agent_metadata"))
        self.local = [(self.buffer.ctypes.data + number * SLOT, SLOT, 0) for number in range(slots)]
        self.remote = [(base + number * SLOT, SLOT, 0) for number in range(slots)]

    def prepared(self):
        return (
            self.agent.prep_xfer_dlist("NIXL_INIT_AGENT", self.local, "DRAM"),
            self.agent.prep_xfer_dlist(self.theirs, self.remote, "DRAM"),
        )

    def names(self, **more):
        """What the guide's blocks expect to be there."""
        return {
            "agent": self.agent,
            "remote_agent_name": self.theirs,
            "local_xfer_descs": self.local,
            "remote_xfer_descs": self.remote,
            "time": time,
            **more,
        }


@pytest.fixture
def sides(other):
    made = []

    def make(*args, **options):
        made.append(Sides(other, *args, **options))
        return made[-1]

    yield make
    for each in made:
        each.agent.close()


def blocks():
    """The guide's Python blocks by their heading; of several under one heading ``heading 2`` is the second."""
    if not GUIDE.is_file():
        return {}
    found = {}
    heading = ""
    pattern = r"^#+ (?P<heading>[^\n]*)$|^(?P<indent> *)```python\n(?P<block>.*?)^ *```$"
    for match in re.finditer(pattern, GUIDE.read_text(), re.MULTILINE | re.DOTALL):
        if match["heading"]:
            heading = match["heading"]
        else:
            number = 1 + sum(key.split(" #")[0] == heading for key in found)
            found[heading if number == 1 else f"{heading} #{number}"] = textwrap.dedent(match["block"])
    return found


BLOCKS = blocks()
COVERED = set()


def guide(*headings):
    """Says which blocks a test runs."""
    COVERED.update(headings)
    return pytest.mark.skipif(not BLOCKS, reason="no folder of guides; set PENSTOCK_GUIDES")


@guide()
def test_every_block_of_the_guide_is_run_by_a_test_below():
    assert set(BLOCKS) == COVERED


def run(heading, names):
    exec(compile(BLOCKS[heading], f"{GUIDE.name}: {heading}", "exec"), names)
    return names


@guide(
    "Mode 1: `initialize_xfer()` + `transfer()`",
    "Mode 2: `prep_xfer_dlist()` + `make_prepped_xfer()` + `transfer()`",
    "Basic Polling Pattern",
)
def test_transfer_modes_and_polling(sides):
    side = sides()
    side.buffer[:] = 1
    names = run("Mode 1: `initialize_xfer()` + `transfer()`", side.names())
    assert names["state"] in ("DONE", "PROC")
    run("Basic Polling Pattern", names)
    assert side.other.read() == bytes([1]) * 4 * SLOT
    assert side.other("get_new_notifs")["sender"] == [b"optional_tag"] * 2

    side.buffer[:] = 2
    (addr1, size1, _), (addr2, size2, _) = side.local[:2]
    more = {"addr1": addr1, "size1": size1, "addr2": addr2, "size2": size2}
    names = run("Mode 2: `prep_xfer_dlist()` + `make_prepped_xfer()` + `transfer()`", side.names(**more))
    run("Basic Polling Pattern", names)
    assert side.other.read() == bytes([2]) * SLOT + bytes([1]) * 3 * SLOT


@guide("Fire-and-Forget Pattern (High Throughput)")
def test_fire_and_forget(sides):
    side = sides()
    local, remote = side.prepared()
    side.buffer[:] = np.arange(4, dtype=np.uint8)[:, None]
    more = {"NUM_BUFFERS": 4, "NUM_TRANSFERS": 100, "local_prep": local, "remote_prep": remote}
    run("Fire-and-Forget Pattern (High Throughput)", side.names(**more))
    found = []
    while len(found) < 100:
        found += side.other("get_new_notifs").get("sender", [])
    assert found == [f"BUF_{number % 4}".encode() for number in range(100)]
    assert side.other.read() == side.buffer.tobytes()


class There:
    """The other process's agent, as the guide's block has it in hand."""

    def __init__(self, other):
        self.check_remote_xfer_done = lambda *args: other("check_remote_xfer_done", *args)


@guide("Remote Transfer Completion Check")
def test_remote_transfer_completion(sides, capsys):
    side = sides("initiator", "target")
    side.other.write(b"to be read")
    names = side.names(initiator_agent=side.agent, target_agent=There(side.other))
    run("Remote Transfer Completion Check", {**names, "local_descs": side.local, "remote_descs": side.remote})
    assert capsys.readouterr().out == "Initiator finished the transfer!\n"
    assert side.buffer.tobytes().startswith(b"to be read")


@guide("Sending Notifications")
@pytest.mark.parametrize("target", ["receiver", "sender", "peer"])
def test_notifications_are_sent(sides, target, other):
    """The block sends to three agents; the other process is each of them once, and we are the others."""
    side = sides("us", target)
    rest = [nixl_agent(name) for name in ("receiver", "sender", "peer") if name != target]
    for each in rest:
        side.agent.add_remote_agent(each.get_agent_metadata())
    run("Sending Notifications", side.names(count=7))
    expected = {"receiver": b"READY", "sender": b"PROGRESS:7", "peer": b"SHUTDOWN"}
    assert other("get_new_notifs") == {"us": [b"message_bytes", expected[target]]}
    for each in rest:
        assert each.get_new_notifs() == {"us": [expected[each.name]]}
        each.close()


@guide("Receiving Notifications")
def test_notifications_are_received(sides, capsys):
    for name in ("remote_agent", "receiver"):
        side = sides("us", name)
        for message in (b"P:16", b"P:32"):
            side.other("send_notif", "us", message)
        names = run("Receiving Notifications", side.names())
        side.agent.close()
    assert names["progress"] == 32
    said = capsys.readouterr().out
    assert said == "Received: b'P:16'\nReceived: b'P:32'\nReceiver at: 16\nReceiver at: 32\n"


@guide("Check for Specific Notification")
def test_notifications_are_looked_for(sides, capsys):
    side = sides("us", "remote_agent")
    run("Check for Specific Notification", side.names())
    assert capsys.readouterr().out == ""
    for message in (b"ERROR: no", b"ACK"):
        side.other("send_notif", "us", message)
    run("Check for Specific Notification", side.names())
    assert capsys.readouterr().out == "ACK received!\nGot an error notification\n"
    run("Check for Specific Notification", side.names())
    assert capsys.readouterr().out == ""


RECEIVE = """
import time
def receive(number):
    until = time.monotonic() + 30
    while not agent.check_notif("sender", f"BUF_{number % NUM_BUFFERS}".encode()):
        assert time.monotonic() < until
transfers_received = 0
"""


@guide("Solution: Notification-Based Backpressure", "Solution: Notification-Based Backpressure #2")
def test_backpressure(sides):
    """The receiver's block in the other process, the sender's in this one, at the same time."""
    side = sides(slots=64)
    local, remote = side.prepared()
    handles = [
        side.agent.make_prepped_xfer("WRITE", local, [number], remote, [number], f"BUF_{number}".encode())
        for number in range(64)
    ]
    settings = {"NUM_BUFFERS": 64, "NUM_TRANSFERS": 1000}
    side.other.run(RECEIVE, **settings, sender_name="sender")
    receiving = BLOCKS["Solution: Notification-Based Backpressure"]
    placeholder = "# ... receive and process data ..."
    assert placeholder in receiving
    side.other.begin(receiving.replace(placeholder, "receive(transfers_received)"))
    more = {"receiver_name": "receiver", "transfers_sent": 0, "buffer_handles": handles}
    names = run("Solution: Notification-Based Backpressure #2", side.names(**settings, **more))
    side.other.finish()
    assert names["transfers_sent"] == side.other.value("transfers_received") == 1000
    assert names["receiver_progress"] + 60 > 1000 - 60


@guide("Verifying No Buffer Overrun")
def test_no_overrun_is_verified(sides, capsys):

    side = sides()
    block = BLOCKS["Verifying No Buffer Overrun"]
    sending, receiving = block.split("\n\n")
    exec(sending, {"write_uint64": write_uint64, "buffer_addr": side.buffer.ctypes.data, "sequence_number": 41})
    assert side.buffer[0, :8].tobytes() == (41).to_bytes(8, "little")
    handle = side.agent.initialize_xfer("WRITE", side.local, side.remote, "receiver")
    assert side.agent.transfer(handle) == "DONE"
    there = {"buffer_addr": side.remote[0][0], "expected_sequence": 41}
    side.other.run(f"from penstock.compat.nixl.utils import read_uint64\n{receiving}", **there)
    assert side.other.value("seq") == 41
    here = {"read_uint64": read_uint64, "buffer_addr": side.buffer.ctypes.data, "expected_sequence": 42}
    exec(receiving, here)
    assert capsys.readouterr().out == "OVERRUN! Expected 42, got 41\n"


THERE = """
import time
from penstock.compat.nixl.utils import publish_agent_metadata, publish_descriptors
until = time.monotonic() + 20
while True:
    try:
        publish_descriptors(agent, rows, descriptors_key)
        break
    except ConnectionRefusedError:  # the server comes with the other side
        assert time.monotonic() < until
        time.sleep(0.01)
publish_agent_metadata(agent, metadata_key)
"""


def method_1():
    """The block with its import changed, and its placeholders filled in with keys that nobody else uses."""
    unique = uuid.uuid4().hex
    block = BLOCKS["Method 1: TCP Server (Default)"].replace(
        "from utils import", "from penstock.compat.nixl.utils import"
    )
    return re.sub(r'"(\w+_key)"', rf'"\1-{unique}"', block), unique


@guide("Method 1: TCP Server (Default)")
def test_metadata_through_the_key_value_server(sides):
    side = sides()
    side.agent.remove_remote_agent("receiver")
    block, unique = method_1()
    keys = {f"{what}_key": f"remote_{what}_key-{unique}" for what in ("metadata", "descriptors")}
    side.other.begin(THERE, rows=nixlXferDList(nixl_mem_t.DRAM_SEG, side.remote), **keys)
    names = side.names(xfer_descs=side.agent.get_xfer_descs(side.local, "DRAM"))
    exec(block, names)
    side.other.finish()
    assert names["remote_name"] == "receiver"
    assert names["remote_descs"] == side.agent.get_xfer_descs(side.remote, "DRAM")
    side.other.run(
        "from penstock.compat.nixl.utils import retrieve_agent_metadata, retrieve_descriptors\n"
        f"name = retrieve_agent_metadata(agent, 'my_metadata_key-{unique}')\n"
        f"found = retrieve_descriptors(agent, 'my_descriptors_key-{unique}')"
    )
    assert side.other.value("name") == "sender"
    assert side.other.value("found") == names["xfer_descs"]


@guide("Method 2: NIXL Built-in (etcd)")
def test_metadata_through_etcd(sides, etcd_server, etcd_namespace, monkeypatch):
    settings = {"NIXL_ETCD_ENDPOINTS": etcd_server.endpoint, "NIXL_ETCD_NAMESPACE": etcd_namespace}
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    side = sides("sender", "remote_agent")
    side.agent.remove_remote_agent("remote_agent")
    side.other.run(f"import os; os.environ.update({settings})")
    try:
        side.other("send_partial_agent_metadata", None, True, ["UCX"], label="remote_label")
        names = side.names()
        exec(method_1()[0].partition("# Start TCP server")[0], names)
        exec(BLOCKS["Method 2: NIXL Built-in (etcd)"], names)
        assert side.agent.check_remote_metadata("remote_agent")
        side.other("remove_remote_agent", "sender")
        side.other("fetch_remote_metadata", "sender", label="my_label")
        until = time.monotonic() + 10
        while not side.other("check_remote_metadata", "sender"):
            assert time.monotonic() < until
    finally:
        side.other.run(f"import os; [os.environ.pop(name) for name in {list(settings)}]")


def test_114_streaming_through_64_slots_loses_and_overruns_nothing(sides):
    """1000 messages with 64 slots, progress each 16, and a sender that stays at most 60 ahead."""
    side = sides(slots=64)
    local, remote = side.prepared()
    handles = [
        side.agent.make_prepped_xfer("WRITE", local, [number], remote, [number], f"BUF_{number}".encode())
        for number in range(64)
    ]
    side.other.run(STREAM_RECEIVER.split("# loop", maxsplit=1)[0])
    side.other.begin(STREAM_RECEIVER.partition("# loop")[2])
    sent = progress = 0
    headers = side.buffer.view(np.uint64)
    until = time.monotonic() + 60
    while sent < 1000:
        assert time.monotonic() < until
        for message in side.agent.get_new_notifs().get("receiver", []):
            progress = int(message.removeprefix(b"P:"))
        if sent - progress >= 60:
            time.sleep(0.0001)
            continue
        while side.agent.check_xfer_state(handles[sent % 64]) == "PROC":
            pass
        headers[sent % 64] = sent
        side.agent.transfer(handles[sent % 64])
        sent += 1
    side.other.finish()
    assert side.other.value("mismatches") == []
    assert side.other.value("received") == 1000


STREAM_RECEIVER = f"""
import time
import numpy as np
slots = buffer.view(np.uint64).reshape(64, -1)
slots[:, 0] = {2**64 - 1}
mismatches, received = [], 0
# loop
until = time.monotonic() + 60
while received < 1000:
    assert time.monotonic() < until
    if not agent.check_notif("sender", f"BUF_{{received % 64}}".encode()):
        continue
    slot = slots[received % 64]
    if not (slot == received).all():
        mismatches.append((received, slot.tolist()))
    slot[0] = {2**64 - 1}
    received += 1
    if received % 16 == 0:
        agent.send_notif("sender", f"P:{{received}}")
"""


def test_the_page_for_nixls_users_does_what_it_says(other):
    first, second = re.findall(r"^```python\n(.*?)^```", (CHECKOUT / "docs" / "nixl.md").read_text(), re.M | re.S)
    other.run(first.replace("5555", "0"))
    other.run("address, port = cache.ctypes.data, agent.listen_port")
    base = other.value("address")
    names = {"remote_pages": [(base + page * 16384, 16384, 0) for page in (7, 3, 5, 1)], "nixl_agent": nixl_agent}
    exec(second.replace("5555", str(other.value("port"))), {"np": np, "time": time} | names)
    other.run("pages = sorted(set((cache == 1).nonzero()[0].tolist())); print(pages)")
    assert other.value("pages") == [1, 3, 5, 7]


def test_the_two_process_example(sides):
    """A READ with the tag UUID1, then a prepared WRITE with the remote indices [1, 0] and the tag UUID2."""
    side = sides("initiator", "target", slots=2)
    content = bytes([7]) * SLOT + bytes([9]) * SLOT
    side.other.write(content)
    ours, theirs = side.agent.get_xfer_descs(side.local, "DRAM"), side.agent.get_xfer_descs(side.remote, "DRAM")
    handle = side.agent.initialize_xfer("READ", ours, theirs, "target", b"UUID1")
    state = side.agent.transfer(handle)
    while state != "DONE":
        assert state != "ERR"
        state = side.agent.check_xfer_state(handle)
    assert side.other("check_remote_xfer_done", "initiator", b"UUID1")
    assert side.buffer.tobytes() == content

    local, remote = side.prepared()
    handle = side.agent.make_prepped_xfer("WRITE", local, [0, 1], remote, [1, 0], b"UUID2")
    state = side.agent.transfer(handle)
    while state != "DONE":
        assert state != "ERR"
        state = side.agent.check_xfer_state(handle)
    assert side.other("check_remote_xfer_done", "initiator", b"UUID2")
    assert side.other.read() == content[SLOT:] + content[:SLOT]
    side.agent.release_xfer_handle(handle)
    side.agent.release_dlist_handle(local)
    side.agent.release_dlist_handle(remote)
    side.agent.remove_remote_agent("target")
