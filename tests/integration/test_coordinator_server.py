"""What surrounds a coordinator's calls: manifests of any size, secrets, certificates, health, and followers."""

from __future__ import annotations

import asyncio
import hashlib
import threading
import time
from itertools import chain
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from tests.certificates import make_certificates
from tests.coordinators import BACK_SOON, JOB_ID, Node, Threaded, nodes, running

from penstock.coordinator.access import Access, check_address
from penstock.coordinator.manifests import ManifestText
from penstock.coordinator.server import Settings
from penstock.coordinator.state import Job, Terms
from penstock.coordinator.wire import coordinator_pb2 as wire
from penstock.dataset.manifest_store import ManifestStore
from penstock.errors import ConfigError
from penstock.store import open_store

MIB = 1 << 20


# Manifests. 64.


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """A store with a manifest of 6 MiB, one that is damaged and one that is a folder; the first one's hash and text."""
    folder = tmp_path_factory.mktemp("manifests")
    rows = b"".join(b"%d\tfile-%d.bin\t\t\t\n" % (number, number) for number in range(300_000))
    text = b"schema_version=0\n" + rows
    assert len(text) > 6 * MIB
    manifest_hash = hashlib.sha256(text).hexdigest()
    (folder / "by-hash").mkdir()
    (folder / "by-hash" / manifest_hash).write_bytes(text)
    (folder / "by-hash" / "damaged").write_bytes(b"\0" * 10)
    (folder / "by-hash" / "folder").mkdir()
    return ManifestStore(open_store(str(folder))), manifest_hash, text


@pytest.fixture(scope="module")
def handing_out(kept):
    with running(server={"manifests": kept[0], "dataset_base": "/data"}) as coordinator:
        channel = grpc.insecure_channel(coordinator.addr, options=[("grpc.max_receive_message_length", -1)])
        with Node(coordinator.addr, "a", channel) as a:
            yield a


def asked(manifest_hash, job_id=JOB_ID):
    return wire.GetManifestRequest(job_id=job_id, manifest_hash=manifest_hash)


def test_a_manifest_beyond_4_mib_streams_in_chunks_of_at_most_1_mib(handing_out, kept):
    _, manifest_hash, text = kept
    chunks = list(handing_out.stub.GetManifestStream(asked(manifest_hash)))
    assert b"".join(chunk.data for chunk in chunks) == text
    assert max(len(chunk.data) for chunk in chunks) <= MIB
    assert {chunk.schema_version for chunk in chunks} == {0}
    whole = handing_out.stub.GetManifest(asked(manifest_hash))
    assert (whole.manifest_bytes, whole.schema_version) == (text, 0)
    assert handing_out.register().dataset_base == "/data"


def test_chunks_are_small_whatever_the_store_gives():
    class Store:
        def pieces(self, _manifest_hash):
            yield b"schema_version=1\n" + b"x" * 3 * MIB
            yield b"y" * (MIB + 1)

    async def read():
        text = await ManifestText.open(Store(), "h")
        return text.schema_version, [chunk async for chunk in text.chunks()]

    version, chunks = asyncio.run(read())
    assert version == 1 and max(map(len, chunks)) <= MIB
    assert b"".join(chunks) == b"schema_version=1\n" + b"x" * 3 * MIB + b"y" * (MIB + 1)


@pytest.mark.parametrize(
    ("manifest_hash", "code", "words"),
    [
        ("", "INVALID_ARGUMENT", "manifest_hash is blank"),
        ("a/b", "INVALID_ARGUMENT", "can't be one"),
        ("../x", "INVALID_ARGUMENT", "can't be one"),
        ("h" * 1000, "INVALID_ARGUMENT", "can't be one"),
        ("0" * 64, "NOT_FOUND", "manifest not found"),
        ("damaged", "INTERNAL", "isn't one"),
        ("folder", "INTERNAL", "folder"),
    ],
)
def test_manifests_that_cant_be_had(handing_out, manifest_hash, code, words):
    for call in (handing_out.stub.GetManifest, lambda request: list(handing_out.stub.GetManifestStream(request))):
        with pytest.raises(grpc.RpcError) as caught:
            call(asked(manifest_hash))
        assert caught.value.code().name == code
        assert words in caught.value.details()


def test_a_coordinator_without_a_manifest_store_says_so():
    with running() as coordinator, Node(coordinator.addr, "a") as a:
        with pytest.raises(grpc.RpcError) as caught:
            a.stub.GetManifest(asked("0" * 64))
        assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION
        assert "no manifest store" in caught.value.details()


def test_messages_have_a_limit_and_streams_have_none(kept):
    store, manifest_hash, text = kept
    settings = Settings(addr="127.0.0.1:0", max_message_bytes=2 * MIB)
    with running(settings=settings, server={"manifests": store}) as coordinator, Node(coordinator.addr, "a") as a:
        with pytest.raises(grpc.RpcError) as caught:
            a.stub.GetManifest(asked(manifest_hash))
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert "GetManifestStream" in caught.value.details()
        assert b"".join(chunk.data for chunk in a.stub.GetManifestStream(asked(manifest_hash))) == text
        with pytest.raises(grpc.RpcError) as caught:
            a.register(node_id="n" * 3 * MIB)
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


# Who may take part.


def test_beyond_loopback_only_with_a_secret():
    for addr in ("0.0.0.0:1", "[::]:1", "10.0.0.1:1", "example.com:1"):
        with pytest.raises(ConfigError, match="PENSTOCK_COORD_TOKEN"):
            check_address(addr, Access())
        with pytest.raises(ConfigError, match="PENSTOCK_COORD_TOKEN"):
            check_address(addr, Access(tls_cert=Path("x")))  # everybody may connect to a server with a certificate
        check_address(addr, Access(token="t"))
        check_address(addr, Access(tls_cert=Path("x"), tls_client_ca=Path("y")))
    for addr in ("127.0.0.1:1", "127.9.9.9:1", "[::1]:1", "localhost:1"):
        check_address(addr, Access())


