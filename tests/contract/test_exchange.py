"""What every exchange does, whatever lies under it."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator

import pytest

from penstock.errors import ConfigError, DeadlineExceeded
from penstock.transfer.exchange import EtcdExchange, Exchange, KeyValueClient, KeyValueExchange, KeyValueServer


class ExchangeContract:
    @pytest.fixture
    def exchange(self) -> Exchange:
        raise NotImplementedError

    def test_it_is_one(self, exchange):
        assert isinstance(exchange, Exchange)

    @pytest.mark.parametrize("size", [0, 1, 4096, 5000, 1 << 20])
    def test_a_blob_comes_back_as_it_was(self, exchange, size):
        blob = os.urandom(size)
        exchange.publish("a", "metadata", blob)
        assert exchange.retrieve("a", "metadata", 5.0) == blob

    def test_the_newest_blob_of_a_label_counts(self, exchange):
        exchange.publish("a", "metadata", b"old")
        exchange.publish("a", "metadata", b"new")
        assert exchange.retrieve("a", "metadata", 5.0) == b"new"

    def test_agents_and_labels_are_apart(self, exchange):
        for agent in ("a", "b", "a/b", "a%2Fb", "á 😀"):
            for label in ("metadata", "part", "b/part"):
                exchange.publish(agent, label, f"{agent}|{label}".encode())
        for agent in ("a", "b", "a/b", "a%2Fb", "á 😀"):
            for label in ("metadata", "part", "b/part"):
                assert exchange.retrieve(agent, label, 5.0) == f"{agent}|{label}".encode()

    def test_a_blob_that_isnt_there_is_a_deadline(self, exchange):
        began = time.monotonic()
        with pytest.raises(DeadlineExceeded, match=r"nobody.*not done within 0\.3 s"):
            exchange.retrieve("nobody", "metadata", 0.3)
        assert 0.2 < time.monotonic() - began < 2.0

    def test_a_blob_is_waited_for(self, exchange):
        got: list[bytes] = []
        waiting = threading.Thread(target=lambda: got.append(exchange.retrieve("late", "metadata", 10.0)))
        waiting.start()
        waiting.join(0.3)
        assert waiting.is_alive()
        exchange.publish("other", "metadata", b"not this")
        exchange.publish("late", "part", b"nor this")
        exchange.publish("late", "metadata", b"this")
        waiting.join(10.0)
        assert got == [b"this"]

    def test_removal_takes_all_labels_of_one_agent(self, exchange):
        for agent in ("a", "ab", "a/b"):
            exchange.publish(agent, "metadata", b"1")
            exchange.publish(agent, "part", b"2")
        exchange.remove("a")
        exchange.remove("never-there")
        for label in ("metadata", "part"):
            with pytest.raises(DeadlineExceeded):
                exchange.retrieve("a", label, 0.1)
            assert exchange.retrieve("ab", label, 5.0)
            assert exchange.retrieve("a/b", label, 5.0)

    def test_an_agent_may_come_back(self, exchange):
        exchange.publish("a", "metadata", b"first life")
        exchange.remove("a")
        exchange.publish("a", "metadata", b"second life")
        assert exchange.retrieve("a", "metadata", 5.0) == b"second life"

    def test_names_and_time_outs_that_make_no_sense(self, exchange):
        with pytest.raises(ConfigError, match="agent name is empty"):
            exchange.publish("", "metadata", b"")
        with pytest.raises(ConfigError, match="label is empty"):
            exchange.retrieve("a", "", 1.0)
        with pytest.raises(ConfigError, match="agent name is empty"):
            exchange.remove("")
        for bad in (-1.0, float("nan"), float("inf")):
            with pytest.raises(ConfigError, match="number of seconds"):
                exchange.retrieve("a", "metadata", bad)

    def test_many_at_once(self, exchange):
        def meet(me: int) -> None:
            exchange.publish(f"agent-{me}", "metadata", b"%d" % me)
            other = (me + 1) % 8
            met[me] = exchange.retrieve(f"agent-{other}", "metadata", 20.0) == b"%d" % other

        met = [False] * 8
        threads = [threading.Thread(target=meet, args=(me,)) for me in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30.0)
        assert all(met)


class TestKeyValueExchange(ExchangeContract):
    @pytest.fixture
    def exchange(self) -> Iterator[Exchange]:
        with KeyValueServer(port=0) as server:
            yield KeyValueExchange(KeyValueClient(port=server.port))


class TestKeyValueExchangeWithAToken(ExchangeContract):
    @pytest.fixture
    def exchange(self) -> Iterator[Exchange]:
        with KeyValueServer(port=0, token="s3cret") as server:
            yield KeyValueExchange(KeyValueClient(port=server.port, token="s3cret"))


class TestEtcdExchange(ExchangeContract):
    @pytest.fixture
    def exchange(self, etcd_server, etcd_namespace) -> Iterator[Exchange]:
        with EtcdExchange(etcd_server.endpoint, namespace=etcd_namespace) as exchange:
            yield exchange
