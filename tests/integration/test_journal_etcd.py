"""The journal in a real etcd of three members: they are killed and stopped, and so are the coordinators."""

from __future__ import annotations

import base64
import contextlib
import threading
import time

import pytest

from etcd_server import EtcdCluster, EtcdServer
from journal_process import JournalProcess
from penstock.coordinator.journal import EtcdJournal
from penstock.coordinator.journal import etcd as journal_etcd
from penstock.errors import ClosedError, CoordinatorError, JournalUnavailable, NotLeader, PeerUnreachable
from penstock.etcd import Gateway
from penstock.testing.fault_proxy import Fault, FaultProxy
from waiting import wait_until

TTL_S = 2.0  # etcd's least


@pytest.fixture(scope="module")
def members(tmp_path_factory):
    cluster = EtcdCluster(tmp_path_factory.mktemp("etcd-cluster"))
    yield cluster
    cluster.kill()


@pytest.fixture
def cluster(members):
    yield members
    members.restore()


@pytest.fixture
def open_(etcd_namespace):
    """Journals of one job; closed at the end."""
    opened = []

    def open_(endpoints, address="a:1", **options):
        options.setdefault("ttl_s", TTL_S)
        opened.append(EtcdJournal(endpoints, job_id="job", address=address, prefix=etcd_namespace, **options))
        return opened[-1]

    yield open_
    for journal in opened:
        journal.close()


@pytest.fixture
def process(etcd_namespace):
    """Journals in processes of their own."""
    started = []

    def process(cluster, address):
        hosts = ",".join(endpoint.removeprefix("http://") for endpoint in cluster.endpoints)
        started.append(JournalProcess(f"etcd://{hosts}{etcd_namespace}", address, TTL_S))
        return started[-1]

    yield process
    for each in started:
        each.kill()


def keys_below(server, namespace):
    first = f"{namespace}job/entry/".encode()
    answer = server.call("/v3/kv/range", key=text_of(first), range_end=text_of(first[:-1] + b"0"), keys_only=True)
    return [base64.b64decode(each["key"]).removeprefix(first).decode() for each in answer.get("kvs", [])]


def text_of(data):
    return base64.b64encode(data).decode()


# Members of etcd.


@pytest.mark.parametrize("ends", ["kill", "stop"])
def test_a_member_that_ends_loses_nothing(cluster, open_, ends):
    journal = open_(cluster.endpoints)
    journal.lead(10)
    for number in range(60):
        if number == 20:
            getattr(cluster.leader(), ends)()
        journal.commit({"count": str(number), f"each/{number}": "x"})
    journal.close()
    after = open_(cluster.endpoints, "b:2")
    assert after.lead(20) is not None
    assert after.load() == {"count": "59", **{f"each/{number}": "x" for number in range(60)}}


@pytest.mark.slow
def test_without_a_majority_nothing_is_committed_and_nothing_is_lost(cluster, open_):
    journal = open_(cluster.endpoints, timeout_s=TTL_S + 0.5)
    journal.lead(10)
    journal.commit({"a": "1"})
    for member in cluster.members[:2]:
        member.stop()
    with pytest.raises(JournalUnavailable, match="committing"):
        journal.commit({"a": "2"})
    assert journal.lost
    with pytest.raises(NotLeader):
        journal.load()
    with pytest.raises(JournalUnavailable, match="beginning to lead"):
        journal.lead(0.1)
    cluster.restore()
    assert journal.lead(20) is not None
    assert journal.load()["a"] in {"1", "2"}
    journal.commit({"a": "3"})
    assert journal.load() == {"a": "3"}


def test_an_outage_shorter_than_the_lease_is_waited_out(cluster, open_):
    journal = open_(cluster.endpoints, ttl_s=10.0)
    term = journal.lead(10)
    for member in cluster.members:
        member.stop()
    committing = threading.Thread(target=lambda: journal.commit({"a": "1"}))
    committing.start()
    committing.join(0.5)
    assert committing.is_alive()
    cluster.restore()
    committing.join(20)
    assert journal.load() == {"a": "1"}
    assert not journal.lost
    journal.close()
    after = open_(cluster.endpoints)
    assert after.lead(20) > term
    assert after.load() == {"a": "1"}


