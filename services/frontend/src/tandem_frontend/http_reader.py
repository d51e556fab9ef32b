"""Bytes of one connection in, whole requests out.

llhttp (Node's parser) does the reading; it is strict about what request smuggling needs: lengths that contradict each
other, spaces and line ends where none belong, folded headers. What it leaves open is settled here: versions, Host,
doubled headers, other transfer encodings, upgrades, and how much a client may send.
"""

from __future__ import annotations

import asyncio
import enum
from collections.abc import Callable

import httptools

from tandem_frontend.http_messages import HttpRequest, HttpResponse

MAX_HEAD_BYTES = 16 << 10
# The body of a request that is refused by its head is skipped if it is no longer; else the connection ends.
MAX_SKIPPED_BYTES = 64 << 10
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
_VERSIONS = ("1.1", "1.0")
# Two of these would be read differently by different servers.
_SINGLE = frozenset(
    {"host", "authorization", "content-type", "content-encoding", "transfer-encoding", "expect"}
)


class BadRequest(Exception):
    """What was read cannot be answered by a handler, and what follows it cannot be read."""

    def __init__(self, status: int, message: str, response: HttpResponse | None = None) -> None:
        """`response` is the answer, if there is one already."""
        super().__init__(message)
        self.status = status
        self.message = message
        self.response = response


class Phase(enum.Enum):
    """What the next byte belongs to."""

    BETWEEN = enum.auto()  # to no request yet
    HEAD = enum.auto()
    BODY = enum.auto()


class RequestReader:
    """The on_... methods are called by the parser."""

    def __init__(
        self, transport: asyncio.WriteTransport, admit: Callable[[HttpRequest], None], max_body_bytes: int
    ) -> None:
        """`admit` sees each head; it may set a refusal."""
        self._transport = transport
        self._admit = admit
        self._max_body_bytes = max_body_bytes
        self._parser: httptools.HttpRequestParser | None = httptools.HttpRequestParser(self)
        self.phase = Phase.BETWEEN
        self.is_free = True  # whether no earlier request is being answered; set by the connection
        self._num_heads = 0  # complete ones
        self._requests: list[HttpRequest] = []
        self._is_offer = False  # to upgrade: the head is read once more
        self._method = b""  # of an offer
        self._target = b""
        self._headers: dict[str, str] = {}
        self._num_head_bytes = 0  # of a head that does not end
        self._request: HttpRequest | None = None  # its head is complete
        self._body: list[bytes] = []
        self._num_body_bytes = 0

    def feed(self, data: bytes) -> None:
        """Take what came; `take` gives the requests that it completed. BadRequest after those: feed no more."""
        if self._parser is None:
            return
        was_in_head, num_heads = self.phase is Phase.HEAD, self._num_heads
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            # An offer to speak another protocol (Java's client makes one with every request) is to be ignored, but
            # llhttp stops at it, before the body: let it read on from the same head without the offer.
            self._parser = httptools.HttpRequestParser(self)
            self.feed(self._head_without_offer() + data[upgrade.args[0] :])
        except httptools.HttpParserError as error:
            if isinstance(error.__context__, BadRequest):
                raise error.__context__ from None
            if self._parser is not None:  # else this was behind the last request
                raise BadRequest(400, "this is not HTTP/1.1 as it should be") from None
        if was_in_head and self._num_heads == num_heads:
            self._num_head_bytes += len(data)
            if self._num_head_bytes > MAX_HEAD_BYTES:
                raise BadRequest(431, "the request's head is too large")

    def take(self) -> list[HttpRequest]:
        """Requests that are complete."""
        requests, self._requests = self._requests, []
        return requests

    def close(self) -> None:
        """Read no more."""
        self._parser = None

    def on_message_begin(self) -> None:
        """The first byte of a request."""
        self.phase = Phase.HEAD
        self._target, self._headers, self._request = b"", {}, None
        self._num_head_bytes = 0
        self._body, self._num_body_bytes = [], 0

    def on_url(self, url: bytes) -> None:
        """A piece of the target."""
        self._target += url

    def on_header(self, name: bytes, value: bytes) -> None:
        """One header, or one that follows a chunked body: those say nothing that we use."""
        if self.phase is not Phase.HEAD:
            return
        key, text = name.decode("ascii").lower(), value.decode("utf-8", "surrogateescape")
        if key in self._headers:
            if key in _SINGLE:
                raise BadRequest(400, f"the header {key} is there twice")
            text = f"{self._headers[key]}, {text}"
        self._headers[key] = text

    def on_headers_complete(self) -> None:
        """The head is complete; the body may be refused."""
        parser, headers = self._parser, self._headers
        assert parser is not None
        self._is_offer = parser.should_upgrade()
        if self._is_offer:
            if parser.get_method() == b"CONNECT":
                raise BadRequest(400, "this is no proxy")
            self._method = parser.get_method()
            return
        size = len(self._target) + sum(map(len, headers)) + sum(map(len, headers.values())) + 4 * len(headers)
        if size > MAX_HEAD_BYTES:
            raise BadRequest(431, "the request's head is too large")
        version = parser.get_http_version()
        if version not in _VERSIONS:
            raise BadRequest(505, "only HTTP/1.1 and HTTP/1.0 are spoken here")
        request = HttpRequest(
            self._transport, parser.get_method().decode(), self._target.decode("latin-1"), headers
        )
        request.has_chunks = version == "1.1"
        request.closes = not parser.should_keep_alive()
        if "host" not in headers and request.has_chunks:
            raise BadRequest(400, "the header host is missing")
        encoding = headers.get("transfer-encoding")
        if encoding is not None and (encoding.lower() != "chunked" or not request.has_chunks):
            raise BadRequest(400, "the only transfer encoding is chunked")
        self._admit(request)
        self._check_length(request, headers.get("content-length"), is_chunked=encoding is not None)
        wants_word = headers.get("expect", "").lower() == "100-continue" and request.refusal is None
        if wants_word and self.is_free and not self._requests:
            # Else it would be written into the middle of an earlier answer; clients go on without it after a while.
            self._transport.write(CONTINUE)
        self._request = request
        self.phase = Phase.BODY
        self._num_heads += 1

    def on_body(self, data: bytes) -> None:
        """A piece of the body."""
        assert self._request is not None
        if self._request.refusal is not None:
            return
        self._num_body_bytes += len(data)
        if self._num_body_bytes > self._max_body_bytes:
            raise BadRequest(413, "the request body is too large")
        self._body.append(data)

    def on_message_complete(self) -> None:
        """The request is whole."""
        if self._is_offer:
            return
        request = self._request
        assert request is not None
        request.body = self._body[0] if len(self._body) == 1 else b"".join(self._body)
        self._requests.append(request)
        self._request, self._body = None, []
        self.phase = Phase.BETWEEN
        if request.closes:
            self._parser = None

    def _head_without_offer(self) -> bytes:
        lines = [
            f"{name}: {value}"
            for name, value in self._headers.items()
            if name not in ("connection", "upgrade")
        ]
        return b"%b %b HTTP/1.1\r\n%b\r\n\r\n" % (
            self._method,
            self._target,
            "\r\n".join(lines).encode("utf-8", "surrogateescape"),
        )

    def _check_length(self, request: HttpRequest, length: str | None, *, is_chunked: bool) -> None:
        num_bytes = int(length) if length is not None else 0
        refusal = request.refusal
        if refusal is not None and (is_chunked or num_bytes > MAX_SKIPPED_BYTES):
            raise BadRequest(refusal.status, "refused", refusal)
        if refusal is None and num_bytes > self._max_body_bytes:
            raise BadRequest(413, "the request body is too large")
