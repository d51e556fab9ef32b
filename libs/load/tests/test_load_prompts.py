"""Lengths, passages, dialects and the conversations made of them."""

import json
import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tandem_load.conversation import Asker, Conversation, PromptShape
from tandem_load.dialect import Dialect
from tandem_load.lengths import Lengths
from tandem_load.passages import Passages
from tandem_load.traffic import TrafficRequest

DIALECT = Dialect(model="m", tokens_per_word=2.0, overhead_tokens=10.0)
PASSAGES = Passages()


def shape(**changes: object) -> PromptShape:
    fixed = Lengths.parse("50")
    return PromptShape(**({"input_tokens": fixed, "output_tokens": fixed} | changes))  # type: ignore[arg-type]


def prompts(conversation: Conversation) -> list[str]:
    body = json.loads(conversation.next_ask().body)
    return [message["content"] for message in body["messages"]]


def test_lengths_are_drawn_as_they_are_written() -> None:
    draw = random.Random(1)
    assert {Lengths.parse("512").draw(draw) for _ in range(10)} == {512}
    even = [Lengths.parse("100-200").draw(draw) for _ in range(2000)]
    assert (min(even), max(even)) == (100, 200)
    skewed = sorted(Lengths.parse("100~1000").draw(draw) for _ in range(20_000))
    assert skewed[10_000] == pytest.approx(100, rel=0.05)
    assert skewed[19_800] == pytest.approx(1000, rel=0.2)
    assert [str(Lengths.parse(text)) for text in ("5", "1-2", "1~2")] == ["5", "1-2", "1~2"]


@pytest.mark.parametrize("text", ["", "0", "-5", "9-3", "a", "1-2-3", "1.5"])
def test_what_is_no_length_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="length"):
        Lengths.parse(text)


@given(st.integers(1, 300), st.integers(1, 300), st.integers(), st.integers())
def test_equal_keys_share_a_beginning_and_other_keys_do_not(one: int, two: int, key: int, other: int) -> None:
    first, second = PASSAGES.get(one, key).split(), PASSAGES.get(two, key).split()
    assert (len(first), len(second)) == (one, two)
    if min(one, two) >= 4:
        assert first[: min(one, two)] == second[: min(one, two)]
    if key != other and one >= 4:
        assert PASSAGES.get(one, key) != PASSAGES.get(one, other)


def test_a_passage_may_be_longer_than_the_text_it_is_cut_from() -> None:
    assert len(PASSAGES.get(200_000, "long").split()) == 200_000
    assert PASSAGES.get(0, "none") == ""


def test_prompts_have_the_wanted_tokens_behind_a_shared_beginning() -> None:
    asker = Asker(DIALECT, seed=1)
    several = [
        prompts(asker.conversation(shape(shared_prefix_tokens=40, num_prefixes=2)))[0].split()
        for _ in range(40)
    ]
    assert {len(words) for words in several} == {20 + 20}
    beginnings = Counter(tuple(words[:20]) for words in several)
    assert len(beginnings) == 2
    assert len({tuple(words) for words in several}) == 40


def test_a_seed_repeats_its_prompts_and_another_shares_nothing_with_them() -> None:
    first, again, other = (
        [prompts(asker.conversation(shape(shared_prefix_tokens=40))) for _ in range(5)]
        for asker in (Asker(DIALECT, seed=1), Asker(DIALECT, seed=1), Asker(DIALECT, seed=2))
    )
    assert first == again
    assert first[0][0].split()[:4] != other[0][0].split()[:4]


def test_each_turn_sends_what_was_said_before() -> None:
    conversation = Asker(DIALECT, seed=1).conversation(shape(num_turns=3))
    (first,) = prompts(conversation)
    conversation.answered("an answer")
    second = prompts(conversation)
    assert second[:2] == [first, "an answer"]
    assert len(second[2].split()) == 25  # the template is counted once
    conversation.answered("another")
    ask = conversation.next_ask()
    assert not ask.keeps_text
    assert not conversation.has_next
    assert [m["role"] for m in json.loads(ask.body)["messages"]] == [
        "user",
        "assistant",
        "user",
        "assistant",
        "user",
    ]


def test_equal_segments_of_a_trace_are_equal_text() -> None:
    asker = Asker(DIALECT, seed=1)

    def replayed(index: int, segments: tuple[int, ...], num_tokens: int) -> list[str]:
        request = TrafficRequest(
            index=index,
            time_s=0.0,
            num_prompt_tokens=num_tokens,
            num_output_tokens=3,
            segments=segments,
            segment_tokens=20,
        )
        return prompts(asker.replayed(request))[0].split()

    one, two, three = replayed(0, (1, 2, 3), 60), replayed(1, (1, 2, 4), 70), replayed(2, (), 60)
    assert (len(one), len(two), len(three)) == (25, 30, 25)
    assert one[:20] == two[:20]
    assert one[20:24] != two[20:24]
    assert three[:4] != one[:4]


def test_a_request_says_only_what_the_server_understands() -> None:
    full = json.loads(DIALECT.body(["hello"], 7))
    assert full == {
        "model": "m",
        "messages": [{"role": "user", "content": "hello"}],
        "max_tokens": 7,
        "stream": True,
        "stream_options": {"include_usage": True},
        "ignore_eos": True,
        "temperature": 0,
    }
    plain = Dialect(
        model="m",
        endpoint="completions",
        ignore_eos=False,
        include_usage=False,
        greedy=False,
        length_field="max_completion_tokens",
    )
    assert json.loads(plain.body(["a", "b", "c"], 7)) == {
        "model": "m",
        "prompt": "a b c",
        "max_completion_tokens": 7,
        "stream": True,
    }