def test_whoever_closes_doesnt_wait_for_an_etcd_that_is_silent(cluster, open_):
    journal = open_(cluster.endpoints)
    journal.lead(10)
    ended = []

    def commit():
        with pytest.raises(ClosedError):
            journal.commit({"a": "1"})
        ended.append(True)

    for member in cluster.members:
        member.stop()
    committing = threading.Thread(target=commit)
    committing.start()
    committing.join(0.3)
    began = time.monotonic()
    journal.close()
    committing.join(5)
    assert ended == [True]
    assert time.monotonic() - began < 4


# Coordinators.


def test_a_leader_that_was_stopped_past_its_lease_is_fenced(cluster, open_, process):
    stopped = process(cluster, "stopped:1")
    term, _ = stopped.do("lead", 10)
    assert stopped.do("commit", {"a": "1"}) is None
    follower = open_(cluster.endpoints, "follower:2")
    assert follower.lead(0) is None
    assert follower.leader() == "stopped:1"
    stopped.stop()
    assert follower.lead(30) > term
    assert follower.load() == {"a": "1"}
    follower.commit({"a": "2"})
    stopped.ask("lost")
    stopped.resume()
    assert stopped.answer() is True  # before it has heard of anything
    assert stopped.do("commit", {"a": "3", "b": "3"}) == "NotLeader"
    assert stopped.do("load") == "NotLeader"
    assert stopped.do("leader") == "follower:2"
    assert follower.load() == {"a": "2"}
    follower.commit({"c": "4"})
    follower.close()
    assert stopped.do("lead", 10)[0] > term
    assert stopped.do("load") == {"a": "2", "c": "4"}


def test_a_follower_leads_soon_after_the_leader_was_killed(cluster, open_, process):
    leader = process(cluster, "killed:1")
    leader.do("lead", 10)
    leader.do("commit", {"a": "1"})
    follower = open_(cluster.endpoints, "follower:2")
    waiting = threading.Thread(target=lambda: follower.lead(30))
    waiting.start()
    waiting.join(0.2)
    leader.kill()
    began = time.monotonic()
    waiting.join(30)
    assert time.monotonic() - began < TTL_S + 10
    assert follower.load() == {"a": "1"}


@pytest.mark.slow
def test_who_leads_goes_on_to_lead(cluster, open_):
    leader, follower = open_(cluster.endpoints), open_(cluster.endpoints, "b:2")
    leader.lead(10)
    assert follower.lead(2.5 * TTL_S) is None
    assert not leader.lost
    leader.commit({"a": "1"})


def test_a_leader_whose_lease_is_gone_notices_by_itself(etcd_server, etcd_namespace, open_):
    leader, follower = open_(etcd_server.endpoint, ttl_s=1.0), open_(etcd_server.endpoint)
    leader.lead(10)
    lease_id = leader._leadership._lease_id
    etcd_server.call("/v3/lease/revoke", ID=lease_id)
    assert follower.lead(10) is not None
    wait_until(lambda: leader.lost)


# Requests that go astray.


def test_a_commit_whose_answer_is_lost_counts_once(etcd_server, open_):
    with FaultProxy(etcd_server.endpoint) as proxy:
        journal = open_(proxy.url)
        proxy.fail_next(1, Fault(cut_after_bytes=0), method="POST")
        journal.lead(10)
        for number in range(4):
            proxy.fail_next(1, Fault(cut_after_bytes=0), method="POST")
            journal.commit({"count": str(number)})
        assert len([each for each in proxy.requests if each.path.endswith("/txn")]) >= 10
        assert journal.load() == {"count": "3"}
        journal.close()
        after = open_(etcd_server.endpoint)
        after.lead(10)
        assert after.load() == {"count": "3"}


def test_a_leader_whose_key_somebody_took_away_knows_it(etcd_server, etcd_namespace, open_):
    """Its lease goes on, and a report that moves nothing would be answered though somebody else leads."""
    leader, other = open_(etcd_server.endpoint), open_(etcd_server.endpoint, "b:2")
    leader.lead(5)
    etcd_server.call("/v3/kv/deleterange", key=text_of(f"{etcd_namespace}job/leader".encode()))
    assert other.lead(5) is not None
    wait_until(lambda: leader.lost)
    assert not other.lost


