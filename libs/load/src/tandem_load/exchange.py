"""One HTTP request and its answer, without the socket."""

from __future__ import annotations

import httptools

from tandem_load.answer import AnswerError, AnswerReader, error_message
from tandem_load.failures import Failure
from tandem_load.sse import MalformedStream

_MAX_BODY_BYTES = 1 << 20  # of an answer that is not a stream


class Exchange:
    """Bytes of an answer in, what it said and when out. Times are CLOCK_MONOTONIC, in seconds.

    Feed it until `is_complete` or `failure`; after `is_complete` without `failure` the connection may be used again if
    `keeps_alive`.
    """

    def __init__(self, *, keeps_text: bool = False, expects_stream: bool = True) -> None:
        self._expects_stream = expects_stream
        self.answer = AnswerReader(keeps_text=keeps_text)
        self.status = 0
        self.retry_after_s: float | None = None
        self.is_complete = False
        self.keeps_alive = False
        self.failure: Failure | None = None
        self.body = b""  # of an answer that is not a stream
        self.first_token_s: float | None = None
        self.last_token_s = 0.0
        self.longest_gap_s = 0.0
        self.gaps_s: list[float] = []  # since whoever reads them took them last
        self.has_begun = False
        self._is_stream = False
        self._now_s = 0.0
        self._parser: httptools.HttpResponseParser | None = httptools.HttpResponseParser(self)

    def feed(self, data: memoryview | bytes, now_s: float) -> int:
        """Take bytes that were read at `now_s`; returns how many events with text were in them."""
        self.has_begun = True
        self._now_s = now_s
        before = self.answer.num_text_events
        parser = self._parser
        if parser is None:
            self._fail("malformed answer", "more came after the answer had ended")
            return 0
        try:
            parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            self._fail("malformed answer", f"this is not HTTP/1.1: {error}")
        return self.answer.num_text_events - before

    def on_close(self, reason: str) -> None:
        """The connection ended, `reason` says how; some answers end that way."""
        if self.is_complete or self.failure is not None:
            return
        if self._is_stream and self.answer.is_done:
            self._end()
        elif self.answer.num_text_events:
            self._fail("stream broken off", f"{reason} after {self.answer.num_text_events} events with text")
        else:
            self._fail("connection broken", f"{reason} before any text of the answer")

    def release(self) -> None:
        """Let go of the parser, which holds this object in turn; there is nothing to feed any more."""
        self._parser = None

    # Called by the parser.

    def on_header(self, name: bytes, value: bytes) -> None:
        """One header."""
        match name.lower():
            case b"retry-after":
                text = value.decode("latin-1").strip()
                self.retry_after_s = float(text) if text.isdigit() else None
            case b"content-type":
                self._is_stream = value.lower().startswith(b"text/event-stream")

    def on_headers_complete(self) -> None:
        """All headers."""
        assert self._parser is not None
        self.status = self._parser.get_status_code()
        self.keeps_alive = self._parser.should_keep_alive()

    def on_body(self, body: bytes) -> None:
        """Some of the body."""
        if self.status != 200 or not self._is_stream:
            if len(self.body) < _MAX_BODY_BYTES:
                self.body += body
            return
        if self.failure is None:
            self._take(body)

    def on_message_complete(self) -> None:
        """The end."""
        if self.status >= 200:  # 1xx are followed by the answer
            self._end()

    def _take(self, data: bytes) -> None:
        try:
            num_events = self.answer.feed(data)
        except MalformedStream as error:
            self._fail("malformed answer", str(error))
        except AnswerError as error:
            self._fail("error in stream", str(error))
        else:
            if num_events:
                self._on_text(num_events)

    def _on_text(self, num_events: int) -> None:
        now_s = self._now_s
        if self.first_token_s is None:
            self.first_token_s = now_s
        else:
            gap_s = now_s - self.last_token_s
            self.gaps_s.append(gap_s)
            if gap_s > self.longest_gap_s:
                self.longest_gap_s = gap_s
        if num_events > 1:  # came together
            self.gaps_s += [0.0] * (num_events - 1)
        self.last_token_s = now_s

    def _end(self) -> None:
        self.is_complete = True
        if self.failure is not None:
            return
        if self.status != 200:
            self._fail(f"HTTP {self.status}", error_message(self.body))
            return
        if not self._is_stream:
            if self._expects_stream:
                self._fail("malformed answer", "the answer is not a stream of events")
            return
        self._take(b"\n\n")  # the last event of some servers lacks its empty line
        if self.failure is not None:
            return
        if not (self.answer.is_done or self.answer.finish_reason):
            self._fail("stream broken off", f"no end after {self.answer.num_text_events} events with text")
        elif not self.answer.num_text_events:
            self._fail("empty answer", f"no token; finish_reason {self.answer.finish_reason}")

    def _fail(self, kind: str, message: str) -> None:
        self.failure = Failure(kind=kind, message=message, retry_after_s=self.retry_after_s)