def test_a_token_is_asked_for():
    settings = Settings(addr="127.0.0.1:0", access=Access(token="geheim"))
    with running(settings=settings) as coordinator, grpc.insecure_channel(coordinator.addr) as channel:
        stub = Node(coordinator.addr, "a", channel).stub
        request = wire.CheckpointRequest(job_id=JOB_ID)
        for metadata, words in (
            ((), "no token"),
            ((("authorization", "Bearer falsch"),), "another token"),
            ((("authorization", "geheim"),), "another token"),
        ):
            with pytest.raises(grpc.RpcError) as caught:
                stub.Checkpoint(request, metadata=metadata)
            assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED
            assert words in caught.value.details()
            with pytest.raises(grpc.RpcError) as caught:
                list(stub.GetManifestStream(asked("0" * 64), metadata=metadata))
            assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED
            with pytest.raises(grpc.RpcError) as caught:  # what a stranger says isn't even read
                channel.unary_unary("/mx8.v0.Coordinator/Checkpoint")(b"\xff", metadata=metadata, timeout=10)
            assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED
        assert stub.Checkpoint(request, metadata=(("authorization", "Bearer geheim"),)).token
        assert healthy(channel, "") is True


def healthy(channel, service):
    request = health_pb2.HealthCheckRequest(service=service)
    answer = health_pb2_grpc.HealthStub(channel).Check(request, timeout=10)
    return answer.status == health_pb2.HealthCheckResponse.SERVING


@pytest.fixture(scope="module")
def certificates(tmp_path_factory):
    return make_certificates(tmp_path_factory.mktemp("tls"))


def secured(coordinator, certificates, *, client):
    ca, key, cert = ((certificates / name).read_bytes() for name in ("ca.pem", "client.key", "client.pem"))
    secret = grpc.ssl_channel_credentials(ca, key, cert) if client else grpc.ssl_channel_credentials(ca)
    return grpc.secure_channel(coordinator.addr, secret, options=BACK_SOON)


def test_tls_with_and_without_certificates_of_nodes(certificates):
    server = Access(tls_cert=certificates / "server.pem", tls_key=certificates / "server.key")
    with running(settings=Settings(addr="127.0.0.1:0", access=server)) as coordinator:
        with Node(coordinator.addr, "a", secured(coordinator, certificates, client=False)) as a:
            assert a.register().job_ready
        with Node(coordinator.addr, "b") as plain, pytest.raises(grpc.RpcError):
            plain.register()
    both = Access(
        tls_cert=certificates / "server.pem",
        tls_key=certificates / "server.key",
        tls_client_ca=certificates / "ca.pem",
    )
    with running(settings=Settings(addr="127.0.0.1:0", access=both)) as coordinator:
        with Node(coordinator.addr, "a", secured(coordinator, certificates, client=True)) as a:
            assert a.register().job_ready
        with Node(coordinator.addr, "b", secured(coordinator, certificates, client=False)) as stranger:
            with pytest.raises(grpc.RpcError) as caught:
                stranger.register()
            assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


def test_a_certificate_that_doesnt_fit_its_key_is_refused(certificates):
    access = Access(tls_cert=certificates / "server.pem", tls_key=certificates / "client.key")
    with (
        pytest.raises(ConfigError, match="certificate doesn't fit"),
        running(settings=Settings(addr="127.0.0.1:0", access=access)),
    ):
        pass


# Leading, and not.


def test_health_says_who_leads_and_a_follower_who_to_ask(tmp_path):
    journal = str(tmp_path / "journal")
    with running(journal=journal) as first:
        follower = Threaded(Settings(addr="127.0.0.1:0", journal=journal), Job("m" * 64, 80, 8), Terms(), follow=True)
        try:
            with grpc.insecure_channel(first.addr) as one, grpc.insecure_channel(follower.addr) as two:
                name = "mx8.v0.Coordinator"
                until = time.monotonic() + 5
                while not healthy(one, name) and time.monotonic() < until:  # it is told a moment after
                    time.sleep(0.01)
                assert healthy(one, "") and healthy(one, name)
                assert healthy(two, "") and not healthy(two, name)
                with Node(follower.addr, "a") as a:
                    for call in (a.register, a.heartbeat):
                        with pytest.raises(grpc.RpcError) as caught:
                            call()
                        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
                        assert dict(caught.value.trailing_metadata())["penstock-leader"] == first.addr
                    with pytest.raises(grpc.RpcError) as caught:
                        a.stub.Checkpoint(wire.CheckpointRequest(job_id=JOB_ID))
                    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
                (node,) = nodes(first.addr, "a")
                lease = node.request().leases[0]
                first.stop()
                follower.wait_until_it_leads()
                with Node(follower.addr, "a") as a:
                    a.report(lease, 8)
        finally:
            follower.stop()


def test_nodes_that_ask_at_once_are_all_answered():
    with running(world_size=16, samples=1600, block_samples=1) as coordinator:
        everyone = nodes(coordinator.addr, *(f"n{number:02}" for number in range(16)))
        done: list[list[tuple[int, int]]] = [[] for _ in everyone]
        threads = [
            threading.Thread(target=lambda node=node, out=out: out.extend(node.work(want=5)))
            for node, out in zip(everyone, done, strict=True)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(chain.from_iterable(done)) == [(start, start + 1) for start in range(1600)]
        assert len(coordinator.told("job_drained")) == 1
