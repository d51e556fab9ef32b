import pytest
from openai_server import DONE, chunked, text_event, usage_event
from openai_server import STREAM_END as LAST
from openai_server import STREAM_HEAD as HEAD
from tandem_load.exchange import Exchange
from tandem_load.failures import Failure
from tandem_load.load_task import LatencyTargets
from tandem_load.tally import Tally


def answered(*times_s: float, num_tokens: int | None = None) -> Exchange:
    """An answer with a token at each of these times."""
    exchange = Exchange()
    exchange.feed(HEAD, times_s[0])
    for time_s in times_s:
        exchange.feed(chunked(text_event("a")), time_s)
    usage = [] if num_tokens is None else [usage_event(100, num_tokens)]
    exchange.feed(chunked(*usage, DONE) + LAST, times_s[-1] + 1.0)
    assert exchange.failure is None
    return exchange


def test_latencies_count_from_when_a_request_was_to_be_sent() -> None:
    tally = Tally(LatencyTargets(), 10.0)
    tally.on_sent(2.0, 2.5, 1)  # half a second late
    tally.on_done(2.0, 100.0, answered(103.0, 104.0, 106.0, num_tokens=5))
    measured = tally.measured
    assert measured.lag.most == pytest.approx(0.5)
    assert measured.ttft.most == pytest.approx(1.0)
    assert measured.e2e.most == pytest.approx(4.0)
    assert measured.tpot.most == pytest.approx(3.0 / 4)
    assert (measured.answer_tokens.total, measured.num_answer_events) == (5, 3)
    assert measured.tokens_per_event == pytest.approx(5 / 3)


def test_a_request_belongs_to_the_window_in_which_it_was_to_be_sent() -> None:
    tally = Tally(LatencyTargets(), 10.0)
    for due_s in (-0.1, 0.0, 9.9, 10.0):
        tally.on_sent(due_s, due_s, 1)
        tally.on_gaps(due_s, [0.1, 0.0])
        tally.on_done(due_s, 0.0, answered(20.0))  # answered long after
    assert (tally.measured.num_sent, tally.measured.num_done) == (2, 2)
    assert tally.measured.itl.count == 4
    tally.on_text(5.0, 3)
    tally.on_text(10.5, 4)
    tally.on_text(-0.5, 5)
    assert (tally.measured.num_window_events, tally.measured.num_cpu_events) == (3, 7)


@pytest.mark.parametrize(
    ("targets", "missed"),
    [
        (LatencyTargets(), []),
        (LatencyTargets(ttft_s=1.0, tpot_s=1.0, itl_s=1.5, e2e_s=3.0), []),
        (LatencyTargets(ttft_s=0.9), ["ttft"]),
        (LatencyTargets(tpot_s=0.9), ["tpot"]),
        (LatencyTargets(itl_s=1.4), ["itl"]),
        (LatencyTargets(e2e_s=2.9, ttft_s=0.5), ["ttft", "e2e"]),
    ],
)
def test_a_request_is_good_when_it_meets_all_targets(targets: LatencyTargets, missed: list[str]) -> None:
    tally = Tally(targets, 10.0)
    tally.on_sent(0.0, 0.0, 1)
    tally.on_done(0.0, 0.0, answered(1.0, 2.5, 3.0))
    assert tally.measured.num_good == (not missed)
    assert [name for name, count in tally.measured.missed.items() if count] == missed


def test_failures_count_as_sent_and_by_kind() -> None:
    tally = Tally(LatencyTargets(), 10.0)
    for after_s in (3.0, 1.0, None):
        tally.on_sent(1.0, 1.0, 1)
        tally.on_failed(1.0, 1.1, Failure(kind="HTTP 429", message="busy", retry_after_s=after_s))
    tally.on_failed(-1.0, 1.1, Failure(kind="HTTP 500", message="in the warm-up"))
    count = tally.measured.failures["HTTP 429"]
    assert list(tally.measured.failures) == ["HTTP 429"]
    assert (count.count, count.least_retry_after_s, count.most_retry_after_s) == (3, 1.0, 3.0)
    assert (tally.measured.num_sent, tally.measured.num_failed, tally.measured.num_good) == (3, 3, 0)


def test_memory_does_not_grow_with_time_and_nothing_is_lost() -> None:
    tally = Tally(LatencyTargets(), None)
    for second in range(50_000):
        tally.on_sent(float(second), float(second), 1)
        tally.on_text(float(second), 2)
    assert len(tally.measured.slices) <= 240
    assert sum(piece.num_sent for piece in tally.measured.slices) == 50_000
    assert sum(piece.num_text_events for piece in tally.measured.slices) == 100_000


def test_the_window_may_end_early() -> None:
    tally = Tally(LatencyTargets(), None)
    tally.close(4.0)
    tally.close(9.0)
    assert tally.measured.window_s == 4.0
    assert not tally.counts(4.0)
