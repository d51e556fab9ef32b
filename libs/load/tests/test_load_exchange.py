import pytest
from openai_server import DONE, chunked, event, text_event, usage_event
from openai_server import STREAM_END as LAST
from openai_server import STREAM_HEAD as HEAD
from tandem_load.exchange import Exchange

END = chunked(
    event({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}), usage_event(3, 3), DONE
)


def test_times_are_those_of_the_reads_and_tokens_read_together_have_no_gap() -> None:
    exchange = Exchange()
    exchange.feed(HEAD + chunked(event({"choices": [{"index": 0, "delta": {"role": "assistant"}}]})), 1.0)
    assert exchange.first_token_s is None
    assert exchange.feed(chunked(text_event("a")), 2.0) == 1
    assert exchange.feed(chunked(text_event("b"), text_event("c")), 5.0) == 2
    exchange.feed(END + LAST, 6.0)
    assert exchange.is_complete
    assert exchange.failure is None
    assert (exchange.first_token_s, exchange.last_token_s) == (2.0, 5.0)
    assert exchange.gaps_s == [3.0, 0.0]
    assert exchange.longest_gap_s == 3.0
    assert exchange.keeps_alive


def test_an_answer_that_comes_byte_by_byte_is_the_same_answer() -> None:
    exchange = Exchange()
    data = HEAD + chunked(text_event("a"), text_event("b")) + END + LAST
    for number, byte in enumerate(data):
        exchange.feed(bytes([byte]), float(number))
    assert exchange.is_complete
    assert exchange.failure is None
    assert exchange.answer.num_text_events == 2


def test_a_refusal_has_its_status_message_and_retry_after() -> None:
    exchange = Exchange()
    body = b'{"error": {"message": "busy"}}'
    exchange.feed(
        b"HTTP/1.1 429 X\r\nRetry-After: 3\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body), 1.0
    )
    assert exchange.is_complete
    assert exchange.failure is not None
    assert (exchange.failure.kind, exchange.failure.message) == ("HTTP 429", "busy")
    assert exchange.failure.retry_after_s == 3.0


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (HEAD + chunked(text_event("a")) + LAST, "stream broken off"),
        (HEAD + chunked(b"data: {\n\n"), "malformed answer"),
        (HEAD + b"zz\r\n", "malformed answer"),
        (b"SSH-2.0-OpenSSH\r\n", "malformed answer"),
        (HEAD + chunked(event({"error": {"message": "x"}})), "error in stream"),
        (HEAD + END + LAST, "empty answer"),
        (
            b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}",
            "malformed answer",
        ),
    ],
)
def test_what_is_not_a_whole_answer_fails_by_kind(data: bytes, kind: str) -> None:
    exchange = Exchange()
    exchange.feed(data, 1.0)
    assert exchange.failure is not None
    assert exchange.failure.kind == kind


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (b"", "connection broken"),
        (HEAD, "connection broken"),
        (HEAD + chunked(text_event("a")), "stream broken off"),
    ],
)
def test_a_connection_that_ends_too_early_is_told_by_when(data: bytes, kind: str) -> None:
    exchange = Exchange()
    exchange.feed(data, 1.0)
    exchange.on_close("reset")
    assert exchange.failure is not None
    assert exchange.failure.kind == kind
    assert exchange.failure.message.startswith("reset")


def test_an_answer_without_length_ends_with_the_connection() -> None:
    exchange = Exchange()
    exchange.feed(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n" + text_event("a") + DONE, 1.0)
    assert not exchange.is_complete
    exchange.on_close("closed")
    assert exchange.is_complete
    assert exchange.failure is None
    assert not exchange.keeps_alive


def test_the_last_event_may_lack_its_empty_line() -> None:
    exchange = Exchange()
    exchange.feed(HEAD + chunked(text_event("a"), b"data: [DONE]\n") + LAST, 1.0)
    assert exchange.is_complete
    assert exchange.failure is None
