"""The quick way of the token path against the general one: the same bytes, whatever comes and however it is cut."""

from __future__ import annotations

import asyncio
import re

import structlog.testing
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry
from tandem_frontend.answer_format import ChatFormat, CompletionFormat, Envelope
from tandem_frontend.detokenizer import Detokenizer
from tandem_frontend.histogram import StepHistogram
from tandem_frontend.http_messages import HttpRequest
from tandem_frontend.plain_stream import TokenTimes
from tandem_frontend.sse_stream import SseChoice, SseStream, StreamLimits
from tandem_frontend.text_stream import TextStream
from tandem_frontend.token_bytes import TokenBytes

# Letters, what JSON escapes, a leading space, whole and split characters, a wrong byte, a special token.
SPELLED = [
    b"a",
    b" b",
    b'"',
    b"\\",
    b"\n",
    b"\x7f",
    "é".encode(),
    "🦊".encode(),
    b"\xe2",
    b"\x98",
    b"\x83",
    b"\xff",
    b"",
]
BEYOND = len(SPELLED)  # a token that the tokenizer does not know
ROWS = st.lists(st.lists(st.integers(0, BEYOND), min_size=1, max_size=4), max_size=20)


class Client:
    """A transport that takes everything, or nothing while `is_stuck`."""

    def __init__(self) -> None:
        self.received = bytearray()
        self.num_waiting = 0
        self.is_stuck = False
        self.is_lost = False

    def write(self, data: bytes) -> None:
        self.received += data
        self.num_waiting = self.num_waiting + len(data) if self.is_stuck else 0

    def get_write_buffer_size(self) -> int:
        return self.num_waiting

    def is_closing(self) -> bool:
        return self.is_lost

    def abort(self) -> None:
        self.is_lost = True


class Answer:
    """One streamed answer."""

    def __init__(self, *, strips: bool = False, is_chat: bool = True, is_chunked: bool = True) -> None:
        table = TokenBytes(text=SPELLED, shown=SPELLED, strips_leading_space=strips)
        self.client = Client()
        request = HttpRequest(self.client, "POST", "/", {})
        request.id, request.has_chunks = "req-1", is_chunked
        self.slow_readers = []
        limits = StreamLimits(buffer_bytes=400, buffer_age_s=100, keepalive_s=100)
        self.stream = SseStream(request, limits, lambda: self.slow_readers.append(1))
        envelope = Envelope(id="x", created=0, model="m")
        chosen = (ChatFormat if is_chat else CompletionFormat)(envelope, table)
        self.choice = SseChoice(self.stream, chosen, 0)
        self.text = TextStream(Detokenizer(table), (), self.choice)
        self.gaps = StepHistogram("gaps", "", (1.0, 2.0), CollectorRegistry())
        self.times = TokenTimes(self.gaps)

    def take_generally(self, token_ids, now):
        self.times.note(now)
        self.text.accept(token_ids, ())

    def body(self):
        """All that the client got, without the head, whose date may differ."""
        return bytes(self.client.received).partition(b"\r\n\r\n")[2]


def by_itself(coroutine):
    """Streams need a running loop."""
    return asyncio.run(coroutine)


@given(ROWS, st.booleans(), st.booleans(), st.booleans(), st.booleans())
def test_the_quick_way_writes_what_the_general_way_writes(rows, strips, is_chat, is_chunked, one_by_one):
    async def run():
        kinds = {"strips": strips, "is_chat": is_chat, "is_chunked": is_chunked}
        general, quick = Answer(**kinds), Answer(**kinds)
        plain = None
        for step, row in enumerate(rows):
            now = 1.5 * step
            general.take_generally(row, now)
            parts = [[token_id] for token_id in row] if one_by_one and len(row) == 1 else [row]
            for part in parts:
                taken = plain is not None and (
                    plain.take(part[0], now) if len(part) == 1 else plain.take_all(part, now)
                )
                if not taken:
                    quick.take_generally(part, now)
                    plain = plain or quick.text.plain(quick.times)
        for answer in (general, quick):
            answer.text.finish()
            answer.stream.close()
        assert quick.body() == general.body()
        assert quick.text.token_ids == general.text.token_ids == [i for row in rows for i in row]
        assert (quick.times.first_at, quick.times.last_at) == (general.times.first_at, general.times.last_at)
        assert quick.gaps._counts == general.gaps._counts

    by_itself(run())


@given(st.lists(st.text(st.characters(codec="utf-8")), max_size=5))
def test_pieces_of_json_make_the_piece_of_their_text(texts):
    spelled = [text.encode() for text in texts]
    table = TokenBytes(text=[*spelled, b"".join(spelled)], shown=[], strips_leading_space=False)
    assert b"".join(piece or b"" for piece in table.escaped[:-1]) == (table.escaped[-1] or b"")


def test_there_is_no_quick_way_before_the_first_text_nor_with_stop_strings():
    async def run():
        answer = Answer(strips=True)
        assert answer.text.plain(answer.times) is None
        answer.take_generally([BEYOND], 0.0)
        assert answer.text.plain(answer.times) is None
        answer.take_generally([1], 0.0)
        assert answer.text.plain(answer.times) is not None
        with_stops = TextStream(answer.text._detokenizer, ["b"], answer.choice)
        assert with_stops.plain(answer.times) is None
        answer.stream.close()

    by_itself(run())


def test_a_reader_that_does_not_read_is_ended_on_the_quick_way_too():
    async def run():
        answer = Answer()
        answer.take_generally([0], 0.0)
        plain = answer.text.plain(answer.times)
        answer.client.is_stuck = True
        while not answer.client.is_lost and len(answer.text.token_ids) < 100:
            assert plain.take(0, 0.0)
        num_bytes = len(answer.client.received)
        assert answer.slow_readers == [1]
        plain.take(0, 0.0)
        assert len(answer.client.received) == num_bytes
        answer.stream.close()

    with structlog.testing.capture_logs() as lines:
        by_itself(run())
    [line] = lines
    assert (line["log_level"], line["request_id"]) == ("warning", "req-1")
    assert re.fullmatch(r"\d+ bytes unread", line["reason"])


def test_what_was_unread_is_forgotten_when_it_was_read():
    async def run():
        answer = Answer()
        answer.take_generally([0], 0.0)
        plain = answer.text.plain(answer.times)
        for _ in range(100):
            answer.client.is_stuck = True
            plain.take(0, 0.0)
            answer.client.is_stuck = False
            plain.take(0, 0.0)
        assert not answer.slow_readers
        assert answer.stream.backlog.is_empty
        answer.stream.close()

    by_itself(run())
