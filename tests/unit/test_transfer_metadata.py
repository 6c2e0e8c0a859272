"""What agents know of each other: snapshots, how a newer one is added, and what ranges lie in which registration."""

import os
from dataclasses import replace

import numpy as np
import pytest

from penstock.errors import ConfigError, MetadataError
from penstock.transfer.host import Host, this_host
from penstock.transfer.metadata import AgentMetadata, RegistrationRecord, merge

U64 = np.uint64


def record(slot, generation, *ranges, memory="DRAM", device=0, segment=0):
    return RegistrationRecord(slot, generation, memory, device, segment, np.array(ranges or [(4096, 64)], U64))


def agent(*registrations, **parts):
    plain = {"name": "trainer", "instance": b"i" * 16, "secret": b"s" * 16, "registrations": registrations}
    return AgentMetadata(**{**plain, **parts})


def test_round_trip():
    full = agent(
        record(0, 7, (4096, 64, 0), (8192, 64, 4096), segment=3),
        record(9, 8, memory="VRAM", device=1),
        boot_id="8b2-11",
        netns=4026531840,
        socket_name="penstock/1/ä",
        network_address=bytes(range(256)),
        network_transports="tcp",
        complete=False,
    )
    for one in (full, agent()):
        again = AgentMetadata.from_bytes(one.to_bytes())
        assert again == one and again.to_bytes() == one.to_bytes()
    assert agent(name="other") != agent() and agent(record(0, 1)) != agent(record(0, 2))


def test_a_record_keeps_its_own_ranges():
    ranges = np.array([(4096, 64)], U64)
    one = RegistrationRecord(1, 1, "DRAM", 0, 0, ranges)
    ranges[0, 0] = 1
    assert one.ranges.tolist() == [[4096, 64, 0]] and not one.ranges.flags.writeable


def test_secrets_stay_out_of_what_is_printed():
    assert "secret" not in repr(agent()) and "ssss" not in repr(agent())


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: agent(name=""), "name of 0 bytes; from 1 to 255"),
        (lambda: agent(name="ä" * 128), "name of 256 bytes"),
        (lambda: agent(instance=b"short"), "instance of 5 bytes; it has 16"),
        (lambda: agent(secret=b""), "secret of 0 bytes"),
        (lambda: agent(netns=-1), "netns is -1"),
        (lambda: agent(network_address=bytes(1 << 17)), "network address of 131072 bytes"),
        (lambda: agent(record(1, 1), record(1, 2)), "two registrations in one slot"),
        (lambda: record(1, 0), "generation is 0; it is from 1"),
        (lambda: record(1 << 32, 1), "slot is 4294967296"),
        (lambda: record(1, 1, memory="HBM"), "memory is 'HBM'"),
        (lambda: record(1, 1, (1, 2), (2, 2)), "overlap, or aren't sorted"),
        (lambda: record(1, 1, (8, 2), (2, 2)), "overlap, or aren't sorted"),
        (lambda: record(1, 1, (8, 0)), "empty, or ends beyond"),
        (lambda: record(1, 1, (2**64 - 1, 1)), "empty, or ends beyond"),
        (lambda: record(1, 1, (8, 1, 2**64 - 1)), "empty, or ends beyond"),
        (lambda: RegistrationRecord(1, 1, "DRAM", 0, 0, np.zeros((0, 2), U64)), "ranges of shape"),
        (lambda: RegistrationRecord(1, 1, "DRAM", 0, 0, np.ones((1, 2))), "dtype float64"),
    ],
)
def test_what_no_agent_can_be(make, said):
    with pytest.raises(MetadataError) as caught:
        make()
    assert said in str(caught.value)


def test_a_complete_snapshot_replaces_and_a_partial_one_adds():
    known = agent(record(0, 1), record(1, 2), network_address=b"old", network_transports="tcp")
    complete = agent(record(2, 3))
    partial = agent(record(1, 4), record(2, 3), complete=False)
    assert merge(None, partial) is partial
    assert merge(known, complete) is complete
    both = merge(known, partial)
    assert {one.slot: one.generation for one in both.registrations} == {0: 1, 1: 4, 2: 3}
    assert both.complete and (both.network_address, both.network_transports) == (b"old", "tcp")
    late = merge(both, agent(record(1, 2), complete=False, network_address=b"new"))
    assert {one.slot: one.generation for one in late.registrations}[1] == 4 and late.network_address == b"new"


def test_two_parts_of_one_registration_become_one():
    known = agent(record(1, 2, (1000, 10, 0), (2000, 10, 1000), segment=7), complete=False)
    both = merge(known, agent(record(1, 2, (1005, 10, 5), (3000, 1, 2000), segment=7), complete=False))
    assert both.registrations == (record(1, 2, (1000, 15, 0), (2000, 10, 1000), (3000, 1, 2000), segment=7),)
    outside = merge(agent(record(1, 2, (5, 5))), agent(record(1, 2, (1, 2), (10, 5)), complete=False))
    assert outside.registrations == (record(1, 2, (1, 2), (5, 10)),)
    with pytest.raises(MetadataError, match="two kinds of memory"):
        merge(known, agent(record(1, 2, (1000, 10, 0), segment=8), complete=False))
    with pytest.raises(MetadataError, match="overlap"):  # the same address at two places of the segment
        merge(known, agent(record(1, 2, (1000, 10, 64), segment=7), complete=False))


def test_another_instance_of_a_name_is_another_agent():
    newer = agent(record(0, 1), instance=b"j" * 16, complete=False)
    assert merge(agent(record(5, 9)), newer) is newer
    with pytest.raises(ConfigError, match="'other' can't be added to that of 'trainer'"):
        merge(agent(), agent(name="other", instance=b"j" * 16))


def test_this_host_is_itself_and_an_unknown_one_is_nobody():
    here = this_host()
    assert here.same_as(this_host()) and here.netns == os.stat("/proc/self/ns/net").st_ino
    assert not here.same_as(here._replace(netns=1)) and not Host("", 0).same_as(Host("", 0))
    assert replace(agent(), boot_id=here.boot_id, netns=here.netns).host.same_as(here)
