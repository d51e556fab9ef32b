"""The small parts: backlog, keys, histogram, queue, answer formats."""

from __future__ import annotations

import asyncio
import json
import math
from hashlib import sha256

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry
from tandem.v1 import generation_pb2 as pb
from tandem_common.config import ConfigError
from tandem_common.errors import Unauthenticated
from tandem_common.generation import FinishReason
from tandem_frontend import openai_responses as answers
from tandem_frontend.answer_format import ChatFormat, CompletionFormat, Envelope, error_event
from tandem_frontend.api_keys import PUBLIC_TENANT, ApiKeys
from tandem_frontend.backlog import Backlog
from tandem_frontend.delta_queue import MAX_WAITING_TOKENS, DeltaQueue, SlowReader
from tandem_frontend.generator import Completion, Usage
from tandem_frontend.histogram import StepHistogram
from tandem_frontend.text_stream import Delta
from tandem_frontend.token_bytes import TokenBytes

# Backlog


def test_a_reader_that_keeps_up_is_never_given_up():
    backlog = Backlog(max_bytes=1000, max_age_s=1)
    for second in range(100):
        assert backlog.wrote(100, 100, float(second)) is None


def test_too_many_unread_bytes_end_a_stream():
    backlog = Backlog(max_bytes=250, max_age_s=100)
    assert backlog.wrote(200, 200, 0) is None
    assert backlog.wrote(200, 400, 0) == "400 bytes unread"


def test_bytes_that_stay_unread_for_too_long_end_a_stream():
    backlog = Backlog(max_bytes=10_000, max_age_s=5)
    written = 0
    for second in range(6):
        written += 10
        assert backlog.wrote(10, written, float(second)) is None
    assert backlog.wrote(10, written + 10, 6.0) == "bytes unread for 6.0 s"


def test_a_reader_that_is_behind_but_reads_on_is_kept():
    backlog = Backlog(max_bytes=10_000, max_age_s=5)
    buffered = 0
    for second in range(60):
        buffered = min(buffered + 10, 40)  # never more than four writes behind
        assert backlog.wrote(10, buffered, float(second)) is None


@given(st.lists(st.tuples(st.integers(1, 50), st.integers(0, 60), st.floats(0, 2)), max_size=60))
def test_age_is_that_of_the_oldest_unread_byte_within_the_resolution(steps):
    backlog = Backlog(max_bytes=10**9, max_age_s=3)
    written: list[float] = []  # when each byte was written
    buffered, now = 0, 0.0
    for size, read, gap in steps:
        now += gap
        buffered = max(0, buffered - read) + size
        written += [now] * size
        oldest = written[len(written) - buffered]
        reason = backlog.wrote(size, buffered, now)
        if now - oldest > 3.3:
            assert reason is not None
        if now - oldest < 2.7:
            assert reason is None


# Keys


def test_a_key_file_maps_digests_to_tenants(tmp_path):
    file = tmp_path / "keys"
    file.write_text(
        f"# ours\n{sha256(b'sk-a').hexdigest()} team-a  # first\n\n{sha256(b'sk-b').hexdigest()} b\n"
    )
    keys = ApiKeys.from_file(str(file))
    assert keys.required
    assert keys.tenant("Bearer sk-a") == "team-a"
    assert keys.tenant("bearer sk-b") == "b"
    for wrong in (None, "", "sk-a", "Bearer", "Bearer ", "Basic sk-a", "Bearer sk-", "Bearer " + "x" * 10**6):
        with pytest.raises(Unauthenticated):
            keys.tenant(wrong)


def test_without_keys_everybody_is_public():
    assert ApiKeys({}).tenant(None) == PUBLIC_TENANT


@pytest.mark.parametrize(
    "text", ["", "# only\n", "sk-plain team", "a" * 64, f"{'a' * 64} two words", f"{'a' * 64} b/c"]
)
def test_a_key_file_that_cannot_be_used_names_what_is_wrong_and_no_key(tmp_path, text):
    file = tmp_path / "keys"
    file.write_text(text)
    with pytest.raises(ConfigError) as refusal:
        ApiKeys.from_file(str(file))
    assert "sk-plain" not in str(refusal.value)


# Histogram


@given(st.lists(st.floats(0, 3), max_size=50))
def test_the_histogram_counts_what_lies_below_each_bound(values):
    registry = CollectorRegistry()
    histogram = StepHistogram("x", "help", (0.5, 1.0, 2.0), registry)
    for value in values:
        histogram.observe(value)
    for bound in (0.5, 1.0, 2.0, math.inf):
        label = "+Inf" if bound == math.inf else repr(bound)
        assert registry.get_sample_value("x_bucket", {"le": label}) == sum(v <= bound for v in values)
    assert registry.get_sample_value("x_count") == len(values)
    assert registry.get_sample_value("x_sum") == pytest.approx(sum(values))


# Queue


