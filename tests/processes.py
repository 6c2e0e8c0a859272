"""Python processes that do what a test tells them, step by step: the other sides of what needs several processes."""

from __future__ import annotations

import ast
import contextlib
import json
import selectors
import subprocess
import sys
import time
from typing import Any, Self

_LOOP = """
import json, sys, traceback
names = {"__name__": "__peer__"}
answers, sys.stdout = sys.stdout, sys.stderr
for line in sys.stdin:
    source, kind = json.loads(line)
    try:
        code = compile(source, "<step>", kind)
        answer = {"value": repr(eval(code, names))}
    except BaseException as error:
        kinds = [each.__name__ for each in type(error).__mro__]
        status = getattr(error, "status", None)
        answer = {"error": str(error), "kinds": kinds, "status": getattr(status, "name", None)}
        traceback.print_exc()
    print(json.dumps(answer), file=answers, flush=True)
"""


class StepFailed(AssertionError):
    """What a step in another process raised.

    Attributes:
        kinds: names of the error's class and of its bases.
        status: the name of its ``status``, if it has one.
    """

    def __init__(self, answer: dict[str, Any]) -> None:
        super().__init__(f"{answer['kinds'][0]}: {answer['error']}")
        self.text = answer["error"]
        self.kinds = answer["kinds"]
        self.status = answer["status"]


class OtherProcess:
    """A Python process of its own; ended, whatever it does, when the ``with`` block is left.

    Args:
        setup: what it runs first.
        prefix: a command that starts it somewhere else, such as ``ip netns exec``.
        timeout_s: how long one step may take.
    """

    def __init__(self, setup: str = "", *, prefix: tuple[str, ...] = (), timeout_s: float = 60.0) -> None:
        self._timeout_s = timeout_s
        self._process = subprocess.Popen(
            [*prefix, sys.executable, "-u", "-c", _LOOP], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self._setup = setup

    def __enter__(self) -> Self:
        try:
            self.run(self._setup)
        except BaseException:
            self.kill()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        assert self._process.stdin is not None and self._process.stdout is not None
        with contextlib.suppress(OSError):
            self._process.stdin.close()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self.kill()
        self._process.stdout.close()

    @property
    def pid(self) -> int:
        return self._process.pid

    def run(self, source: str) -> None:
        """Runs statements there, and waits for them."""
        self.start(source)
        self.finish()

    def value(self, expression: str) -> Any:
        """The value there; a literal."""
        self.start(expression, "eval")
        return self.finish()

    def start(self, source: str, kind: str = "exec") -> None:
        """Begins a step; ``finish`` waits for it."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps([source, kind]) + "\n")
        self._process.stdin.flush()

    def finish(self) -> Any:
        """Waits for the step that was begun; its value."""
        assert self._process.stdout is not None
        with selectors.DefaultSelector() as selector:
            selector.register(self._process.stdout, selectors.EVENT_READ)
            end = time.monotonic() + self._timeout_s
            if not selector.select(max(0.0, end - time.monotonic())):
                self.kill()
                raise TimeoutError(f"a step took more than {self._timeout_s} s")
        line = self._process.stdout.readline()
        if not line:
            raise EOFError(f"the process ended with {self._process.wait(10)}")
        answer = json.loads(line)
        if "error" in answer:
            raise StepFailed(answer)
        return ast.literal_eval(answer["value"])

    def kill(self) -> None:
        """Ends it with SIGKILL."""
        self._process.kill()
        self._process.wait()
