"""The journal in etcd against a plain model, over a line that loses, delays and repeats: nothing committed is lost, and
nobody but the newest leader commits."""

from __future__ import annotations

import contextlib
from unittest import mock

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from etcd_model import EtcdModel, Fate, GatewayModel
from penstock.coordinator.journal import EtcdJournal, etcd, etcd_leadership, etcd_log
from penstock.errors import JournalUnavailable, NotLeader, PeerRefused, PeerUnreachable

WHO = st.integers(0, 2)
CHANGES = st.dictionaries(st.sampled_from("abcd"), st.none() | st.text("xyzäöü", max_size=60), min_size=1, max_size=4)
FATES = st.builds(lambda fine, others: [Fate.FINE] * fine + others, st.integers(0, 6), st.lists(st.sampled_from(Fate)))


class JournalMachine(RuleBasedStateMachine):
    def __init__(self):
        super().__init__()
        self.etcd = EtcdModel()
        self.patches = contextlib.ExitStack()
        for module, name, value in (
            (etcd, "_FIRST_PAUSE_S", 0.0),
            (etcd, "_COMPACT_ENTRIES", 3),
            (etcd, "_PAGE", 2),
            (etcd_leadership, "_PAUSE_S", 0.0),
            (etcd_log, "CHUNK_BYTES", 30),
        ):
            self.patches.enter_context(mock.patch.object(module, name, value))
        self.journals = [self.new(number) for number in range(3)]
        self.terms = [0, 0, 0]  # of each, while it hasn't heard that it doesn't lead
        self.newest = 0
        self.possible: list[dict[str, str]] = [{}]  # what may be kept

    def new(self, number: int) -> EtcdJournal:
        journal = EtcdJournal("a", job_id="job", address=f"{number}:1", ttl_s=100_000)
        journal._gateway = GatewayModel(self.etcd)
        return journal

    @initialize(who=WHO)
    def somebody_leads(self, who):
        self.lead(who, [])

    @rule(who=WHO, fates=FATES)
    def lead(self, who, fates):
        self.etcd.fates = list(fates)
        journal = self.journals[who]
        self.terms[who] = 0
        try:
            term = journal.lead(0)
        except (JournalUnavailable, NotLeader):
            assert fates
            assert journal.lost
            return
        finally:
            self.etcd.fates = []
        if term is None:
            assert b"/penstock/job/leader" in self.etcd.entries
            return
        assert term > self.newest
        self.newest = self.terms[who] = term
        assert journal.load() in self.possible
        self.possible = [journal.load()]

    @rule(who=WHO)
    def another_takes_over(self, who):
        self.etcd.expire()
        self.lead(who, [])

    @precondition(lambda self: any(self.terms))
    @rule(data=st.data(), commits=st.lists(CHANGES, min_size=1, max_size=5))
    def whoever_thinks_that_it_leads_commits(self, data, commits):
        who = data.draw(self.thinks_that_it_leads())
        for changes in commits:
            self.commit(who, changes, [])

    @precondition(lambda self: any(self.terms))
    @rule(data=st.data(), changes=CHANGES, fates=FATES)
    def it_commits_over_a_bad_line(self, data, changes, fates):
        self.commit(data.draw(self.thinks_that_it_leads()), changes, fates)

    def thinks_that_it_leads(self):
        return st.sampled_from([who for who, term in enumerate(self.terms) if term])

    def commit(self, who, changes, fates):
        self.etcd.fates, before = list(fates), self.etcd.astray
        journal = self.journals[who]
        leads = self.terms[who] != 0 and self.etcd.term() == self.terms[who]
        outcomes = [applied(records, changes) for records in self.possible]
        try:
            journal.commit(changes)
        except (JournalUnavailable, NotLeader) as error:
            met = fates[: len(fates) - len(self.etcd.fates)]
            assert any(fate.name.endswith("OVER") for fate in met) or not leads, "a try more was to help"
            may_lead = self.terms[who] == self.newest
            if isinstance(error, JournalUnavailable):
                assert self.etcd.astray > before
            if may_lead and self.etcd.astray > before:  # it may have arrived, or arrive later
                self.possible += outcomes
            self.terms[who] = 0
        else:
            assert self.terms[who] == self.newest
            assert len(self.possible) == 1
            self.possible = outcomes
            if journal.lost:  # the log couldn't be written anew
                self.terms[who] = 0
            else:
                assert journal.load() in self.possible
        finally:
            self.etcd.fates = []

    @rule()
    def the_leader_stands_still_for_too_long(self):
        self.etcd.expire()

    @precondition(lambda self: self.etcd.late)
    @rule(data=st.data())
    def a_request_arrives_late_maybe_again(self, data):
        path, request = data.draw(st.sampled_from(self.etcd.late))
        with contextlib.suppress(PeerRefused, PeerUnreachable):
            self.etcd.answer(path, request)

    @rule(who=WHO)
    def a_coordinator_is_started_again(self, who):
        self.journals[who].close()
        self.journals[who] = self.new(who)
        self.terms[who] = 0

    def teardown(self):
        self.etcd.expire()
        last = self.new(9)
        assert last.lead(0) > self.newest
        assert last.load() in self.possible
        numbers = {int(key.rsplit(b"/", 2)[1]) for key in self.etcd.entries if b"/entry/" in key}
        head = last._head
        assert numbers == (set(range(head.first, head.last + 1)) if head else set())  # nothing is left over
        for journal in [*self.journals, last]:
            journal.close()
        self.patches.close()


def applied(records, changes):
    return {key: text for key, text in {**records, **changes}.items() if text is not None}


TestJournal = JournalMachine.TestCase
TestJournal.settings = settings(max_examples=50, stateful_step_count=20)
