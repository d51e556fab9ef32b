from __future__ import annotations

import pytest
from tandem_router.cost import followers_ms
from tandem_router.crowding import PromptTraffic


def steady(rate_per_s: float, work_ms: float, seconds: float = 100.0) -> PromptTraffic:
    traffic = PromptTraffic()
    for number in range(round(rate_per_s * seconds)):
        traffic.add(number / rate_per_s, work_ms)
    return traffic


def test_nothing_was_routed_so_nothing_is_expected() -> None:
    assert PromptTraffic().crowding_per_ms(5.0, 4) == 0.0


def test_the_rate_of_each_worker_is_divided_by_what_it_has_left() -> None:
    traffic = steady(8.0, 250.0)
    # Two prompts a second on each of four workers, half of whose time they take.
    assert traffic.crowding_per_ms(100.0, 4) == pytest.approx(0.002 / (1 - 0.5), rel=0.05)


def test_an_overloaded_worker_does_not_cost_without_bound() -> None:
    assert steady(8.0, 5000.0).crowding_per_ms(100.0, 4) == pytest.approx(0.002 / 0.1, rel=0.05)


def test_what_is_past_fades() -> None:
    traffic = steady(8.0, 250.0)
    assert traffic.crowding_per_ms(200.0, 4) < 0.001 * traffic.crowding_per_ms(100.0, 4) + 1e-6


def test_the_first_second_is_not_taken_for_the_rate_of_ever() -> None:
    traffic = PromptTraffic()
    traffic.add(0.0, 100.0)
    assert traffic.crowding_per_ms(0.001, 1) < 0.0012


def test_prompts_of_unknown_duration_count_at_the_mean_of_the_others() -> None:
    known, mixed = steady(8.0, 250.0), PromptTraffic()
    for number in range(800):
        mixed.add(number / 8.0, 250.0 if number % 2 else None)
    assert mixed.crowding_per_ms(100.0, 4) == pytest.approx(known.crowding_per_ms(100.0, 4), rel=0.02)


def test_a_long_prompt_minds_a_slow_worker_more_than_a_short_one_does() -> None:
    def dearer(own: float) -> float:
        """By how much the slow worker is dearer than the fast one, per millisecond of the prompt."""
        return (followers_ms(0.0, 2 * own, 0.002) - followers_ms(0.0, own, 0.002)) / own

    assert dearer(2000.0) == pytest.approx(20 * dearer(100.0))
