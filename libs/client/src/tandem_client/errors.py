"""What can go wrong with a call, as gRPC names it.

    TandemError
    ├── InvalidRequest        the request itself is wrong; it fails everywhere
    ├── Unauthenticated       no valid API key
    ├── PermissionDenied      a valid caller asked for what is not its own
    ├── NotFound              unknown model
    ├── Conflict              the server's state forbids it
    ├── Overloaded            refused to protect what was admitted; `retry_after_s` says when to try again
    ├── Unavailable           nobody there to do it now
    ├── DeadlineExceeded      the time allowed ran out: on the server, or one of `Timeouts` here
    ├── Cancelled             the call was cancelled
    └── ServerError           a defect of the server, or an answer that makes no sense

Every error carries `request_id` ("" when the server did not get to name the request): quote it to whoever
runs the server, all of whose log lines hold it.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar, cast

import grpc
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2

_STATUS_DETAILS = "grpc-status-details-bin"
_REQUEST_ID = "x-request-id"


class TandemError(Exception):
    """Base of all errors of this package.

    `message` is what the server (or this package) said; `request_id` names the request at the server or is "";
    `retry_after_s` is the server's advice when to try again, or None.
    """

    code: ClassVar[grpc.StatusCode] = grpc.StatusCode.UNKNOWN

    def __init__(self, message: str, *, request_id: str = "", retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.request_id = request_id
        self.retry_after_s = retry_after_s

    def __str__(self) -> str:
        return f"{self.message} ({self.request_id})" if self.request_id else self.message


class InvalidRequest(TandemError):
    """The request itself is wrong; it fails everywhere."""

    code = grpc.StatusCode.INVALID_ARGUMENT


class Unauthenticated(TandemError):
    """No valid API key."""

    code = grpc.StatusCode.UNAUTHENTICATED


class PermissionDenied(TandemError):
    """A valid caller asked for what is not its own."""

    code = grpc.StatusCode.PERMISSION_DENIED


class NotFound(TandemError):
    """Unknown model."""

    code = grpc.StatusCode.NOT_FOUND


class Conflict(TandemError):
    """The server's state forbids it."""

    code = grpc.StatusCode.FAILED_PRECONDITION


class Overloaded(TandemError):
    """Refused to protect what was admitted."""

    code = grpc.StatusCode.RESOURCE_EXHAUSTED


class Unavailable(TandemError):
    """Nobody there to do it now."""

    code = grpc.StatusCode.UNAVAILABLE


class DeadlineExceeded(TandemError):
    """The time allowed ran out."""

    code = grpc.StatusCode.DEADLINE_EXCEEDED


class Cancelled(TandemError):
    """The call was cancelled."""

    code = grpc.StatusCode.CANCELLED


class ServerError(TandemError):
    """A defect of the server, or an answer that makes no sense."""

    code = grpc.StatusCode.INTERNAL


_BY_CODE: dict[grpc.StatusCode, type[TandemError]] = {
    cls.code: cls
    for cls in (
        InvalidRequest,
        Unauthenticated,
        PermissionDenied,
        NotFound,
        Conflict,
        Overloaded,
        Unavailable,
        DeadlineExceeded,
        Cancelled,
        ServerError,
    )
}
# Codes that gRPC itself may use, and that mean one of ours.
_BY_CODE[grpc.StatusCode.OUT_OF_RANGE] = InvalidRequest
_BY_CODE[grpc.StatusCode.UNIMPLEMENTED] = NotFound
_BY_CODE[grpc.StatusCode.ABORTED] = Unavailable


def error_from_rpc(failure: grpc.RpcError) -> TandemError:
    """The error that a failed call stands for; codes without one of ours become ServerError."""
    # The server names the request before it does anything else; a call that never got there has no metadata.
    initial = failure.initial_metadata() if isinstance(failure, (grpc.Call, grpc.aio.AioRpcError)) else ()
    metadata = cast(
        "Iterable[tuple[str, str | bytes]]", (*(initial or ()), *(failure.trailing_metadata() or ()))
    )
    return error_from_status(failure.code(), failure.details(), metadata)


def error_from_status(
    code: grpc.StatusCode, details: str | None, metadata: Iterable[tuple[str, str | bytes]]
) -> TandemError:
    """As `error_from_rpc`, from a call's status and metadata."""
    request_id = ""
    retry_after_s = None
    for key, value in metadata:
        if key == _REQUEST_ID and isinstance(value, str):
            request_id = value
        elif key == _STATUS_DETAILS and isinstance(value, bytes):
            retry_after_s = _retry_delay_s(value)
    message = details or code.name.lower().replace("_", " ")
    return _BY_CODE.get(code, ServerError)(message, request_id=request_id, retry_after_s=retry_after_s)


def _retry_delay_s(packed_status: bytes) -> float | None:
    """Seconds of the first google.rpc.RetryInfo in a packed google.rpc.Status; None without one."""
    status = status_pb2.Status()
    info = error_details_pb2.RetryInfo()
    try:
        status.ParseFromString(packed_status)
        for detail in status.details:
            if detail.Unpack(info):
                return max(0.0, float(info.retry_delay.seconds) + float(info.retry_delay.nanos) / 1e9)
    except DecodeError:
        return None  # an unreadable detail must not hide the error that it belongs to
    return None
