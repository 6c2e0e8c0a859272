"""Other processes with an agent each, told what to do by a test: killed, stopped and waited for.

    with Puppet("target") as target, Puppet("initiator") as initiator:
        target.call("allocate", key="kv", nbytes=1 << 20)
        descriptors = target.call("register", key="kv")
        initiator.call("add_peer", blob=target.call("metadata"))
        waiting = target.begin("wait_notification", timeout_s=10)
        ...
        target.kill()

What can be told is in `puppet_process.Acts`; `acquaint` and `ready` are how most pairs begin. Every wait has a
deadline, and ends with the stacks of the process that didn't answer.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from penstock.testing.hosts import Host
from waiting import wait_until

_PROGRAM = Path(__file__).with_name("puppet_process.py")
PATIENCE_S = 30.0
ACQUAINTED_BYTES = 1 << 20


class PuppetError(Exception):
    """What an act raised in its process.

    Attributes:
        kind: name of the exception's class.
        kinds: the names of it and its bases.
        text: its message.
    """

    def __init__(self, act: str, kind: str, kinds: list[str], text: str) -> None:
        super().__init__(f"{act}: {kind}: {text}")
        self.kind = kind
        self.kinds = kinds
        self.text = text


class PuppetDied(Exception):
    """The process ended before it answered."""


class PuppetHung(AssertionError):
    """The process didn't answer in time; the message has the stacks of its threads."""


class Puppet:
    """A process with an agent; a context manager.

    Args:
        name: of its agent; None opens none yet.
        host: where it runs; None is here.
        options: further keywords for the agent.
    """

    def __init__(self, name: str | None = None, host: Host | None = None, **options: Any) -> None:
        self.name = name or "puppet"
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 (closed with the puppet)
        self._lock = threading.Lock()
        self._waiting: dict[int, tuple[str, Future[Any]]] = {}
        self._count = 0
        command = [sys.executable, "-X", "faulthandler", str(_PROGRAM)]
        start = subprocess.Popen if host is None else host.popen
        self.process = start(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors, text=True, bufsize=1
        )
        self._reader = threading.Thread(target=self._read, name=f"puppet-{self.name}", daemon=True)
        self._reader.start()
        # Waited for when it is first told something: several puppets start side by side.
        self._opening = None if name is None else self._send("open", False, {"name": name, **options})

    @property
    def pid(self) -> int:
        return self.process.pid

    def begin(self, act: str, **given: Any) -> Future[Any]:
        """Starts an act on a thread of its own in the process."""
        self._opened()
        return self._send(act, True, given)

    def call(self, act: str, *, patience_s: float = PATIENCE_S, **given: Any) -> Any:
        """Has an act done and returns what it gives.

        Raises:
            PuppetError: the act raised.
            PuppetDied: the process ended.
            PuppetHung: no answer within the patience.
        """
        return self.result(self.tell(act, **given), patience_s)

    def aside(self, act: str, *, patience_s: float = PATIENCE_S, **given: Any) -> Any:
        """As `call`, on a thread of its own: also while another act keeps the process's first thread."""
        return self.result(self.begin(act, **given), patience_s)

    def result(self, future: Future[Any], patience_s: float = PATIENCE_S) -> Any:
        """What a begun act gives; as `call`."""
        try:
            return future.result(patience_s)
        except FutureTimeoutError:
            raise PuppetHung(f"{self.name} doesn't answer within {patience_s} s\n{self.stacks()}") from None

    def stacks(self) -> str:
        """The stacks of all its threads, and what else it wrote to its standard error."""
        with contextlib.suppress(ProcessLookupError):
            self.go_on()
            os.kill(self.pid, signal.SIGUSR1)
        time.sleep(0.5)
        return self.errors()

    def errors(self) -> str:
        """What it wrote to its standard error."""
        size = os.fstat(self._errors.fileno()).st_size
        return os.pread(self._errors.fileno(), size, 0).decode(errors="replace")

    def kill(self) -> None:
        """Kills it, -9, and waits until it is gone."""
        self.process.kill()
        self.process.wait(PATIENCE_S)

    def stop(self) -> None:
        """Stops it, and waits until it stands."""
        os.kill(self.pid, signal.SIGSTOP)
        stat = Path(f"/proc/{self.pid}/stat")
        wait_until(lambda: stat.read_text().rpartition(")")[2].split()[0] == "T", within_s=PATIENCE_S)

    def go_on(self) -> None:
        """Lets it run again."""
        os.kill(self.pid, signal.SIGCONT)

    def end(self) -> None:
        """Ends it in an orderly way, and sees that it does."""
        self._send("end", False, {})
        try:
            code = self.process.wait(PATIENCE_S)
        except subprocess.TimeoutExpired:
            raise PuppetHung(f"{self.name} doesn't end\n{self.stacks()}") from None
        assert code == 0, f"{self.name} ended with {code}\n{self.errors()}"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None and self.process.poll() is None:
                self.end()
        finally:
            if self.process.poll() is None:
                self.process.kill()
            self.process.wait(PATIENCE_S)
            self._reader.join(PATIENCE_S)
            for stream in (self.process.stdin, self.process.stdout):
                with contextlib.suppress(OSError):
                    stream.close()
            if kind is not None and (errors := self.errors()):
                sys.stderr.write(f"--- {self.name} wrote:\n{errors}")
            self._errors.close()

    def tell(self, act: str, **given: Any) -> Future[Any]:
        """Has an act done on the first thread of the process, without waiting for what it gives."""
        self._opened()
        return self._send(act, False, given)

    def _opened(self) -> None:
        opening, self._opening = self._opening, None
        if opening is not None:
            self.result(opening)

    def _send(self, act: str, aside: bool, given: dict[str, Any]) -> Future[Any]:
        future: Future[Any] = Future()
        with self._lock:
            self._count += 1
            self._waiting[self._count] = (act, future)
            line = json.dumps({"id": self._count, "act": act, "aside": aside, "with": given}, default=_to_json)
            try:
                self.process.stdin.write(line + "\n")
                self.process.stdin.flush()
            except OSError:
                # The reader tells it, with the rest, when the process is really gone.
                if not self._reader.is_alive():
                    future.set_exception(PuppetDied(f"{self.name} has ended"))
        return future

    def _read(self) -> None:
        with contextlib.suppress(ValueError, OSError):
            for text in self.process.stdout:
                line = json.loads(text, object_hook=_from_json)
                with self._lock:
                    act, future = self._waiting.pop(line["id"])
                if "error" in line:
                    future.set_exception(PuppetError(act, line["error"], line["kinds"], line["text"]))
                else:
                    future.set_result(line["gives"])
        with self._lock:
            for act, future in self._waiting.values():
                if not future.done():
                    future.set_exception(PuppetDied(f"{self.name} ended during {act}"))
            self._waiting.clear()


