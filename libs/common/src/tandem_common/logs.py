"""Logs: structlog, as JSON lines or for a console, on stderr, with the request id in every line that has one.

Prompts, outputs and keys are never logged; values are single tokens of text or numbers, so one line is one event.
"""

from __future__ import annotations

import contextlib
import json
import logging
import sys
import time
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any

import orjson
import structlog
from structlog.typing import EventDict

# One variable, set and reset with each request: binding it by structlog's own means costs ten times as much.
_request_id: ContextVar[str] = ContextVar("request_id", default="")

_METHOD_LEVELS = {"warn": "warning", "exception": "error"}
_LEVELS = {"debug": 10, "info": 20, "warning": 30, "error": 40}


def configure_logging(service: str, *, level: str = "info", format: str = "auto") -> None:  # noqa: A002
    """Set up logging of this process; `format` is "json", "console" or "auto" (console on a terminal)."""
    console = format == "console" or (format == "auto" and sys.stderr.isatty())
    processors: list[Any] = [_JsonLine(service)]
    factory: Any = structlog.BytesLoggerFactory(sys.stderr.buffer)
    if console:
        processors = [
            _Origin(service),
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.dev.ConsoleRenderer(),
        ]
        factory = structlog.PrintLoggerFactory(sys.stderr)
    structlog.configure(
        processors=processors,
        wrapper_class=structlog.make_filtering_bound_logger(_LEVELS[level]),
        logger_factory=factory,
        cache_logger_on_first_use=True,
    )
    # Libraries that log through the standard module: warnings and worse, one line each.
    logging.basicConfig(
        level=logging.WARNING, stream=sys.stderr, format="%(levelname)s %(name)s: %(message)s"
    )


def get_logger(name: str) -> Any:
    """A logger whose lines carry `component=name`; may be made before `configure_logging`."""
    return structlog.get_logger(component=name)


@contextlib.contextmanager
def bound_request(request_id: str) -> Iterator[None]:
    """Every line logged inside carries the request id."""
    token = _request_id.set(request_id)
    try:
        yield
    finally:
        _request_id.reset(token)


def bound_request_id() -> str:
    """The request id that lines carry here; empty outside of a request."""
    return _request_id.get()


class _Origin:
    """Says which service a line is from, and for which request it was written."""

    def __init__(self, service: str) -> None:
        self._service = service

    def __call__(self, logger: Any, method: str, event: EventDict) -> EventDict:
        event["service"] = self._service
        request_id = _request_id.get()
        if request_id:
            event.setdefault("request_id", request_id)
        return event


class _JsonLine:
    """The whole way from an event to its line in one step: every request of every service writes one.

    structlog's own processors, one after the other, take twice as long.
    """

    def __init__(self, service: str) -> None:
        self._add_origin = _Origin(service)
        self._second = 0
        self._prefix = ""  # date and time of that second

    def __call__(self, logger: Any, method: str, event: EventDict) -> bytes:
        self._add_origin(logger, method, event)
        event["level"] = _METHOD_LEVELS.get(method, method)
        event["timestamp"] = self._timestamp(time.time_ns())
        if "exc_info" in event:
            structlog.processors.dict_tracebacks(logger, method, event)
        try:
            return orjson.dumps(event, default=repr)
        except TypeError:  # halves of surrogate pairs, numbers of more than 64 bits
            return json.dumps(event, default=repr).encode()

    def _timestamp(self, now_ns: int) -> str:
        second, rest_ns = divmod(now_ns, 1_000_000_000)
        if second != self._second:
            self._prefix = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second))
            self._second = second
        return f"{self._prefix}.{rest_ns // 1000:06d}Z"
