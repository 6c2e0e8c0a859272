"""A node's line to one coordinator: calls, and a conversation for what is said again and again."""

from __future__ import annotations

import queue
import threading
from typing import Any

import grpc

from penstock.coordinator.wire import coordinator_pb2 as wire
from penstock.coordinator.wire.convert import CALLS
from penstock.coordinator.wire.coordinator_pb2_grpc import CoordinatorStub

__all__ = ["Line"]


class Line:
    """One channel. Safe from several threads; what they say comes one after the other.

    Args:
        channel: to the coordinator; the line owns it.
        metadata: of every call.
    """

    def __init__(self, channel: grpc.Channel, metadata: tuple[tuple[str, str], ...]) -> None:
        self._channel = channel
        self._metadata = metadata
        self._stub = CoordinatorStub(channel)
        self._turn = threading.Lock()
        self._conversation: _Conversation | None = None
        self._calls_only = False

    def call(self, name: str, request: Any, timeout_s: float) -> Any:
        """One call.

        Raises:
            grpc.RpcError: its status.
        """
        return getattr(self._stub, name)(request, timeout=timeout_s, metadata=self._metadata)

    def say(self, saying: wire.Saying, timeout_s: float) -> wire.Answer:
        """Say one thing, and wait for the answer. A coordinator that knows no conversations, as MX8's, is called.

        Raises:
            grpc.RpcError: a status other than of what was said: nobody leads there, or nobody is there.
        """
        if not self._turn.acquire(timeout=timeout_s):
            raise _Silent(timeout_s)
        try:
            if not self._calls_only:
                try:
                    return self._conversing().ask(saying, timeout_s)
                except grpc.RpcError as error:
                    self._hang_up()
                    self._calls_only = error.code() is grpc.StatusCode.UNIMPLEMENTED
                    if not self._calls_only:
                        raise
                except BaseException:  # a signal's, in the middle: what comes next would be taken for the next answer
                    self._hang_up()
                    raise
            what = saying.WhichOneof("said")
            assert what is not None
            reply = self.call(CALLS[what], getattr(saying, what), timeout_s)
            return wire.Answer(granted=reply if what == "request" else None)
        finally:
            self._turn.release()

    def close(self) -> None:
        """Hang up: who waits for an answer gets none."""
        self._hang_up()
        self._channel.close()

    def _conversing(self) -> _Conversation:
        if self._conversation is None:
            self._conversation = _Conversation(self._stub, self._metadata)
        return self._conversation

    def _hang_up(self) -> None:
        conversation, self._conversation = self._conversation, None
        if conversation is not None:
            conversation.end()


class _Conversation:
    """A call that takes many messages, and gives an answer to each, with a deadline for each."""

    def __init__(self, stub: CoordinatorStub, metadata: tuple[tuple[str, str], ...]) -> None:
        self._sayings: queue.SimpleQueue[wire.Saying | None] = queue.SimpleQueue()
        self._answers: queue.SimpleQueue[wire.Answer | grpc.RpcError] = queue.SimpleQueue()
        self._call = stub.Converse(iter(self._sayings.get, None), metadata=metadata)
        threading.Thread(target=self._collect, name="penstock-answers", daemon=True).start()

    def ask(self, saying: wire.Saying, timeout_s: float) -> wire.Answer:
        self._sayings.put(saying)
        try:
            answer = self._answers.get(timeout=timeout_s)
        except queue.Empty:
            raise _Silent(timeout_s) from None
        if isinstance(answer, grpc.RpcError):
            raise answer
        return answer

    def end(self) -> None:
        """Safe twice, and from any thread."""
        self._call.cancel()  # whereupon _collect ends, and then the thread of gRPC's that reads what is said

    def _collect(self) -> None:
        how: grpc.RpcError = _Status(grpc.StatusCode.UNAVAILABLE, "the coordinator ended the conversation")
        try:
            for answer in self._call:
                self._answers.put(answer)
        except grpc.RpcError as error:
            how = error
        self._answers.put(how)
        self._sayings.put(None)


class _Status(grpc.RpcError):  # type: ignore[misc]  # grpc has no types
    """A status that isn't from the other side."""

    def __init__(self, code: grpc.StatusCode, details: str) -> None:
        super().__init__(details)
        self._code = code
        self._details = details

    def code(self) -> grpc.StatusCode:
        return self._code

    def details(self) -> str:
        return self._details

    def trailing_metadata(self) -> tuple[tuple[str, str], ...]:
        return ()


class _Silent(_Status):
    def __init__(self, timeout_s: float) -> None:
        super().__init__(grpc.StatusCode.DEADLINE_EXCEEDED, f"no answer within {timeout_s:g} s")