def test_a_leader_whose_machine_slept_isnt_sure_any_more(etcd_server, open_, machine_sleeps):
    leader = open_(etcd_server.endpoint)
    leader.lead(5)
    assert not leader.lost
    machine_sleeps(TTL_S)
    assert leader.lost


def test_taking_the_lead_when_the_answer_is_lost(etcd_server, open_, monkeypatch):
    call, lost = Gateway.call, []

    def loses_the_first(gateway, path, request, deadline):
        answer = call(gateway, path, request, deadline)
        if path == "/v3/kv/txn" and not lost:
            lost.append(answer)
            return call(gateway, path, request, deadline)  # as the gateway itself asks the next member
        return answer

    monkeypatch.setattr(Gateway, "call", loses_the_first)
    journal = open_(etcd_server.endpoint)
    term = journal.lead(10)
    assert lost[0]["succeeded"]
    assert term == int(lost[0]["header"]["revision"])
    journal.commit({"a": "1"})


def test_a_request_that_was_long_on_its_way_changes_nothing(etcd_server, etcd_namespace, open_, monkeypatch):
    call, sent = Gateway.call, []

    def seen(gateway, path, request, deadline):
        if path == "/v3/kv/txn":
            sent.append(request)
        return call(gateway, path, request, deadline)

    monkeypatch.setattr(Gateway, "call", seen)
    monkeypatch.setattr("penstock.coordinator.journal.etcd_log.CHUNK_BYTES", 64)
    journal = open_(etcd_server.endpoint)
    journal.lead(10)
    for number in range(5):
        journal.commit({"count": str(number), "some": "".join(map(chr, range(40 + number, 140 + number)))})
    records, keys = journal.load(), keys_below(etcd_server, etcd_namespace)
    assert len(sent) > 10
    for request in sent:
        assert not etcd_server.call("/v3/kv/txn", **request).get("succeeded")
    assert keys_below(etcd_server, etcd_namespace) == keys
    journal.commit({"count": "5"})
    journal.close()
    after = open_(etcd_server.endpoint)
    after.lead(10)
    assert after.load() == {**records, "count": "5"}


@pytest.mark.parametrize("fails_at", [1, 2, 5])
def test_a_large_commit_that_was_half_done_is_as_if_it_never_was(
    etcd_server, etcd_namespace, open_, monkeypatch, fails_at
):
    monkeypatch.setattr("penstock.coordinator.journal.etcd_log.CHUNK_BYTES", 100)
    journal = open_(etcd_server.endpoint, timeout_s=0.2)
    journal.lead(10)
    journal.commit({"a": "1"})
    call, puts = Gateway.call, []

    def fails(gateway, path, request, deadline):
        if path == "/v3/kv/txn":
            puts.append(request)
            if len(puts) >= fails_at:
                raise PeerUnreachable("it is gone")
        return call(gateway, path, request, deadline)

    with monkeypatch.context() as patch:
        patch.setattr(Gateway, "call", fails)
        with pytest.raises(JournalUnavailable):
            journal.commit({f"{number:x}": "".join(map(chr, range(number, 300 + number))) for number in range(32, 50)})
    left = [key for key in keys_below(etcd_server, etcd_namespace) if key.startswith(f"{2:016d}")]
    assert len(left) == fails_at - 1
    after = open_(etcd_server.endpoint)
    after.lead(10)
    assert after.load() == {"a": "1"}
    assert len(keys_below(etcd_server, etcd_namespace)) == 1
    after.commit({"b": "2"})
    assert after.load() == {"a": "1", "b": "2"}


# What lies there.


