"""Messages that are gathered while the event loop is behind: fewer calls, the same tokens in the same order."""

from __future__ import annotations

import asyncio

from hypothesis import given
from hypothesis import strategies as st
from tandem.v1 import decode_pb2 as pb
from tandem.v1 import generation_pb2, router_pb2
from tandem_frontend.loop_pressure import LoopPressure, ThreadTime
from tandem_frontend.sessions import Session
from tandem_frontend.step_rows import GatheredRows, rows_of

MESSAGES = st.lists(
    st.tuples(
        st.lists(
            st.tuples(st.integers(1, 4), st.lists(st.integers(0, 99), min_size=1, max_size=3)), max_size=4
        ),
        st.lists(st.integers(1, 4), max_size=2),
    ),
    max_size=6,
)


def message(rows, finished, *, logprobs=False):
    return pb.SessionResponse(
        stream_ids=[stream_id for stream_id, _ in rows],
        token_counts=() if all(len(ids) == 1 for _, ids in rows) else [len(ids) for _, ids in rows],
        token_ids=[token_id for _, ids in rows for token_id in ids],
        logprobs=[
            pb.StreamLogprobs(
                stream_id=stream_id,
                tokens=[generation_pb2.TokenLogprobs(logprob=-token_id) for token_id in ids],
            )
            for stream_id, ids in rows
            if logprobs
        ],
        events=[pb.StreamEvent(stream_id=stream_id, finished=pb.StreamFinished()) for stream_id in finished],
    )


def one_by_one(messages):
    """What each stream sees, without merging: its tokens, with None for an event."""
    seen = {}
    for response in messages:
        for stream_id, token_ids in rows_of(response):
            seen.setdefault(stream_id, []).extend(token_ids)
        for event in response.events:
            seen.setdefault(event.stream_id, []).append(None)
    return seen


@given(MESSAGES, st.integers(1, 4))
def test_gathered_messages_say_the_same_to_every_stream(drawn, num_gathered):
    messages = [message(rows, finished) for rows, finished in drawn]
    gathered, seen = GatheredRows(), {}

    def hand_on(stream_id, row):
        seen.setdefault(stream_id, []).extend(row.token_ids)

    def take():
        rows = gathered.take()
        assert all(row.token_ids for row in rows.values())
        for stream_id, row in rows.items():
            hand_on(stream_id, row)

    for response in messages:
        for row, event in gathered.add(response):
            if row is not None:
                hand_on(event.stream_id, row)
            seen.setdefault(event.stream_id, []).append(None)
        if gathered.num_messages >= num_gathered:
            take()
    take()
    assert seen == one_by_one(messages)


def test_log_probabilities_stay_with_their_tokens():
    gathered = GatheredRows()
    for rows in ([(1, [5])], [(1, [6, 7])]):
        assert gathered.add(message(rows, [], logprobs=True)) == []
    (row,) = gathered.take().values()
    assert [(i, -e.logprob) for i, e in zip(row.token_ids, row.logprobs, strict=True)] == [
        (5, 5),
        (6, 6),
        (7, 7),
    ]


def test_a_loop_is_behind_until_it_has_clearly_caught_up():
    pressure = LoopPressure()
    seen = []
    for used_s in (0.5, 0.8, 0.95, 0.8, 0.7, 0.8):
        pressure.observe(ThreadTime(used_s / 2, used_s / 2), 1.0)
        seen.append(pressure.behind)
    assert seen == [False, False, True, True, False, False]


def test_a_loop_that_keeps_up_by_merging_only_goes_on_merging():
    pressure = LoopPressure()
    pressure.num_handed_on = 100_000
    pressure.observe(ThreadTime(0.5, 0.1), 1.0)  # 5 µs a row
    pressure.observe(ThreadTime(0.95), 1.0)
    for num_merged, behind in ((180_000, True), (100_000, True), (50_000, False)):
        pressure.num_handed_on, pressure.num_merged = 1_000, num_merged
        pressure.observe(ThreadTime(0.35), 1.0)
        assert pressure.behind is behind
    pressure.observe(ThreadTime(0.35), 1.0)
    assert not pressure.behind


class Sink:
    def __init__(self):
        self.calls = []

    def on_tokens(self, token_ids, logprobs):
        self.calls.append(list(token_ids))

    def on_started(self, started):
        pass

    def on_finished(self, finished):
        self.calls.append("finished")

    def on_error(self, error, *, retryable):
        self.calls.append("error")


async def test_a_session_merges_only_while_the_loop_is_behind():
    pressure = LoopPressure()
    session = Session(router_pb2.WorkerRef(worker_id="w", epoch=1, address="127.0.0.1:1"), "f", pressure)
    sink = Sink()
    stream_id = session.submit(generation_pb2.Generation(), None, 1000, sink)
    for token_id in (1, 2):
        session._receive(message([(stream_id, [token_id])], []))
    assert sink.calls == [[1], [2]]
    pressure.behind = True
    for token_id in (3, 4):
        session._receive(message([(stream_id, [token_id])], []))
    assert sink.calls == [[1], [2]]
    pressure.behind = False
    session._receive(message([(stream_id, [5])], []))
    assert sink.calls == [[1], [2]], "nothing overtakes what was gathered"
    async with asyncio.timeout(5):
        while len(sink.calls) < 3:
            await asyncio.sleep(0.005)
    pressure.behind = True
    session._receive(message([(stream_id, [6])], []))
    session._receive(message([(stream_id, [7])], [stream_id]))
    assert sink.calls == [[1], [2], [3, 4, 5], [6, 7], "finished"], "an event waits for nobody"
