"""A loader's line with TLS, certificates and a token; and what it says, soon, where they don't fit."""

from __future__ import annotations

import contextlib
import json
import socket
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import pytest
from packing import pack_random
from tests.certificates import make_certificates
from tests.coordinators import JOB_ID, Process, running
from tests.server_process import free_ports

import penstock
from penstock.cli.main import main
from penstock.coordinator.access import Access
from penstock.coordinator.client import Client
from penstock.coordinator.credentials import Credentials
from penstock.coordinator.server import Settings
from penstock.errors import ConfigError, CoordinatorRefused, CoordinatorUnreachable

SAMPLES = 120
SOON_S = 5.0  # on a busy machine; the deadline is a minute


@pytest.fixture(scope="module")
def tls(tmp_path_factory):
    return make_certificates(tmp_path_factory.mktemp("tls"))


@pytest.fixture(scope="module")
def leading(tls):
    """Coordinators by what they ask for."""
    own = {"tls_cert": tls / "server.pem", "tls_key": tls / "server.key"}
    ways = {
        "plain": Access(),
        "tls": Access(**own),
        "mutual": Access(**own, tls_client_ca=tls / "ca.pem", token="secret"),
        "elsewhere": Access(tls_cert=tls / "elsewhere.pem", tls_key=tls / "elsewhere.key"),
    }
    with ExitStack() as stack:
        yield {
            name: stack.enter_context(running(settings=Settings(addr="127.0.0.1:0", access=access))).addr
            for name, access in ways.items()
        }


def files(tls, **names):
    return {f"tls_{what}": tls / name for what, name in names.items()}


def join(url, **arguments):
    return penstock.DistributedDataLoader(coord_url=url, job_id=JOB_ID, node_id="a", **arguments)


def test_two_nodes_work_over_mutual_tls_with_a_token(tls, tmp_path):
    packed = pack_random(tmp_path, SAMPLES) / "packed"
    options = [
        *("--addr=127.0.0.1:0", "--journal=memory:", f"--dataset-link={packed}", "--dev-block-size=20"),
        *("--world-size=2", f"--manifest-store-root={tmp_path / 'root'}", "--token=secret"),
        *(f"--tls-cert={tls / 'server.pem'}", f"--tls-key={tls / 'server.key'}", f"--tls-client-ca={tls / 'ca.pem'}"),
    ]
    with Process(tmp_path / "log", *options) as coordinator:

        def node(name):
            with penstock.DistributedDataLoader(
                coord_url=f"https://{coordinator.addr}",
                job_id=JOB_ID,
                node_id=name,
                token="secret",
                **files(tls, ca="ca.pem", cert="client.pem", key="client.key"),
                manifest_store_root=tmp_path / name,
                batch_size_samples=8,
            ) as loader:
                return [sample for batch in loader for sample in batch.sample_ids]

        with ThreadPoolExecutor(2) as nodes:
            taken = list(nodes.map(node, "ab"))
    assert Counter(taken[0] + taken[1]) == Counter(range(SAMPLES))


@pytest.mark.parametrize(
    ("where", "given", "kind", "words"),
    [
        ("tls", {"ca": "other.pem"}, ConfigError, "can't be trusted: .*Give tls_ca="),
        ("tls", {}, ConfigError, "can't be trusted: .*Give tls_ca="),
        ("elsewhere", {"ca": "ca.pem"}, ConfigError, "can't be trusted: .*not valid for '127.0.0.1'.* a name that"),
        ("plain", {"ca": "ca.pem"}, ConfigError, "speaks no TLS; give its coord_url with http://"),
        ("mutual", {"ca": "ca.pem"}, CoordinatorRefused, "doesn't take nodes without a certificate.*Give tls_cert="),
        (
            "mutual",
            {"ca": "ca.pem", "cert": "stranger.pem", "key": "stranger.key"},
            CoordinatorRefused,
            "doesn't take tls_cert .*stranger.pem.* --tls-client-ca",
        ),
        ("mutual", {"ca": "ca.pem", "cert": "client.pem", "key": "client.key"}, CoordinatorRefused, "another token"),
    ],
)
def test_what_does_not_fit_is_said_soon(leading, tls, where, given, kind, words):
    began = time.monotonic()
    with pytest.raises(kind, match=words) as caught:
        join(f"https://{leading[where]}", token="wrong", **files(tls, **given))
    assert time.monotonic() - began < SOON_S
    assert kind is ConfigError or caught.value.code == "UNAUTHENTICATED"