@pytest.mark.parametrize("forgets", [True, False])
def test_the_log_is_written_anew_and_etcd_forgets_if_it_may(tmp_path, etcd_namespace, open_, monkeypatch, forgets):
    server = EtcdServer.start(tmp_path / "etcd")
    try:
        monkeypatch.setattr(journal_etcd, "_COMPACT_ENTRIES", 10)
        journal = open_(server.endpoint, forget=forgets)
        first = journal.lead(10)
        for number in range(50):
            journal.commit({"stays": "x", "count": str(number)} if number == 0 else {"count": str(number)})
            assert len(keys_below(server, etcd_namespace)) <= 12
        with pytest.raises(OSError, match="400") if forgets else contextlib.nullcontext():  # compacted
            server.call("/v3/kv/range", key=text_of(b"a"), revision=str(first + 5))
        journal.close()
        after = open_(server.endpoint)
        after.lead(10)
        assert after.load() == {"stays": "x", "count": "49"}
    finally:
        server.kill()


def test_an_etcd_that_is_full_is_told(tmp_path, open_):
    server = EtcdServer.start(tmp_path / "etcd", "--quota-backend-bytes", str(2 << 20))
    try:
        journal = open_(server.endpoint)
        journal.lead(10)
        noise = "".join(map(chr, range(32, 1000)))
        with pytest.raises(JournalUnavailable, match="space exceeded"):
            for number in range(400):
                journal.commit({f"{number}/{each}": noise[each:] + noise[:each] for each in range(40)})
        assert journal.lost
    finally:
        server.kill()


def test_an_entry_that_somebody_took_away_is_told(etcd_server, etcd_namespace, open_):
    journal = open_(etcd_server.endpoint)
    journal.lead(10)
    for number in range(4):
        journal.commit({"count": str(number)})
    journal.close()
    key = text_of(f"{etcd_namespace}job/entry/{3:016d}/{0:06d}".encode())
    assert etcd_server.call("/v3/kv/deleterange", key=key)["deleted"] == "1"
    after = open_(etcd_server.endpoint)
    with pytest.raises(CoordinatorError, match="lacks its entry 3 of 1 to 4"):
        after.lead(10)
    assert after.leader() is None


@pytest.mark.parametrize(
    ("where", "what"),
    [("head", b"{}"), ("head", b"\xff"), ("head", b'{"format":2,"first":1,"last":1,"term":1}')]
    + [("head", b'{"format":1,"first":"x","last":1,"term":1}')]
    + [(f"entry/{1:016d}/of/others", b"")]
    + [(f"entry/{1:016d}/{0:06d}", what) for what in (b"", b"\xff", b"x\x9c\x03\x00\x00\x00\x00\x01")],
)
def test_what_isnt_a_journal_is_told(etcd_server, etcd_namespace, open_, where, what):
    journal = open_(etcd_server.endpoint)
    journal.lead(10)
    journal.commit({"a": "1"})
    journal.close()
    etcd_server.call("/v3/kv/put", key=text_of(f"{etcd_namespace}job/{where}".encode()), value=text_of(what))
    with pytest.raises(CoordinatorError, match="can't be read|is damaged"):
        open_(etcd_server.endpoint).lead(10)


@pytest.mark.parametrize("what", [b"", b"\xff", b"{}", b"[]"])
def test_a_leader_that_is_no_coordinator_is_told(etcd_server, etcd_namespace, open_, what):
    key = text_of(f"{etcd_namespace}job/leader".encode())
    etcd_server.call("/v3/kv/put", key=key, value=text_of(what))
    with pytest.raises(CoordinatorError, match="no coordinator wrote"):
        open_(etcd_server.endpoint).leader()


def test_jobs_are_apart(etcd_server, etcd_namespace):
    journals = [
        EtcdJournal(etcd_server.endpoint, job_id=job_id, address=f"{number}:1", prefix=etcd_namespace)
        for number, job_id in enumerate(["a", "a/b", "a/entry", "é%2F"])
    ]
    for journal in journals:
        assert journal.lead(5) is not None
        journal.commit({"me": journal.leader()})
    for number, journal in enumerate(journals):
        assert journal.load() == {"me": f"{number}:1"}
        journal.close()


def test_no_etcd_at_all(open_):
    journal = open_("http://127.0.0.1:9", timeout_s=0.3)
    for ask in (lambda: journal.lead(0.2), journal.leader):
        with pytest.raises(JournalUnavailable, match="no etcd answers"):
            ask()
