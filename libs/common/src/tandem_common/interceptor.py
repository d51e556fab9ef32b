"""The server interceptor: request context in, errors with their meaning out.

- The request id and trace context in the call's metadata become the context of logs and spans.
- A TandemError becomes its status, with RetryInfo when it says when to retry.
- Any other exception is logged and becomes INTERNAL with no text of its own.
- A message that does not parse becomes INVALID_ARGUMENT; grpc.aio alone would say UNKNOWN and name its type.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any

import grpc
from google.protobuf import any_pb2
from google.protobuf.duration_pb2 import Duration
from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc_status import rpc_status

from tandem_common.errors import InvalidRequest, TandemError
from tandem_common.logs import bound_request, get_logger
from tandem_common.telemetry import span

_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")
# Watching health is not worth a span.
_UNTRACED = ("/grpc.health.", "/grpc.reflection.")

_log = get_logger("rpc")


class _Malformed:
    """Stands for a message that did not parse, until the handler's wrapper can refuse it."""


class ErrorMappingInterceptor(grpc.aio.ServerInterceptor):
    """Wraps every handler; see the module's text."""

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        details: grpc.HandlerCallDetails,
    ) -> Any:
        """Return the same handler with its function and deserializer wrapped."""
        handler = await continuation(details)
        if handler is None or details.method.startswith(_UNTRACED):
            return handler
        deserialize = _lenient(handler.request_deserializer)
        serialize = handler.response_serializer
        match (handler.request_streaming, handler.response_streaming):
            case (False, False):
                return grpc.unary_unary_rpc_method_handler(
                    _unary(details.method, handler.unary_unary), deserialize, serialize
                )
            case (False, True):
                return grpc.unary_stream_rpc_method_handler(
                    _stream(details.method, handler.unary_stream), deserialize, serialize
                )
            case (True, False):
                return grpc.stream_unary_rpc_method_handler(
                    _unary(details.method, handler.stream_unary), deserialize, serialize
                )
            case _:
                return grpc.stream_stream_rpc_method_handler(
                    _stream(details.method, handler.stream_stream), deserialize, serialize
                )


def _lenient(deserialize: Any) -> Any:
    if deserialize is None:
        return None

    def parse(data: bytes) -> Any:
        try:
            return deserialize(data)
        except Exception:  # noqa: BLE001 - protobuf raises several kinds; all mean the same
            return _Malformed()

    return parse


def _checked(request: Any) -> Any:
    """The request, or for a stream its iterator; InvalidRequest in place of what did not parse."""
    if isinstance(request, _Malformed):
        raise InvalidRequest("the message could not be parsed")
    if hasattr(request, "__aiter__"):
        return _checked_stream(request)
    return request


async def _checked_stream(requests: AsyncIterator[Any]) -> AsyncIterator[Any]:
    async for request in requests:
        yield _checked(request)


def _unary(method: str, call: Any) -> Any:
    async def handle(request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> Any:
        with _request_context(method, context):
            try:
                return await call(_checked(request), context)
            except (asyncio.CancelledError, grpc.aio.AbortError):
                raise
            except TandemError as error:
                await _abort(context, error)
            except Exception:  # noqa: BLE001 - the last line: nothing internal may reach the caller
                await _abort_unexpected(method, context)

    return handle


def _stream(method: str, call: Any) -> Any:
    async def handle(request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> Any:
        with _request_context(method, context):
            try:
                result = call(_checked(request), context)
                if hasattr(result, "__aiter__"):
                    async for response in result:
                        await context.write(response)
                else:
                    await result
            except (asyncio.CancelledError, grpc.aio.AbortError):
                raise
            except TandemError as error:
                await _abort(context, error)
            except Exception:  # noqa: BLE001 - the last line: nothing internal may reach the caller
                if context.cancelled() or context.done():
                    # A write that was under way when the caller left raises something of its own.
                    raise asyncio.CancelledError from None
                await _abort_unexpected(method, context)

    return handle


@contextmanager
def _request_context(method: str, context: grpc.aio.ServicerContext[Any, Any]) -> Iterator[None]:
    metadata = {key: value for key, value in context.invocation_metadata() or () if isinstance(value, str)}
    request_id = metadata.get("x-request-id", "")
    if not _REQUEST_ID.fullmatch(request_id):
        request_id = ""
    with span(method, metadata.get("traceparent", "")):
        if request_id:
            with bound_request(request_id):
                yield
        else:
            yield


async def _abort(context: grpc.aio.ServicerContext[Any, Any], error: TandemError) -> None:
    if error.retry_after_ms is None:
        await context.abort(error.code, error.message)
    delay = Duration()
    delay.FromMilliseconds(error.retry_after_ms)
    detail = any_pb2.Any()
    detail.Pack(error_details_pb2.RetryInfo(retry_delay=delay))
    number: int = error.code.value[0]
    await context.abort_with_status(
        rpc_status.to_status(
            status_pb2.Status(code=code_pb2.Code.ValueType(number), message=error.message, details=[detail])
        )
    )


async def _abort_unexpected(method: str, context: grpc.aio.ServicerContext[Any, Any]) -> None:
    _log.exception("unexpected error in a handler", method=method)
    await context.abort(grpc.StatusCode.INTERNAL, "internal error")
