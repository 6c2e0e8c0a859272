"""Conversations that nodes have with a coordinator: each is followed until either side ends it."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, Final, TypeVar

import grpc

__all__ = ["Conversations"]

_log = logging.getLogger("penstock.coordinator")

_ENDS: Final = "this coordinator ends; ask another one, or again when it is back"

Saying = TypeVar("Saying")
Answer = TypeVar("Answer")


class Conversations:
    """All of one coordinator's, on its event loop."""

    def __init__(self) -> None:
        self._listening: set[Any] = set()  # contexts of those where it is the node's turn
        self._ending = False

    async def follow(
        self, sayings: AsyncIterator[Saying], answer: Callable[[Saying], Awaitable[Answer]], context: Any
    ) -> None:
        """Answer what a node says, one after the other, until it ends or ``end`` is called."""
        while not self._ending:
            self._listening.add(context)
            try:
                saying = await anext(sayings)
            except StopAsyncIteration:
                return
            finally:
                self._listening.discard(context)
            if not await _given(await answer(saying), context):
                return
        await context.abort(grpc.StatusCode.UNAVAILABLE, _ENDS)

    async def end(self) -> None:
        """End them all: at once where nothing was said, else with the answer."""
        self._ending = True
        for context in tuple(self._listening):
            try:
                await context.abort(grpc.StatusCode.UNAVAILABLE, _ENDS)
            except grpc.aio.AbortError:
                pass  # for the handler, which this isn't
            except Exception as error:  # of gRPC's inside: the node has gone, and it hasn't noticed yet
                _log.debug("a conversation couldn't be ended: %r", error)


async def _given(answer: object, context: Any) -> bool:
    """Whether the node could be told."""
    try:
        await context.write(answer)
    except Exception as error:  # of gRPC's inside: the node has gone
        _log.debug("an answer couldn't be given: %r", error)
        return False
    return True
