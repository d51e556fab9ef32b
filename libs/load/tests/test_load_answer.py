import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai_server import DONE, event, text_event, usage_event
from tandem_load.answer import AnswerError, AnswerReader, error_message
from tandem_load.sse import MalformedStream


def chunk(delta: dict[str, Any], **more: Any) -> bytes:
    return event({"id": "c", "choices": [{"index": 0, "delta": delta, "finish_reason": None}], **more})


@given(st.lists(st.text(max_size=8), max_size=30), st.booleans(), st.booleans())
def test_texts_are_counted_and_kept_whatever_is_in_them(
    texts: list[str], ascii_only: bool, spaces: bool
) -> None:
    reader = AnswerReader(keeps_text=True)
    separators = (", ", ": ") if spaces else (",", ":")
    for text in texts:
        body = {"id": "c", "choices": [{"index": 0, "delta": {"content": text}, "finish_reason": None}]}
        encoded = json.dumps(body, ensure_ascii=ascii_only, separators=separators).encode(
            "utf-8", "surrogatepass"
        )
        num_events = reader.feed(b"data: " + encoded + b"\n\n")
        assert num_events == bool(text)
    assert reader.text() == "".join(texts)
    assert reader.num_tokens == sum(bool(text) for text in texts)


def test_a_role_a_reason_and_a_comment_are_no_tokens_and_usage_counts() -> None:
    reader = AnswerReader()
    stream = [
        chunk({"role": "assistant", "content": ""}),
        text_event(" a"),
        b": keep-alive\n\n",
        text_event(" b c d"),
        chunk({}),
        usage_event(11, 5),
        DONE,
    ]
    assert [reader.feed(part) for part in stream] == [0, 1, 0, 1, 0, 0, 0]
    assert (reader.num_text_events, reader.num_tokens, reader.num_prompt_tokens) == (2, 5, 11)
    assert reader.is_done


def test_usage_and_reason_beside_the_last_text_are_not_overlooked() -> None:
    reader = AnswerReader()
    reader.feed(chunk({"content": "a"}, usage=None))
    reader.feed(chunk({"content": "b"}, usage=None))
    usage = {"prompt_tokens": 1, "completion_tokens": 9, "prompt_tokens_details": {"cached_tokens": 1}}
    reader.feed(chunk({"content": "c"}, usage=usage))
    reader.feed(text_event("d", finish_reason="stop"))
    assert (reader.num_text_events, reader.num_tokens, reader.num_cached_tokens) == (4, 9, 1)
    assert reader.finish_reason == "stop"


def test_usage_that_grows_with_each_event_is_followed() -> None:
    reader = AnswerReader()
    for number in range(1, 5):
        reader.feed(chunk({"content": "a"}, usage={"prompt_tokens": 1, "completion_tokens": number}))
    assert reader.num_tokens == 4


def test_thoughts_tool_calls_and_completions_are_tokens_too() -> None:
    reader = AnswerReader()
    assert reader.feed(chunk({"reasoning_content": "hm"}) * 2) == 2
    assert reader.feed(chunk({"tool_calls": [{"index": 0}]})) == 1
    assert reader.feed(event({"choices": [{"index": 0, "text": "x"}]})) == 1
    assert reader.feed(event({"choices": [{"index": 0, "text": "y"}]})) == 1


def test_an_event_cut_in_two_after_others_is_still_one() -> None:
    reader = AnswerReader()
    reader.feed(text_event("a"))
    part = text_event("b")
    assert [reader.feed(part[:30]), reader.feed(part[30:]), reader.feed(part)] == [0, 1, 1]


@pytest.mark.parametrize(
    "payload", [b"{", b"[1]", b'{"choices": 3}', b'{"choices": [{"delta": {"content": 5}}]}', b"\xff"]
)
def test_what_is_no_chunk_is_malformed(payload: bytes) -> None:
    with pytest.raises(MalformedStream, match="not a chunk"):
        AnswerReader().feed(event(payload))


@pytest.mark.parametrize(
    "body",
    [
        {"error": {"message": "worker died"}},
        {"error": "worker died"},
        {"object": "error", "message": "worker died"},
    ],
)
def test_an_error_in_the_stream_is_the_servers(body: dict[str, Any]) -> None:
    with pytest.raises(AnswerError, match="worker died"):
        AnswerReader().feed(event(body))


def test_an_error_is_one_short_line_whatever_its_shape() -> None:
    assert error_message(b'{"detail": "no\\n such"}') == "no such"
    assert error_message(b"<html>\nbad   gateway") == "<html> bad gateway"
    assert len(error_message(b"x" * 9999)) == 300
