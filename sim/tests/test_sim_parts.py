"""The small parts: virtual time, links, traffic."""

import pytest
from tandem_load.traffic import TrafficRequest, faster, mean_rate
from tandem_sim.event_loop import EventLoop
from tandem_sim.network import Links, NetworkTier
from tandem_sim.synthetic import MIXED, poisson


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
