"""Requests that can't be read get a status that says so, not a traceback in the coordinator's log."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, NoReturn

import grpc
from google.protobuf.message import DecodeError

__all__ = ["ReadableCheck"]

_OURS: Final = "/mx8.v0."


@dataclass(frozen=True, slots=True)
class _Unreadable:
    reason: str


class ReadableCheck(grpc.aio.ServerInterceptor):  # type: ignore[misc]  # grpc has no types
    """Refuses bytes that aren't the message of their call, as INVALID_ARGUMENT."""

    async def intercept_service(self, continuation: Any, details: Any) -> Any:
        """See grpc.aio.ServerInterceptor."""
        handler = await continuation(details)
        if handler is None or not details.method.startswith(_OURS):
            return handler
        return _checked(handler)


def _checked(handler: Any) -> Any:
    read = partial(_read, handler.request_deserializer)

    async def answer(request: Any, context: Any) -> Any:
        if isinstance(request, _Unreadable):
            await _refuse(request, context)
        return await handler.unary_unary(request, context)

    async def stream(request: Any, context: Any) -> AsyncIterator[Any]:
        if isinstance(request, _Unreadable):
            await _refuse(request, context)
        async for message in handler.unary_stream(request, context):
            yield message

    async def converse(requests: AsyncIterator[Any], context: Any) -> None:
        await handler.stream_stream(_read_ones(requests, context), context)

    if handler.request_streaming:
        return grpc.stream_stream_rpc_method_handler(converse, read, handler.response_serializer)
    if handler.response_streaming:
        return grpc.unary_stream_rpc_method_handler(stream, read, handler.response_serializer)
    return grpc.unary_unary_rpc_method_handler(answer, read, handler.response_serializer)


def _read(deserialize: Callable[[bytes], Any], data: bytes) -> Any:
    try:
        return deserialize(data)
    except DecodeError as error:
        return _Unreadable(str(error))


async def _read_ones(requests: AsyncIterator[Any], context: Any) -> AsyncIterator[Any]:
    async for request in requests:
        if isinstance(request, _Unreadable):
            await _refuse(request, context)
        yield request


async def _refuse(request: _Unreadable, context: Any) -> NoReturn:
    await context.abort(
        grpc.StatusCode.INVALID_ARGUMENT,
        f"the request can't be read: {request.reason}; see coordinator.proto for what this call takes",
    )
    raise AssertionError  # abort raises; it has no types that would say so
