"""Stop strings, whatever the pieces in which a text arrives."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from tandem.v1 import generation_pb2 as pb
from tandem_frontend.detokenizer import Detokenizer
from tandem_frontend.stops import StopMatcher
from tandem_frontend.text_stream import Delta, TextStream
from tandem_frontend.token_bytes import TokenBytes

letters = st.text("ab", max_size=12)
stop_strings = st.lists(st.text("abc", min_size=1, max_size=4), max_size=4)


def reference(text: str, stops: list[str]) -> tuple[str, str | None]:
    """Character by character: the first end wins, then the longest."""
    for end in range(1, len(text) + 1):
        found = [stop for stop in stops if text[:end].endswith(stop)]
        if found:
            longest = max(found, key=len)
            return text[: end - len(longest)], longest
    return text, None


@given(st.lists(letters, max_size=12), stop_strings)
def test_the_result_does_not_depend_on_the_pieces(pieces, stops):
    matcher = StopMatcher(stops)
    shown = "".join([matcher.add(piece) for piece in pieces] + [matcher.finish()])
    assert (shown, matcher.matched) == reference("".join(pieces), stops)


@given(st.lists(letters, max_size=12), stop_strings)
def test_no_more_is_held_back_than_could_be_a_stop_string(pieces, stops):
    matcher = StopMatcher(stops)
    shown = ""
    for piece in pieces:
        shown += matcher.add(piece)
        if matcher.matched is None:
            held = matcher._held
            assert len(held) < max((len(stop) for stop in stops), default=1)
            assert not held or any(stop.startswith(held) for stop in stops)


class Kept:
    def __init__(self) -> None:
        self.deltas: list[Delta] = []

    def on_delta(self, delta: Delta) -> None:
        self.deltas.append(delta)

    @property
    def text(self) -> str:
        return "".join(delta.text for delta in self.deltas)


# One token per letter, and one byte of a snowman each.
TABLE = TokenBytes(
    text=[*(bytes([byte]) for byte in b"abcdef"), b"\xe2", b"\x98", b"\x83"],
    shown=[b""] * 9,
    strips_leading_space=False,
)


def test_tokens_after_a_stop_string_are_dropped_and_the_one_that_completes_it_counts():
    sink = Kept()
    stream = TextStream(Detokenizer(TABLE), ["cd"], sink)
    entries = [pb.TokenLogprobs(logprob=-i) for i in range(6)]
    assert stream.accept([0, 1], entries[:2])
    assert not stream.accept([2, 3, 4, 5], entries[2:])
    stream.finish()
    assert (sink.text, stream.stop, stream.num_tokens) == ("ab", "cd", 4)
    assert [t for delta in sink.deltas for t in delta.token_ids] == [0, 1, 2, 3]
    assert [e.logprob for delta in sink.deltas for e in delta.logprobs] == [0, -1, -2, -3]


def test_a_stop_string_within_the_first_min_tokens_does_not_count():
    sink = Kept()
    stream = TextStream(Detokenizer(TABLE), ["b"], sink, min_tokens=3)
    assert stream.accept([0, 1, 2], ())
    assert not stream.accept([0, 1, 2], ())
    assert sink.text == "abca"


def test_what_was_held_back_comes_with_the_end():
    sink = Kept()
    stream = TextStream(Detokenizer(TABLE), ["bx"], sink)
    stream.accept([0, 1, 6], ())
    assert sink.text == "a"
    stream.finish()
    assert sink.text == "ab\ufffd"


def test_a_stop_string_may_end_inside_a_character_that_took_several_tokens():
    sink = Kept()
    stream = TextStream(Detokenizer(TABLE), ["☃"], sink)
    assert stream.accept([0, 6], ())
    assert stream.accept([7], ())
    assert not stream.accept([8, 0], ())
    assert (sink.text, stream.stop) == ("a", "☃")
