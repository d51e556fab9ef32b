from __future__ import annotations

from prometheus_client import REGISTRY
from tandem_common.speed import SpeedFitter
from tandem_engine.api import StepCost
from tandem_worker.step_book import StepBook


def cost(number: int) -> StepCost:
    return StepCost(
        duration_ms=5.0 + number % 7, num_decode_sequences=1 + number % 7, decode_kv_tokens=100 + number
    )


def num_steps() -> float:
    value = REGISTRY.get_sample_value("tandem_worker_steps_total")
    assert value is not None
    return value


def test_speeds_are_those_of_a_fitter_that_is_told_of_each_step_at_once() -> None:
    book, fitter = StepBook(), SpeedFitter()
    for number in range(700):
        step = cost(number)
        book.add(step)
        fitter.observe(
            duration_ms=step.duration_ms,
            num_prefill_tokens=0,
            prefill_token_context=0,
            num_decode_sequences=step.num_decode_sequences,
            decode_kv_tokens=step.decode_kv_tokens,
        )
        if number % 100 == 0:
            assert book.speeds.decode == fitter.decode
    assert book.speeds.decode == fitter.decode is not None
    assert book.speeds.prefill is None


def test_metrics_count_every_step_when_the_speeds_are_asked_for_and_before_too_many_wait() -> None:
    book, before = StepBook(), num_steps()
    for number in range(3):
        book.add(cost(number))
    assert num_steps() == before
    assert book.speeds.decode is None
    assert num_steps() == before + 3
    for number in range(1000):
        book.add(cost(number))
    assert num_steps() >= before + 3 + 700
