"""Other processes with a session each: puppets that run what a test writes down for them."""

from __future__ import annotations

from concurrent.futures import Future
from typing import Any

from penstock.testing.hosts import Host
from puppet import Puppet

PATIENCE_S = 120.0  # importing torch on a busy machine takes longer than puppets are given
_NAMES = "acts.__dict__.setdefault('names', {'__name__': 'party'})"


class Party(Puppet):
    """A process that keeps its variables from one step to the next.

        with Party("from penstock.compat import hmc") as server:
            server.do("sess = hmc.create_session()")
            assert server.value("sess.buf.size") == 128 << 20

    Args:
        setup: what it runs first.
        host: where it runs; None is here.
    """

    def __init__(self, setup: str = "", host: Host | None = None) -> None:
        super().__init__(host=host)
        self._setup = setup

    def __enter__(self) -> Party:
        try:
            self.do(self._setup)
        except BaseException as error:
            self.__exit__(type(error), error, None)
            raise
        return self

    def do(self, source: str) -> None:
        """Runs statements."""
        self.call("run", patience_s=PATIENCE_S, code=f"exec({source!r}, {_NAMES})")

    def start(self, source: str) -> Future[Any]:
        """Runs statements on a thread of their own; ``result`` waits for them."""
        return self.begin("run", code=f"exec({source!r}, {_NAMES})")

    def value(self, expression: str) -> Any:
        """What an expression is: something that JSON has, or bytes."""
        return self.call("run", code=f"return eval({expression!r}, {_NAMES})")