def acquaint(initiator: Puppet, target: Puppet, nbytes: int = ACQUAINTED_BYTES, *, shared: bool = True) -> bytes:
    """Memory at both ends, and the target's descriptors."""
    target.call("allocate" if shared else "own", key="kv", nbytes=nbytes)
    descriptors = target.call("register", key="kv")
    initiator.call("allocate", key="a", nbytes=nbytes)
    initiator.call("register", key="a")
    initiator.call("add_peer", blob=target.call("metadata"))
    return descriptors


def ready(
    initiator: Puppet, target: Puppet, operation: str = "WRITE", nbytes: int = ACQUAINTED_BYTES, *, shared: bool = True
) -> None:
    """As `acquaint`, with a transfer "t" of all of it, and connected."""
    descriptors = acquaint(initiator, target, nbytes, shared=shared)
    prepare(initiator, descriptors, operation, nbytes)


def prepare(initiator: Puppet, descriptors: bytes, operation: str = "WRITE", nbytes: int = ACQUAINTED_BYTES) -> None:
    """A transfer "t" of all of the initiator's memory."""
    initiator.call("prepare", key="t", operation=operation, peer="target", local=[["a", 0, nbytes]], remote=descriptors)


def _to_json(value: Any) -> Any:
    if isinstance(value, bytes | bytearray | memoryview):
        return {"b64": base64.b64encode(value).decode()}
    raise TypeError(type(value))


def _from_json(value: dict[str, Any]) -> Any:
    return base64.b64decode(value["b64"]) if value.keys() == {"b64"} else value
