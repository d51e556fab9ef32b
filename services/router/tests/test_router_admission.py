from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from router_fakes import busy, decode_worker, make_query, make_worker, prefill_worker, queued, view_of
from tandem_common.generation import RequestClass
from tandem_router.admission import (
    AdmissionRules,
    DrainRate,
    Judgement,
    PredictionError,
    Verdict,
    retry_after_ms,
)
from tandem_router.policies import LeastLoaded, Predictive
from tandem_router.query import ROUTE_LIMITS, Decision, Query
from tandem_router.view import WorkerRole, WorkerView

RULES = AdmissionRules(max_worker_queue_ms=500)


def decide(query: Query, *workers: WorkerView) -> Decision:
    return Predictive().choose(query, view_of(*workers), ROUTE_LIMITS)


def judge(query: Query, *workers: WorkerView, **state: Any) -> Judgement:
    defaults: dict[str, Any] = {"is_free": True, "drain_ms": 0.0, "error_factor": 1.0}
    return RULES.judge(query, decide(query, *workers), **(defaults | state))


def far_behind(tokens: int = 20_000) -> tuple[WorkerView, ...]:
    return (prefill_worker("p", load=queued(tokens, 5)), decode_worker("d", load=busy(40)))


def test_a_request_starts_when_a_worker_can_take_it_and_nobody_goes_first() -> None:
    idle = (prefill_worker("p"), decode_worker("d"))
    assert judge(make_query(1000), *idle).verdict is Verdict.START
    assert judge(make_query(1000), *idle, is_free=False).verdict is Verdict.WAIT


def test_a_request_waits_while_the_workers_are_too_far_behind() -> None:
    judged = judge(make_query(4000), *far_behind())
    assert judged.verdict is Verdict.WAIT
    assert judged.wait_ms > 0


def test_a_request_that_would_miss_its_deadline_is_refused_with_the_time_to_come_back() -> None:
    query = make_query(4000, ttft_deadline_ms=300)
    judged = judge(query, *far_behind())
    assert judged.verdict is Verdict.REFUSE
    terms = decide(query, *far_behind()).chosen.terms
    ahead = terms["queue"] + terms["room"]
    assert ahead - 1 <= judged.retry_after_ms <= 1.25 * ahead + 1
    corrected = judge(query, *far_behind(), typical_error=0.5)
    assert ahead / 2 - 1 <= corrected.retry_after_ms <= 1.25 * ahead / 2 + 1
    later = judge(query, *far_behind(), drain_ms=5000.0)
    assert ahead + 5000 - 1 <= later.retry_after_ms <= 1.25 * (ahead + 5000) + 1
    assert judge(query, prefill_worker("p"), decode_worker("d")).verdict is Verdict.REFUSE
    assert judge(make_query(1000, ttft_deadline_ms=300), prefill_worker("p"), decode_worker("d")).verdict is (
        Verdict.START
    )


def test_predictions_that_were_too_low_lately_refuse_earlier() -> None:
    query = make_query(1000, ttft_deadline_ms=300)
    idle = (prefill_worker("p"), decode_worker("d"))
    assert judge(query, *idle, error_factor=5.0).verdict is Verdict.REFUSE


def test_batch_prompts_are_not_computed_beside_sequences_that_decode_elsewhere_to_be_spared() -> None:
    batch = make_query(400, request_class=RequestClass.BATCH)
    rules = AdmissionRules(interactive_itl_ms=30.0)
    for load, can_start in ((busy(5), False), (busy(0), True)):
        decode = decode_worker("d", load=load)
        local = decide(batch, decode)
        assert local.chosen.prefill is None
        assert rules.can_start(batch, local) is can_start
        # An aggregated worker has no other place for it.
        assert rules.can_start(batch, decide(batch, make_worker("b", WorkerRole.BOTH, load=load)))
        assert rules.can_start(make_query(400), local)


def test_batch_work_leaves_room_for_interactive_work() -> None:
    workers = (prefill_worker("p", load=queued(4000)), decode_worker("d", load=busy(5)))
    batch = make_query(6000, request_class=RequestClass.BATCH)
    assert not RULES.can_start(batch, decide(batch, *workers))
    assert RULES.can_start(batch, decide(batch, *workers), starved=True)
    assert RULES.can_start(make_query(6000), decide(make_query(6000), *workers))
    full = (prefill_worker("p"), decode_worker("d", load=busy(60, 7000, num_used_blocks=0)))
    slow_steps = make_query(100, request_class=RequestClass.BATCH)
    assert not AdmissionRules(interactive_itl_ms=20).can_start(slow_steps, decide(slow_steps, *full))


def test_without_predictions_in_milliseconds_nothing_waits_or_is_refused() -> None:
    query = make_query(4000, ttft_deadline_ms=1)
    decision = LeastLoaded().choose(query, view_of(*far_behind()), ROUTE_LIMITS)
    judged = RULES.judge(query, decision, is_free=True, drain_ms=0.0, error_factor=1.0)
    assert judged.verdict is Verdict.START


@pytest.mark.parametrize(("num_queued", "verdict"), [(8 * 512, Verdict.START), (8 * 512 + 1, Verdict.WAIT)])
def test_while_nobody_knows_how_long_a_step_takes_a_worker_gets_a_few_steps_of_prompts(
    num_queued: int, verdict: Verdict
) -> None:
    query = make_query(4000, ttft_deadline_ms=1)
    worker = make_worker(
        "b", WorkerRole.BOTH, load=queued(num_queued), prefill_speed=None, max_step_tokens=512
    )
    decision = decide(query, worker)
    assert decision.is_blind
    judged = RULES.judge(query, decision, is_free=True, drain_ms=0.0, error_factor=1.0)
    assert (judged.verdict, judged.wait_ms) == (verdict, 0.0)


def test_those_refused_together_come_back_apart_but_the_same_one_at_the_same_time() -> None:
    times = [retry_after_ms(f"req-{i}", 1000) for i in range(100)]
    assert len(set(times)) > 50
    assert min(times) >= 1000
    assert max(times) <= 1250
    assert retry_after_ms("req-1", 1000) == times[1]


def test_the_factor_is_the_quantile_of_what_was_seen() -> None:
    error = PredictionError(quantile=0.9)
    assert error.factor == 1.0
    for i in range(100):
        assert error.observe(100.0, 100.0 + i) == pytest.approx(1 + i / 100)
    assert error.observe(0.0, 100.0) is None
    assert error.factor == pytest.approx(1.9, abs=0.02)


@given(st.lists(st.tuples(st.floats(), st.floats()), max_size=60))
def test_no_observation_breaks_the_window(samples: list[tuple[float, float]]) -> None:
    error = PredictionError(quantile=0.9, window=8)
    for predicted, observed in samples:
        error.observe(predicted, observed)
        error.check_integrity()
    assert 0.1 <= error.factor <= 100


def test_the_drain_rate_moves_from_the_prior_to_what_was_started_while_others_waited() -> None:
    rate = DrainRate()
    assert rate.drain_ms(1000, prior_tokens_per_ms=10.0) == pytest.approx(100)
    rate.observe(0.0, 0, backlog=True)
    for i in range(1, 200):
        rate.observe(i * 0.1, 200, backlog=True)  # 2 tokens per millisecond
    assert rate.drain_ms(1000, prior_tokens_per_ms=2.0) == pytest.approx(500, rel=0.05)
    assert rate.drain_ms(1000, prior_tokens_per_ms=10.0) == pytest.approx(500, rel=0.6)
    assert rate.drain_ms(0, prior_tokens_per_ms=1.0) == 0
