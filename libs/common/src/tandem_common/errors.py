"""The one tree of errors, and the one table that maps it to gRPC codes and HTTP statuses.

    TandemError
    ├── InvalidRequest        the request itself is wrong; it fails everywhere
    ├── Unauthenticated       no valid API key
    ├── PermissionDenied      a valid caller asked for what is not its own
    ├── NotFound              unknown model, request or route
    ├── Conflict              the receiver's state forbids it (role, epoch, paused)
    ├── Overloaded            refused to protect what was admitted; says when to retry
    ├── Unavailable           nobody there to do it now; safe to try elsewhere
    ├── DeadlineExceeded      the time allowed ran out
    ├── Cancelled             the caller went away
    └── InternalError         a defect of ours; the message never carries details

Messages are shown to clients: they name the value and the fix, and never hold prompts, keys, paths or
addresses. Errors of configuration are `tandem_common.config.ConfigError`: they end a program before it
serves anyone.
"""

from __future__ import annotations

import grpc


class TandemError(Exception):
    """Base of everything that a caller may be told."""

    code: grpc.StatusCode = grpc.StatusCode.INTERNAL
    http_status: int = 500
    # OpenAI's name for the kind of error.
    openai_type: str = "server_error"

    def __init__(self, message: str, *, retry_after_ms: int | None = None, param: str | None = None) -> None:
        """`param` names the field at fault; `retry_after_ms` says when another try may succeed."""
        super().__init__(message)
        self.message = message
        self.retry_after_ms = retry_after_ms
        self.param = param

    @property
    def retryable(self) -> bool:
        """Whether nothing is wrong with the request itself, so that another worker may serve it."""
        return isinstance(self, (Unavailable, Overloaded, InternalError))


class InvalidRequest(TandemError):
    """The request itself is wrong; it fails everywhere."""

    code = grpc.StatusCode.INVALID_ARGUMENT
    http_status = 400
    openai_type = "invalid_request_error"


class Unauthenticated(TandemError):
    """No valid API key."""

    code = grpc.StatusCode.UNAUTHENTICATED
    http_status = 401
    openai_type = "authentication_error"


class PermissionDenied(TandemError):
    """A valid caller asked for what is not its own."""

    code = grpc.StatusCode.PERMISSION_DENIED
    http_status = 403
    openai_type = "permission_error"


class NotFound(TandemError):
    """Unknown model, request or route."""

    code = grpc.StatusCode.NOT_FOUND
    http_status = 404
    openai_type = "not_found_error"


class Conflict(TandemError):
    """The receiver's state forbids it."""

    code = grpc.StatusCode.FAILED_PRECONDITION
    http_status = 409
    openai_type = "conflict_error"


class Overloaded(TandemError):
    """Refused to protect what was admitted."""

    code = grpc.StatusCode.RESOURCE_EXHAUSTED
    http_status = 429
    openai_type = "rate_limit_error"


class Unavailable(TandemError):
    """Nobody there to do it now."""

    code = grpc.StatusCode.UNAVAILABLE
    http_status = 503
    openai_type = "service_unavailable_error"


class DeadlineExceeded(TandemError):
    """The time allowed ran out."""

    code = grpc.StatusCode.DEADLINE_EXCEEDED
    http_status = 504
    openai_type = "timeout_error"


class Cancelled(TandemError):
    """The caller went away."""

    code = grpc.StatusCode.CANCELLED
    http_status = 499
    openai_type = "cancelled"


class InternalError(TandemError):
    """A defect of ours."""


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
        InternalError,
    )
}
# Codes that gRPC itself or a peer may use, and that mean one of ours.
_BY_CODE[grpc.StatusCode.OUT_OF_RANGE] = InvalidRequest
_BY_CODE[grpc.StatusCode.UNIMPLEMENTED] = NotFound
_BY_CODE[grpc.StatusCode.ABORTED] = Unavailable

_BY_NUMBER: dict[int, grpc.StatusCode] = {code.value[0]: code for code in grpc.StatusCode}


def error_for_code(
    code: grpc.StatusCode | int, message: str, *, retry_after_ms: int | None = None
) -> TandemError:
    """The error that a status code stands for; codes without one of ours become InternalError."""
    if isinstance(code, int):
        code = _BY_NUMBER.get(code, grpc.StatusCode.UNKNOWN)
    return _BY_CODE.get(code, InternalError)(message, retry_after_ms=retry_after_ms)
