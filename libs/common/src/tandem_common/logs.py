"""Logs: structlog, as JSON lines or for a console, on stderr, with the request id in every line that has one.

Prompts, outputs and keys are never logged; values are single tokens of text or numbers, so one line is one event.
"""

from __future__ import annotations

import contextlib
import logging
import sys
from collections.abc import Iterator, MutableMapping
from contextvars import ContextVar
from typing import Any

import structlog

# One variable, set and reset with each request: binding it by structlog's own means costs ten times as much.
_request_id: ContextVar[str] = ContextVar("request_id", default="")

_LEVELS = {"debug": 10, "info": 20, "warning": 30, "error": 40}


def configure_logging(service: str, *, level: str = "info", format: str = "auto") -> None:  # noqa: A002
    """Set up logging of this process; `format` is "json", "console" or "auto" (console on a terminal)."""
    console = format == "console" or (format == "auto" and sys.stderr.isatty())
    renderer: Any = structlog.dev.ConsoleRenderer() if console else structlog.processors.JSONRenderer()
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            _add_request_id,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            *(() if console else (structlog.processors.dict_tracebacks,)),
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(_LEVELS[level]),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )
    structlog.contextvars.clear_contextvars()
    structlog.contextvars.bind_contextvars(service=service)
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


def _add_request_id(logger: Any, method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    request_id = _request_id.get()
    if request_id:
        event.setdefault("request_id", request_id)
    return event