async def test_what_waits_in_a_queue_comes_as_one_delta():
    queue = DeltaQueue()
    queue.on_delta(Delta("a", [1]))
    queue.on_delta(Delta("b", [2, 3]))
    assert await queue.take() == Delta("ab", [1, 2, 3], [])
    taken = asyncio.create_task(queue.take())
    await asyncio.sleep(0)
    queue.on_delta(Delta("c", [4]))
    assert await taken == Delta("c", [4])
    queue.on_delta(Delta("d", [5]))
    queue.close()
    assert await queue.take() == Delta("d", [5])
    assert await queue.take() is None


async def test_a_queue_past_its_bound_keeps_no_more_and_says_so():
    queue = DeltaQueue()
    for _ in range(MAX_WAITING_TOKENS + 10):
        queue.on_delta(Delta("x", [1]))
    assert len(queue._waiting) == MAX_WAITING_TOKENS
    with pytest.raises(SlowReader):
        await queue.take()


# Formats

TABLE = TokenBytes(
    text=[b"a", b"\xf0\x9f", b""], shown=[b"a", b"\xf0\x9f", b"<end>"], strips_leading_space=False
)
DONE = Completion(
    reason=FinishReason.LENGTH,
    stop=None,
    usage=Usage(prompt_tokens=3, completion_tokens=2, cached_tokens=1),
)
ENTRY = pb.TokenLogprobs(logprob=-math.inf, top_token_ids=[2, 1], top_logprobs=[-0.5, -1.5])


def parsed(event: bytes, kind: type) -> msgspec.Struct:
    assert event.startswith(b"data: ")
    assert event.endswith(b"}\n\n")
    document = json.loads(event[6:])
    chunk = msgspec.convert(document, kind, strict=True)
    assert document.keys() <= set(kind.__struct_fields__)
    return chunk


@given(st.text(), st.booleans())
def test_every_chat_event_is_of_the_documented_type(text, usage_in_chunks):
    envelope = Envelope(id='c"1', created=5, model="m\n", usage_in_chunks=usage_in_chunks)
    format_ = ChatFormat(envelope, TABLE)
    first = parsed(format_.first_event(1), answers.ChatCompletionChunk)
    assert (first.id, first.model, first.choices[0].index) == ('c"1', "m\n", 1)
    event = format_.event(1, Delta(text, [0]))
    assert (event == b"") is (text == "")
    if event:
        assert parsed(event, answers.ChatCompletionChunk).choices[0].delta.content == text
        assert (b'"usage":null' in event) is usage_in_chunks
    with_logprobs = parsed(format_.event(0, Delta("", [1], [ENTRY])), answers.ChatCompletionChunk)
    (token,) = with_logprobs.choices[0].logprobs.content
    assert (token.bytes, token.logprob) == ([0xF0, 0x9F], -9999.0)
    assert [top.token for top in token.top_logprobs] == ["<end>", "\ufffd"]
    last = parsed(format_.last_event(0, DONE), answers.ChatCompletionChunk)
    assert last.choices[0].finish_reason == "length"
    assert parsed(format_.usage_event(DONE.usage), answers.ChatCompletionChunk).usage.total_tokens == 5


@given(st.text())
def test_every_completion_event_is_of_the_documented_type(text):
    format_ = CompletionFormat(Envelope(id="c", created=5, model="m"), TABLE)
    event = format_.event(0, Delta(text, [0]))
    if event:
        assert parsed(event, answers.TextCompletion).choices[0].text == text
    with_logprobs = parsed(format_.event(0, Delta("", [0], [ENTRY])), answers.TextCompletion)
    assert with_logprobs.choices[0].logprobs.text_offset == [len(text)]
    assert parsed(format_.last_event(0, DONE), answers.TextCompletion).choices[0].finish_reason == "length"
    assert parsed(format_.usage_event(DONE.usage), answers.TextCompletion).usage.prompt_tokens == 3


def test_whole_answers_are_of_the_documented_type():
    deltas = [Delta("a", [0], [ENTRY]), Delta("b", [2], [ENTRY])]
    envelope = Envelope(id="c", created=5, model="m")
    chat = msgspec.json.decode(
        ChatFormat(envelope, TABLE).whole([(deltas, DONE)], DONE.usage), type=answers.ChatCompletion
    )
    assert chat.choices[0].message.content == "ab"
    assert len(chat.choices[0].logprobs.content) == 2
    whole = CompletionFormat(envelope, TABLE).whole([(deltas, DONE)], DONE.usage)
    completion = msgspec.json.decode(whole, type=answers.TextCompletion)
    assert completion.choices[0].logprobs.text_offset == [0, 1]


def test_errors_are_in_openais_shape():
    error = Unauthenticated("no key", param="x")
    body = json.loads(error_event(answers.error_answer(error))[6:])["error"]
    assert body == {
        "message": "no key",
        "type": "authentication_error",
        "param": "x",
        "code": "invalid_api_key",
    }
