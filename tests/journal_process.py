"""A coordinator's journal in a process of its own, that is told what to do: it may be stopped, killed, or cut off.

`JournalProcess` is the end that tells. Run as a program, this is the other.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

Popen = Callable[..., "subprocess.Popen[str]"]


class JournalProcess:
    """A journal in another process; its methods are those of a journal, and an error comes back as its name."""

    def __init__(self, url: str, address: str, ttl_s: float = 3.0, popen: Popen = subprocess.Popen) -> None:
        command = [sys.executable, __file__, url, address, str(ttl_s)]
        self.process = popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1)
        self.answer()

    def ask(self, method: str, *arguments: Any) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps([method, *arguments]) + "\n")
        self.process.stdin.flush()

    def answer(self) -> Any:
        assert self.process.stdout is not None
        return json.loads(self.process.stdout.readline())

    def do(self, method: str, *arguments: Any) -> Any:
        self.ask(method, *arguments)
        return self.answer()

    def stop(self) -> None:
        self.process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        self.process.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate()


def main(url: str, address: str, ttl_s: str) -> None:
    from penstock.coordinator.journal import open_journal
    from penstock.errors import PenstockError

    journal = open_journal(url, job_id="job", address=address, ttl_s=float(ttl_s))
    print(json.dumps("up"), flush=True)
    for line in sys.stdin:
        method, *arguments = json.loads(line)
        try:
            value = getattr(journal, method)
            value = value(*arguments) if callable(value) else value
            if method == "lead":
                value = [value, time.monotonic()]
        except PenstockError as error:
            value = type(error).__name__
        print(json.dumps(value), flush=True)
    journal.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
