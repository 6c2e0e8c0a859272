"""A real coordinator, looked at: its page, `penstock top` by either address, and where the page is served."""

import re
import socket
import urllib.request

import pytest
from tests.coordinators import Node, Process, nodes, running
from tests.server_process import free_ports

import chromium
from penstock.cli.main import main
from penstock.coordinator.access import Access
from penstock.coordinator.ask import ask_for_snapshot
from penstock.coordinator.credentials import Credentials
from penstock.coordinator.server import Settings
from penstock.errors import ConfigError, CoordinatorRefused

JOB = ("--journal=memory:", "--world-size=2", "--dev-total-samples=8000", "--dev-block-size=1000")


@pytest.fixture
def coordinator(tmp_path):
    with Process(tmp_path / "log", "--addr=127.0.0.1:0", "--lease-ttl-ms=4000", *JOB) as coordinator:
        yield coordinator


def page_of(coordinator):
    return coordinator.until(r"^page at (\S+)$")[1]


def test_the_page_and_top_show_what_nodes_do(coordinator, capsys):
    page = page_of(coordinator)
    a, b = nodes(coordinator.addr, "a", "b")
    with a, b:
        (lease,) = a.request().leases
        a.report(lease, 400, delivered_samples=400, delivered_bytes=4000)
        for url in (page, coordinator.addr, f"http://{coordinator.addr}"):
            job = ask_for_snapshot(url)
            while job["done"] != 400:  # it may be a moment old
                job = ask_for_snapshot(url)
            assert (job["phase"], job["leased"], job["leases"]["shown"][0]["node"]) == ("running", 600, "a")
            assert [node["samples"] for node in job["nodes"]["shown"]] == [400, 0]
        assert main(["top", "--coord", coordinator.addr, "--once"]) == 0
        assert capsys.readouterr().out.startswith("running, 5.0 %, 400 of 8,000 samples")
        a.report(lease, 1000)
        a.work()
        b.work()
        while ask_for_snapshot(page)["phase"] != "drained":
            pass
    with urllib.request.urlopen(f"{page}metrics", timeout=10) as answer:
        assert b'penstock_job_events_total{event="job_drained"} 1.0' in answer.read()
    assert coordinator.end() == 0, "with somebody's connection or not"


def test_the_page_has_the_next_port_or_another_or_none():
    port = free_ports(2)[0]
    next_one = f"http://127.0.0.1:{port + 1}/"
    with running(settings=Settings(addr=f"127.0.0.1:{port}", page_addr=None)) as coordinator:
        assert coordinator.server.page.url == next_one
    taken, settings = socket.create_server(("127.0.0.1", port + 1)), Settings(f"127.0.0.1:{port}", page_addr=None)
    with taken, running(settings=settings) as coordinator:
        other = coordinator.server.page.url
        assert other != next_one
        assert ask_for_snapshot(other)["phase"] == "gathering"
    for off in ("", "off"):
        with running(settings=Settings(addr="127.0.0.1:0", page_addr=off)) as coordinator:
            assert coordinator.server.page is None


@pytest.mark.parametrize(
    ("page_addr", "complaint"),
    [
        ("0.0.0.0:0", "could be reached"),
        ("nonsense", "isn't host:port"),
        ("127.0.0.1:{}", "choose"),
    ],
)
def test_a_page_that_cant_be_is_an_error_before_anything_begins(page_addr, complaint):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        settings = Settings(addr="127.0.0.1:0", page_addr=page_addr.format(taken.getsockname()[1]))
        with pytest.raises(ConfigError, match=complaint), running(settings=settings):
            pass


def test_whoever_looks_shows_what_nodes_show():
    access = Access(token="a-long-enough-secret")
    with running(settings=Settings(addr="127.0.0.1:0", page_addr=None, access=access)) as coordinator:
        for url in (coordinator.server.page.url, coordinator.addr):
            with pytest.raises(CoordinatorRefused) as refusal:
                ask_for_snapshot(url)
            assert refusal.value.code == "UNAUTHENTICATED"
            assert ask_for_snapshot(url, credentials=Credentials("a-long-enough-secret"))["phase"] == "gathering"


@pytest.mark.skipif(bool(chromium.missing()), reason=chromium.missing())
def test_in_a_browser_a_node_dies_and_others_take_over(coordinator):
    from playwright.sync_api import expect

    a, b = nodes(coordinator.addr, "a", "b")
    with chromium.browser() as launched, a, b:
        tab = launched.new_page()
        tab.goto(page_of(coordinator))
        expect(tab.locator("#phase")).to_have_text("Running", timeout=20_000)
        (held,) = b.request().leases
        b.report(held, held.range.start_id + 250)
        expect(tab.locator("#nodes tr:nth-child(2) .lane svg")).to_have_attribute(
            "aria-label", re.compile("^1 lease: 1,000 to 2,000, at 1,250$"), timeout=20_000
        )
        # b says nothing any more.
        expect(tab.locator("#events")).to_contain_text("lease-0 of b ended at 1,250, before 2,000", timeout=20_000)
        expect(tab.locator("#nodes tr:nth-child(2)")).to_contain_text("gone", timeout=20_000)
        with Node(coordinator.addr, "a") as again:
            again.register()
            done = again.work()
            while len(done) < 8:
                done += again.work()
        expect(tab.locator("#phase")).to_have_text("Drained", timeout=20_000)
        expect(tab.locator("#percent")).to_have_text("100 %")
        coordinator.kill()
        expect(tab.locator("#connection-text")).to_contain_text("connection lost", timeout=20_000)
