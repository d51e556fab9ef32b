"""The HTTP application: what happens around every request, whatever its route.

Every request gets an id, is authenticated (all routes but OPEN_PATHS, decided on the path as it was sent), is counted,
and if it fails is answered in OpenAI's shape.
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Awaitable, Callable, Mapping

import msgspec
from aiohttp import web
from tandem_common.errors import InternalError, InvalidRequest, NotFound, TandemError
from tandem_common.logs import bound_request, get_logger
from tandem_common.telemetry import span

from tandem_frontend.api_keys import ApiKeys
from tandem_frontend.frontend_metrics import FrontendMetrics
from tandem_frontend.http_server import ConnectionGuard
from tandem_frontend.openai_responses import encode, error_answer

OPEN_PATHS = frozenset({"/health", "/live"})
REQUEST_ID: web.RequestKey[str] = web.RequestKey("request_id", str)
TENANT: web.RequestKey[str] = web.RequestKey("tenant", str)

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

_log = get_logger("http")


class Refusal(Exception):
    """An error whose HTTP status has no gRPC twin (413, 415, 408)."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.error = InvalidRequest(message)


def new_request_id() -> str:
    """An id that nobody else makes."""
    return f"req-{secrets.token_hex(16)}"


def make_app(
    routes: Mapping[tuple[str, str], Handler],
    *,
    api_keys: ApiKeys,
    metrics: FrontendMetrics,
    max_body_bytes: int,
) -> web.Application:
    """The application with these routes, by method and path."""
    edge = _Edge(api_keys, metrics)
    app = web.Application(middlewares=[edge.around], client_max_size=max_body_bytes)
    for (method, path), handler in routes.items():
        if method == "GET":
            app.router.add_get(path, handler, allow_head=True)
        else:
            app.router.add_route(method, path, handler)
    app.on_response_prepare.append(_add_request_id)
    return app


class _Edge:
    """The middleware."""

    def __init__(self, api_keys: ApiKeys, metrics: FrontendMetrics) -> None:
        self._api_keys = api_keys
        self._metrics = metrics

    @web.middleware
    async def around(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        guard = request.transport.get_protocol() if request.transport is not None else None
        if isinstance(guard, ConnectionGuard):
            guard.request_began()
        route = request.match_info.route.resource
        name = route.canonical if route is not None else "other"
        status = 499  # unless something is answered, the client has gone
        try:
            request[REQUEST_ID] = new_request_id()
            with (
                bound_request(request[REQUEST_ID]),
                span(f"{request.method} {name}", request.headers.get("traceparent", "")),
            ):
                response = await self._answer(request, handler)
            status = response.status
            return response
        finally:
            self._metrics.requests.labels(name, str(status)).inc()
            if isinstance(guard, ConnectionGuard):
                guard.request_ended()

    async def _answer(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        try:
            if request.raw_path.partition("?")[0] not in OPEN_PATHS:
                request[TENANT] = self._api_keys.tenant(request.headers.get("Authorization"))
            return await handler(request)
        except TandemError as error:
            return error_response(error, error.http_status)
        except Refusal as refusal:
            return error_response(refusal.error, refusal.status)
        except web.HTTPRequestEntityTooLarge:
            return error_response(InvalidRequest("the request body is too large"), 413)
        except web.HTTPMethodNotAllowed as error:
            allowed = ", ".join(sorted(error.allowed_methods))
            response = error_response(InvalidRequest(f"this route takes {allowed} only"), 405)
            response.headers["Allow"] = allowed
            return response
        except web.HTTPException as error:
            if error.status == 404:
                return error_response(NotFound("there is nothing at this path; see /docs"), 404)
            return error_response(InvalidRequest(error.reason), error.status)
        except Exception:  # noqa: BLE001 - the last line: nothing internal may reach the client
            _log.exception("unexpected error in a handler")
            return error_response(InternalError("internal error"), 500)


def error_response(error: TandemError, status: int) -> web.Response:
    """An error in OpenAI's shape, with Retry-After when it says so."""
    response = json_response(error_answer(error), status)
    if error.retry_after_ms is not None:
        response.headers["Retry-After"] = str(max(1, math.ceil(error.retry_after_ms / 1000)))
    if status == 401:
        response.headers["WWW-Authenticate"] = "Bearer"
    return response


def json_response(body: msgspec.Struct | Mapping[str, object], status: int = 200) -> web.Response:
    """A JSON answer."""
    return web.Response(body=encode(body), status=status, content_type="application/json")


async def _add_request_id(request: web.Request, response: web.StreamResponse) -> None:
    response.headers["X-Request-Id"] = request.get(REQUEST_ID) or new_request_id()
