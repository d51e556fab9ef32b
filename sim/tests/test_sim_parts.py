"""The small parts: virtual time, links, traffic, traces, measurement."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tandem_sim.event_loop import EventLoop
from tandem_sim.measurement import LogHistogram, percentile
from tandem_sim.network import Links, NetworkTier
from tandem_sim.synthetic import MIXED, poisson
from tandem_sim.traces import TraceError, load_trace
from tandem_sim.traffic import TrafficRequest, faster, mean_rate


def test_callbacks_run_in_order_of_time_and_equal_times_in_order_of_asking() -> None:
    loop, ran = EventLoop(), []
    loop.at(2.0, lambda: ran.append("late"))
    loop.at(1.0, lambda: ran.append("first"))
    loop.at(1.0, lambda: ran.append("second"))
    loop.run(lambda: False, limit_s=10.0)
    assert ran == ["first", "second", "late"]
    assert loop.now_s == 2.0


def test_the_past_is_now_and_the_limit_ends_a_run_that_never_would() -> None:
    loop, times = EventLoop(), []
    loop.at(1.0, lambda: loop.at(0.0, lambda: times.append(loop.now_s)))
    loop.every(1.0, lambda: None)
    loop.run(lambda: False, limit_s=5.5)
    assert times == [1.0]
    assert loop.now_s == 5.5


def test_transfers_share_the_way_out_and_the_way_in() -> None:
    links = Links()
    tier = NetworkTier(name="test", bytes_per_s=100.0, latency_s=0.5)
    assert links.send("a", "b", 100, tier, 0.0) == 1.5
    assert links.send("a", "c", 100, tier, 0.0) == 2.5  # after the first has left a
    assert links.send("d", "b", 100, tier, 0.0) == 2.5  # after the first has reached b
    assert links.send("e", "f", 100, tier, 0.0) == 1.5


def test_equal_segments_are_equal_tokens_and_the_rest_is_shared_with_nobody() -> None:
    first = TrafficRequest(
        index=0, time_s=0, num_prompt_tokens=6, num_output_tokens=1, segments=(7, 8), segment_tokens=2
    )
    second = TrafficRequest(
        index=1, time_s=0, num_prompt_tokens=3, num_output_tokens=1, segments=(7, 9), segment_tokens=2
    )
    assert first.token_ids() == [7, 7, 8, 8, first.own_token, first.own_token]
    assert second.token_ids() == [7, 7, 9]
    assert first.own_token != second.own_token


def test_faster_traffic_arrives_faster_in_the_same_order() -> None:
    requests = poisson(MIXED, rate=10, num_requests=2000, seed=1)
    assert mean_rate(requests) == pytest.approx(10, rel=0.1)
    twice = faster(requests, 2.0)
    assert mean_rate(twice) == pytest.approx(2 * mean_rate(requests))
    assert [request.index for request in twice] == list(range(2000))
    share = sum(request.label == "long" for request in requests) / len(requests)
    assert 0.003 < share < 0.03
    with pytest.raises(ValueError, match="above 0"):
        faster(requests, 0.0)


def test_a_mooncake_trace_is_read_from_its_first_request_on(tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl"
    path.write_text(
        '{"timestamp": 1000, "input_length": 700, "output_length": 5, "hash_ids": [0, 1]}\n'
        '{"timestamp": 1500, "input_length": 30, "output_length": 0, "hash_ids": [2]}\n'
    )
    first, second = load_trace(path)
    assert (first.time_s, first.num_prompt_tokens, first.segments) == (0.0, 700, (0, 1))
    assert first.token_ids()[510:514] == [0, 0, 1, 1]
    assert (second.time_s, second.num_output_tokens) == (0.5, 1)
    assert len(load_trace(path, 1)) == 1


def test_an_azure_trace_is_read_with_its_seven_digits(tmp_path: Path) -> None:
    path = tmp_path / "trace.csv"
    path.write_text(
        "TIMESTAMP,ContextTokens,GeneratedTokens\n"
        "2023-11-16 18:15:46.6805900,374,44\n2023-11-16 18:15:47.9305900,396,109\n"
    )
    first, second = load_trace(path)
    assert (first.num_prompt_tokens, first.num_output_tokens) == (374, 44)
    assert second.time_s == pytest.approx(1.25)


@pytest.mark.parametrize(
    ("name", "text", "wrong"),
    [
        ("a.jsonl", '{"timestamp": 0}\n', "line 1"),
        ("a.csv", "TIMESTAMP,ContextTokens,GeneratedTokens\nnever,1,2\n", "line 2"),
        ("a.jsonl", "", "no requests"),
        ("a.csv.gz", "not gzip", "cannot read"),
    ],
)
def test_a_bad_trace_is_refused_with_what_is_wrong(tmp_path: Path, name: str, text: str, wrong: str) -> None:
    path = tmp_path / name
    path.write_text(text)
    with pytest.raises(TraceError, match=wrong):
        load_trace(path)


def test_a_trace_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TraceError, match="cannot read"):
        load_trace(tmp_path / "none.jsonl")


@given(st.lists(st.floats(1e-6, 1e3), min_size=1, max_size=200), st.sampled_from([0.5, 0.9, 0.99, 1.0]))
def test_percentiles_of_a_histogram_are_those_of_its_values_within_one_percent(
    values: list[float], share: float
) -> None:
    histogram = LogHistogram()
    for value in values:
        histogram.add(value)
    exact = percentile(values, share)
    assert exact is not None
    assert histogram.percentile(share) == pytest.approx(exact, rel=0.0101)


def test_there_is_no_percentile_of_nothing() -> None:
    assert LogHistogram().percentile(0.5) is None
    assert percentile([], 0.5) is None
