"""Fixtures that several kinds of tests share."""

from __future__ import annotations

import gc
import logging
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

from etcd_server import EtcdServer
from penstock.testing.fault_proxy import FaultProxy
from penstock.testing.hosts import unavailable
from s3_server import BUCKET, S3Server

if TYPE_CHECKING:
    from nixl_target import OtherProcess

# A machine that is busy is no failure; what hangs ends at pytest's own limit, with stacks.
settings.register_profile("penstock", deadline=None)
settings.load_profile("penstock")

_modules_seen = 0
_OWN_VARIABLES = ("AWS_", "GOOGLE_", "AZURE_", "PENSTOCK_", "MX8_", "NIXL_", "UCX_")


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Tests over several hosts say why where there can't be any."""
    if item.get_closest_marker("hosts") and (reason := unavailable()):
        pytest.skip(reason)


@pytest.fixture(autouse=True, scope="module")
def _imports_stay() -> None:
    """What was imported stays to the end: no later collection looks through it again."""
    global _modules_seen
    if len(sys.modules) > _modules_seen + 100:
        _modules_seen = len(sys.modules)
        gc.collect()
        gc.freeze()


@pytest.fixture(autouse=True)
def _own_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test sees the settings of whoever runs it, nor sends loopback traffic through their HTTP proxy."""
    import os

    for name in list(os.environ):
        if name.startswith(_OWN_VARIABLES) or name.lower() in {"http_proxy", "https_proxy", "all_proxy"}:
            monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", os.devnull)  # not those of whoever runs the tests


@pytest.fixture(autouse=True)
def _own_logger() -> Iterator[None]:
    """A command that is run inside of the tests' process takes the logger for itself; the next test has it back."""
    logger = logging.getLogger("penstock")
    before = (logger.handlers, logger.propagate, logger.level)
    yield
    logger.handlers, logger.propagate = before[0], before[1]
    logger.setLevel(before[2])


@pytest.fixture(scope="session")
def _other_process() -> Iterator[OtherProcess]:
    from nixl_target import OtherProcess

    process = OtherProcess()
    yield process
    process.end()


@pytest.fixture
def other(_other_process: OtherProcess) -> OtherProcess:
    """A second process for a NIXL agent; each test makes its own agent there."""
    return _other_process


@pytest.fixture
def machine_sleeps(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Has it sleep for so many seconds, as a laptop that is shut: of its clocks only CLOCK_BOOTTIME goes on."""
    slept_s, clock = [0.0], time.clock_gettime
    monkeypatch.setattr(time, "clock_gettime", lambda which: clock(which) + slept_s[0] * (which == time.CLOCK_BOOTTIME))

    def sleep(seconds: float) -> None:
        slept_s[0] += seconds

    return sleep


@pytest.fixture
def ended_data_loaders(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """torch's DataLoaders of a test are collected right after it; one whose workers failed gives them a moment."""
    from torch.utils.data import _utils

    yield
    monkeypatch.setattr(_utils, "MP_STATUS_CHECK_INTERVAL", 0.2)
    gc.collect()


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """A real S3 server, started when the first test asks for it."""
    server = S3Server.start(tmp_path_factory.mktemp("s3"))
    yield server
    server.stop()


@pytest.fixture
def s3_root(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> str:
    """Address of an empty prefix of the server's bucket, reachable through this test's environment."""
    for name, value in s3_server.environment.items():
        monkeypatch.setenv(name, value)
    return f"s3://{BUCKET}/test-{uuid.uuid4().hex[:12]}"


@pytest.fixture
def s3_proxy(s3_server: S3Server, s3_root: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultProxy]:
    """A proxy in front of the server that goes wrong on request; ``s3_root`` is reached through it."""
    with FaultProxy(s3_server.endpoint) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        yield proxy


@pytest.fixture(scope="session")
def etcd_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EtcdServer]:
    """A real etcd, started when the first test asks for it. Tests keep apart by namespaces."""
    server = EtcdServer.start(tmp_path_factory.mktemp("etcd"))
    yield server
    server.kill()


@pytest.fixture
def etcd_namespace() -> str:
    """What no other test's keys begin with."""
    return f"/test-{uuid.uuid4().hex[:12]}/agents/"
