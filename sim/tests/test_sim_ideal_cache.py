"""The bound on hit rates."""

from tandem_load.traffic import TrafficRequest
from tandem_sim.ideal_cache import shared_cache_hit_rate


def request(index: int, *segments: int) -> TrafficRequest:
    return TrafficRequest(
        index=index,
        time_s=index,
        num_prompt_tokens=10 * len(segments) + 5,
        num_output_tokens=1,
        segments=(*segments, 100 + index),
        segment_tokens=10,
    )


def test_what_came_before_is_found_from_the_root_on() -> None:
    requests = [request(0, 1, 2), request(1, 1, 2, 3), request(2, 4, 2)]
    assert shared_cache_hit_rate(requests) == 20 / (25 + 35 + 25)


def test_a_full_cache_forgets_what_was_used_longest_ago() -> None:
    requests = [request(0, 1, 2), request(1, 5, 6), request(2, 1, 2)]
    assert shared_cache_hit_rate(requests, 4) == 20 / 75
    assert shared_cache_hit_rate(requests, 3) == 10 / 75  # of 1 and 2, the deeper one went first
    assert shared_cache_hit_rate(requests, 2) == 0


def test_the_last_token_is_always_computed() -> None:
    whole = TrafficRequest(
        index=0, time_s=0, num_prompt_tokens=20, num_output_tokens=1, segments=(1, 2), segment_tokens=10
    )
    assert shared_cache_hit_rate([whole, whole]) == 10 / 40


def test_nothing_is_found_in_nothing() -> None:
    assert shared_cache_hit_rate([]) == 0