def test_without_tls_to_a_coordinator_that_has_it(leading):
    began = time.monotonic()
    with pytest.raises(ConfigError, match=r"speaks TLS; give its coord_url with https://, and tls_ca="):
        join(f"http://{leading['tls']}")
    assert time.monotonic() - began < SOON_S


@pytest.mark.parametrize(
    ("answer", "kind", "words"),
    [
        ("200 OK\r\nContent-Length: 3\r\n\r\nok\n", ConfigError, "is a coordinator's page; give coord_url"),
        ("503 Service Unavailable\r\nContent-Length: 0\r\n\r\n", CoordinatorUnreachable, "within 1 s"),
    ],
)
def test_the_address_of_a_page_is_called_that_and_a_gateway_is_asked_again(answer, kind, words):
    with socket.create_server(("127.0.0.1", 0)) as page, ThreadPoolExecutor(1) as pool:
        answering = pool.submit(answer_always, page, f"HTTP/1.1 {answer}".encode())
        with pytest.raises(kind, match=words):
            join(
                f"http://127.0.0.1:{page.getsockname()[1]}",
                coord_timeout_s=1.0 if kind is CoordinatorUnreachable else 60.0,
            )
        page.shutdown(socket.SHUT_RDWR)
        answering.result()


def answer_always(page, answer):
    with contextlib.suppress(OSError):  # it was shut down
        while True:
            connection, _ = page.accept()
            with connection, contextlib.suppress(ConnectionError):
                connection.recv(1000)
                connection.sendall(answer)


def test_files_that_are_not_what_they_should_be(tls):
    url = "https://127.0.0.1:1"
    for given, words in (
        ({"ca": "none.pem"}, "can't be read: .*none.pem"),
        ({"ca": "ca.key"}, "tls_ca .*ca.key holds no certificates"),
        ({"cert": "client.pem"}, "isn't a certificate with a key"),
        ({"cert": "client.pem", "key": "server.key"}, "isn't a certificate with the key in .*server.key"),
        ({"cert": "client.key", "key": "client.key"}, "client.key isn't a certificate"),
        ({"key": "client.key"}, "no certificate that it is of"),
    ):
        with pytest.raises(ConfigError, match=words):
            join(url, **files(tls, **given))


def test_of_several_coordinators_one_that_may_come_yet_is_waited_for(leading, tls):
    (nobody,) = free_ports(1)
    url = f"https://127.0.0.1:{nobody},https://{leading['tls']}"
    with pytest.raises(CoordinatorUnreachable):
        join(url, **files(tls, ca="other.pem"), coord_timeout_s=1.0)


def test_of_several_coordinators_one_whose_certificate_fits_is_enough(leading, tls):
    client = Client(
        f"https://{leading['elsewhere']},https://{leading['tls']}",
        JOB_ID,
        timeout_s=SOON_S,
        credentials=Credentials(ca=tls / "ca.pem"),
    )
    assert client.checkpoint()["samples"] == 80
    client.close()


def test_top_shows_a_job_with_tls(tls, leading, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("PENSTOCK_COORD_TOKEN", "secret")
    ours = [f"--tls-ca={tls / 'ca.pem'}", f"--tls-cert={tls / 'client.pem'}", f"--tls-key={tls / 'client.key'}"]
    access = Access(tls_cert=tls / "server.pem", tls_key=tls / "server.key")
    with running(settings=Settings(addr="127.0.0.1:0", access=access, page_addr="127.0.0.1:0")) as coordinator:
        for addr in (leading["mutual"], coordinator.server.page.url.removeprefix("https://").rstrip("/")):
            assert main(["top", f"--coord=https://{addr}", "--json", *ours]) == 0
            assert json.loads(capsys.readouterr().out)["phase"] == "gathering"
            assert main(["top", f"--coord=https://{addr}", "--json", f"--tls-ca={tls / 'other.pem'}"]) != 0
            assert "can't be trusted" in capsys.readouterr().err
    assert main(["top", *ours]) != 0
    assert "give --coord" in capsys.readouterr().err
