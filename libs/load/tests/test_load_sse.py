import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tandem_load import sse
from tandem_load.sse import EventReader, MalformedStream

STREAM = (
    b": hello\n\ndata: one\n\nevent: x\ndata: two\nid: 3\n\ndata:three\r\n\r\n: keep-alive\r\n\r\n"
    b"data: a\ndata: b\n\n\ndata: [DONE]\n\n"
)
EVENTS = [b"one", b"two", b"three", b"a\nb", b"[DONE]"]


@given(st.lists(st.integers(0, len(STREAM)), max_size=20))
def test_events_are_the_same_however_the_bytes_are_cut(cuts: list[int]) -> None:
    reader, found = EventReader(), []
    places = [0, *sorted(cuts), len(STREAM)]
    for start, end in itertools.pairwise(places):
        found += reader.feed(STREAM[start:end])
    assert found == EVENTS
    assert reader.is_between_events


def test_an_event_without_end_is_refused_before_memory_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sse, "_MAX_EVENT_BYTES", 100)
    reader = EventReader()
    reader.feed(b"data: " + b"x" * 50)
    with pytest.raises(MalformedStream, match="longer than 100"):
        reader.feed(b"x" * 50)
