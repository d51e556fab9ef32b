"""What a session says in one message is what was added to it, in order."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from tandem.v1 import decode_pb2
from tandem_decode.outbox import Outbox
from tandem_engine.api import TokenLogprobs

ROWS = st.lists(st.tuples(st.integers(1, 3), st.lists(st.integers(0, 99), min_size=1, max_size=3)))


def rows_in(message: decode_pb2.SessionResponse) -> list[tuple[int, list[int]]]:
    """Rows as a frontend reads them: one token each unless there are counts."""
    token_ids = iter(message.token_ids)
    counts = message.token_counts or [1] * len(message.stream_ids)
    rows = [
        (stream_id, [next(token_ids) for _ in range(count)])
        for stream_id, count in zip(message.stream_ids, counts, strict=True)
    ]
    assert next(token_ids, None) is None
    return rows


@given(ROWS)
def test_rows_arrive_as_they_were_added_however_many_tokens_each_has(
    rows: list[tuple[int, list[int]]],
) -> None:
    outbox = Outbox()
    for stream_id, token_ids in rows:
        if len(token_ids) == 1 and stream_id != 3:
            outbox.add_plain((stream_id,), token_ids)
        else:
            outbox.add_tokens(stream_id, token_ids, None)
    assert bool(outbox) is bool(rows)
    assert rows_in(outbox.take()) == rows
    assert not outbox
    assert not outbox.take().stream_ids


def test_counts_are_left_out_where_every_row_has_one_token() -> None:
    outbox = Outbox()
    outbox.add_plain([1], [5])
    outbox.add_tokens(2, [6], None)
    assert not outbox.take().token_counts
    outbox.add_tokens(1, [], [])  # nothing of it may be left in the next message
    outbox.take()
    outbox.add_plain([1], [5])
    assert not outbox.take().token_counts


def test_log_probabilities_come_by_stream() -> None:
    outbox = Outbox()
    outbox.add_tokens(4, [7], [TokenLogprobs(logprob=-1.0, top_token_ids=(7, 8), top_logprobs=(-1.0, -2.0))])
    outbox.add_tokens(4, [9], [TokenLogprobs(logprob=-3.0)])
    (column,) = outbox.take().logprobs
    assert (column.stream_id, [entry.logprob for entry in column.tokens]) == (4, [-1.0, -3.0])


def test_what_waits_has_a_size_and_an_age() -> None:
    outbox = Outbox()
    assert (outbox.num_bytes, outbox.waiting_s(5.0)) == (0, 0.0)
    outbox.add_plain([1], [5])
    small = outbox.num_bytes
    assert outbox.waiting_s(6.0) == 0.0  # from now on it waits
    outbox.add_event(decode_pb2.StreamEvent(stream_id=1))
    assert outbox.num_bytes > small > 0
    assert outbox.waiting_s(8.5) == 2.5
    outbox.take()
    outbox.add_plain([1], [5])
    assert (outbox.num_bytes, outbox.waiting_s(9.0)) == (small, 0.0)
