"""Conversations that fit the context."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from tandem_cli.chat_session import newest_that_fit, printable
from tandem_cli.commands.chat import describe_speed
from tandem_client import ChatMessage


def turns(*contents: str) -> list[ChatMessage]:
    return [ChatMessage("user" if i % 2 == 0 else "assistant", text) for i, text in enumerate(contents)]


def words(messages) -> int:
    return sum(len(message.content.split()) for message in messages)


def test_a_conversation_that_fits_is_kept():
    conversation = turns("a b", "c", "d")
    assert newest_that_fit(conversation, words, 4) == conversation


def test_the_oldest_question_and_its_answer_go_first():
    conversation = turns("a b", "c", "d", "e", "f")
    assert newest_that_fit(conversation, words, 5) == conversation[2:]
    assert newest_that_fit(conversation, words, 2) == conversation[4:]


@given(
    st.lists(st.text("ab ", max_size=9), min_size=1, max_size=15).filter(lambda x: len(x) % 2),
    st.integers(0, 40),
)
def test_what_is_kept_begins_and_ends_with_the_user_and_fits_if_it_can(contents, limit):
    conversation = turns(*contents)
    kept = newest_that_fit(conversation, words, limit)
    assert kept[-1] is conversation[-1]
    assert kept[0].role == "user"
    assert words(kept) <= limit or len(kept) == 1


def test_a_model_cannot_take_over_the_terminal():
    assert printable("a\x1b[2J\x07b\r\n\tc\x9b31m é") == "a[2Jb\n\tc31m é"


def test_speed_is_counted_from_the_first_token():
    assert describe_speed(11, 1.0, 2.0) == "11 tokens, 10.0 tokens/s, first after 1.00 s"
    assert describe_speed(1, 1.0, 1.0) == "1 tokens, first after 1.00 s"
    assert describe_speed(0, None, 1.0) == "no tokens"
