"""HTTP/1.1 requests as handlers see them, and answers as bytes."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass
from email.utils import formatdate
from http import HTTPStatus

_STATUS_LINES = {
    status.value: f"HTTP/1.1 {status.value} {status.phrase}\r\n".encode() for status in HTTPStatus
}


def new_request_id() -> str:
    """An id that nobody else makes."""
    return f"req-{secrets.token_hex(16)}"


class HttpRequest:
    """One request. Handlers are called when all of its body is there."""

    __slots__ = (
        "body", "closes", "has_chunks", "headers", "id", "is_answered", "method", "parameter", "path", "refusal",
        "route", "tenant", "transport",
    )  # fmt: skip

    def __init__(
        self, transport: asyncio.WriteTransport, method: str, target: str, headers: Mapping[str, str]
    ) -> None:
        """`headers` by lower-case name."""
        self.transport = transport
        self.id = new_request_id()
        self.method = method
        self.path = target.partition("?")[0]  # as it was sent: nothing is decoded or normalized
        self.headers = headers
        self.body = b""
        self.has_chunks = True  # an answer of unknown length may be sent in chunks (HTTP/1.1)
        self.closes = False  # the connection ends with the answer
        self.is_answered = False  # the head of an answer was written
        # Settled by the application as soon as the head is there:
        self.route = "other"  # its name in metrics
        self.parameter = ""  # what stands for the {...} of the route's path
        self.tenant = ""
        self.refusal: HttpResponse | None = None  # this is the answer, whatever the body

    def head(self, status: int, content_type: bytes, more: bytes = b"") -> bytes:
        """Status line and headers of the answer; `more` are further lines, each with its end."""
        return b"%bContent-Type: %b\r\nDate: %b\r\nX-Request-Id: %b\r\n%b%b\r\n" % (
            _STATUS_LINES[status],
            content_type,
            _date(),
            self.id.encode(),
            b"Connection: close\r\n"
            if self.closes
            else b""
            if self.has_chunks
            else b"Connection: keep-alive\r\n",
            more,
        )


@dataclass(frozen=True, slots=True)
class HttpResponse:
    """An answer that is sent whole."""

    body: bytes
    status: int = 200
    content_type: bytes = b"application/json"
    headers: bytes = b""  # further lines, each with its end

    def encode(self, request: HttpRequest) -> bytes:
        """Head and body."""
        length = b"Content-Length: %d\r\n" % len(self.body)
        head = request.head(self.status, self.content_type, length + self.headers)
        return head if request.method == "HEAD" else head + self.body


class _Clock:
    """The date of this second, formatted once."""

    second = 0
    text = b""


def _date() -> bytes:
    now = int(time.time())
    if now != _Clock.second:
        _Clock.second, _Clock.text = now, formatdate(now, usegmt=True).encode()
    return _Clock.text
