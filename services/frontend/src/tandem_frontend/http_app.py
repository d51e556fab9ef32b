"""The HTTP application: what happens around every request, whatever its route.

All routes but OPEN_PATHS need a key, decided on the path as it was sent and before the body is read. Every request is
counted, and if it fails is answered in OpenAI's shape.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable, Mapping

import msgspec
from prometheus_client import Counter
from tandem_common.errors import (
    DeadlineExceeded,
    InternalError,
    InvalidRequest,
    NotFound,
    TandemError,
    Unavailable,
)
from tandem_common.logs import bound_request, get_logger
from tandem_common.telemetry import span

from tandem_frontend.api_keys import ApiKeys
from tandem_frontend.frontend_metrics import FrontendMetrics
from tandem_frontend.http_messages import HttpRequest, HttpResponse
from tandem_frontend.openai_responses import encode, error_answer

OPEN_PATHS = frozenset({"/health", "/live"})
_CLIENT_HAS_GONE = 499

Handler = Callable[[HttpRequest], Awaitable[HttpResponse | None]]

_log = get_logger("http")


class Refusal(Exception):
    """An error whose HTTP status has no gRPC twin (415, say)."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.error = InvalidRequest(message)


class HttpApp:
    """Routes by method and path; a path may end in {name}, which stands for one or more characters."""

    def __init__(
        self, routes: Mapping[tuple[str, str], Handler], *, api_keys: ApiKeys, metrics: FrontendMetrics
    ) -> None:
        self.routes = dict(routes)
        self._api_keys = api_keys
        self._metrics = metrics
        self._counters: dict[tuple[str, int], Counter] = {}
        self._by_path: dict[str, dict[str, Handler]] = {}
        for (method, path), handler in routes.items():
            self._by_path.setdefault(path, {})[method] = handler
        self._prefixes = {path.partition("{")[0]: path for path in self._by_path if path.endswith("}")}

    def admit(self, request: HttpRequest) -> None:
        """Find its route and its tenant, or refuse it."""
        route = request.path
        if route not in self._by_path:
            route = next((p for p in self._prefixes if request.path.startswith(p)), "")
            request.parameter = request.path[len(route) :]
            route = self._prefixes[route] if request.parameter and route else ""
        if route:
            request.route = route
        try:
            if request.path not in OPEN_PATHS:
                request.tenant = self._api_keys.tenant(request.headers.get("authorization"))
        except TandemError as error:
            request.refusal = self._counted(request.route, error_response(error, error.http_status))
            return
        if not route:
            missing = NotFound("there is nothing at this path; see /docs")
            request.refusal = self._counted(request.route, error_response(missing, 404))
        elif self._handler(request) is None:
            allowed = ", ".join(sorted(self._by_path[route]))
            wrong = InvalidRequest(f"this route takes {allowed} only")
            request.refusal = self._counted(
                request.route, error_response(wrong, 405, b"Allow: %b\r\n" % allowed.encode())
            )

    async def answer(self, request: HttpRequest) -> HttpResponse | None:
        """Have it answered by its route's handler."""
        status = _CLIENT_HAS_GONE
        try:
            with (
                bound_request(request.id),
                span(f"{request.method} {request.route}", request.headers.get("traceparent", "")),
            ):
                response = await self._answer(request)
            status = 200 if response is None else response.status
            return response
        finally:
            self._count(request.route, status)

    def refuse(self, status: int, message: str) -> HttpResponse:
        """The answer to what is no request."""
        error: TandemError = InvalidRequest(message)
        if status == 408:
            error = DeadlineExceeded(message)
        elif status == 503:
            error = Unavailable(message, retry_after_ms=1000)
        return self._counted("other", error_response(error, status))

    async def _answer(self, request: HttpRequest) -> HttpResponse | None:
        handler = self._handler(request)
        assert handler is not None, "it was admitted"
        try:
            return await handler(request)
        except TandemError as error:
            return error_response(error, error.http_status)
        except Refusal as refusal:
            return error_response(refusal.error, refusal.status)
        except asyncio.CancelledError:
            raise
        except Exception:  # noqa: BLE001 - the last line: nothing internal may reach the client
            _log.exception("unexpected error in a handler")
            if request.is_answered:
                request.transport.abort()
                return None
            return error_response(InternalError("internal error"), 500)

    def _handler(self, request: HttpRequest) -> Handler | None:
        handlers = self._by_path[request.route]
        return handlers.get("GET" if request.method == "HEAD" else request.method)

    def _counted(self, route: str, response: HttpResponse) -> HttpResponse:
        self._count(route, response.status)
        return response

    def _count(self, route: str, status: int) -> None:
        counter = self._counters.get((route, status))
        if counter is None:
            counter = self._counters[route, status] = self._metrics.requests.labels(route, str(status))
        counter.inc()


def error_response(error: TandemError, status: int, headers: bytes = b"") -> HttpResponse:
    """An error in OpenAI's shape, with Retry-After when it says so."""
    if error.retry_after_ms is not None:
        headers += b"Retry-After: %d\r\n" % max(1, math.ceil(error.retry_after_ms / 1000))
    if status == 401:
        headers += b"WWW-Authenticate: Bearer\r\n"
    return json_response(error_answer(error), status, headers)


def json_response(
    body: msgspec.Struct | Mapping[str, object], status: int = 200, headers: bytes = b""
) -> HttpResponse:
    """A JSON answer."""
    return HttpResponse(encode(body), status, headers=headers)
