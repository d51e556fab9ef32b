from __future__ import annotations

import dataclasses
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tandem_common.speed import DecodeSpeed, PrefillSpeed
from tandem_planner.observations import Observations, Traffic, Workers
from tandem_planner.plan import Proposal, plan
from tandem_planner.split import Split
from tandem_planner.targets import Targets

TARGETS = Targets(ttft_ms=500.0, itl_ms=50.0, percentile=0.95)
PREFILL = PrefillSpeed(a_ms=10.0, b_ms=0.1, c_ms=0.0, num_samples=500)
DECODE = DecodeSpeed(a_ms=10.0, b_ms=0.5, c_ms=1e-4, num_samples=500)


def traffic(
    rate: float, *, both_rate: float = 0.0, prompt_tokens: float = 900.0, output_tokens: float = 100.0
) -> Traffic:
    """Steady traffic of one kind of request, as the planner would see it."""
    total = rate + both_rate
    return Traffic(
        observed_s=60.0,
        split_rate=rate,
        both_rate=both_rate,
        mean_rate=total,
        num_decoding=total,
        num_decoding_samples=100,
        sequence_tokens=prompt_tokens + output_tokens / 2,
        token_rate=output_tokens * total,
    )


def observations(split: Split, seen: Traffic, **workers: object) -> Observations:
    sizes: dict[str, object] = {
        "prefill_speed": PREFILL,
        "decode_speed": DECODE,
        "max_step_tokens": 2048,
        "max_sequences": 64,
        "kv_tokens": 200_000,
    }
    return Observations(model="m", workers=Workers(split=split, **{**sizes, **workers}), traffic=seen)  # type: ignore[arg-type]


def smallest(proposal: Proposal) -> Split:
    assert proposal.smallest is not None
    return proposal.smallest


def test_a_split_that_meets_the_targets_stays_and_what_is_too_much_is_told() -> None:
    proposal = plan(observations(Split(num_prefill=3, num_decode=3), traffic(1.0)), TARGETS)
    assert proposal.confident
    assert proposal.desired == proposal.current
    assert smallest(proposal) == Split(num_prefill=1, num_decode=1)
    assert "meet TTFT 500 ms and ITL 50 ms for 95 % of requests" in proposal.reason
    assert "the smallest that would: 1 prefill + 1 decode" in proposal.reason


def test_too_many_prompts_move_a_worker_to_prefill() -> None:
    proposal = plan(observations(Split(num_prefill=1, num_decode=3), traffic(9.5)), TARGETS)
    assert proposal.desired == Split(num_prefill=2, num_decode=2)
    assert proposal.figures["prefill_utilisation"] == pytest.approx(0.95, rel=0.01)
    assert proposal.figures["desired_ttft_ms"] <= 500.0 < proposal.figures["current_ttft_ms"]
    assert "miss" in proposal.reason
    assert "2 prefill + 2 decode meets them" in proposal.reason


def test_too_many_sequences_move_a_worker_to_decode() -> None:
    load = traffic(5.0, prompt_tokens=100.0, output_tokens=500.0)
    proposal = plan(observations(Split(num_prefill=3, num_decode=1), load), TARGETS)
    assert proposal.desired.num_decode > 1
    assert proposal.desired.total == 4
    assert proposal.figures["desired_itl_ms"] <= 50.0


def test_when_nothing_that_exists_is_enough_the_nearest_split_and_the_needed_total_are_told() -> None:
    proposal = plan(observations(Split(num_prefill=1, num_decode=3), traffic(60.0)), TARGETS)
    assert proposal.desired.total == 4
    assert smallest(proposal).total > 4
    assert f"the smallest that would: {smallest(proposal)}" in proposal.reason


def test_targets_that_no_number_of_workers_meets_are_called_so() -> None:
    impossible = Targets(ttft_ms=20.0, itl_ms=50.0, percentile=0.95)
    proposal = plan(observations(Split(num_prefill=2, num_decode=2), traffic(1.0)), impossible)
    assert proposal.confident
    assert proposal.smallest is None
    assert "no number of workers would meet them" in proposal.reason
    assert "needed_num_prefill" not in proposal.figures


def test_utilisation_leaves_room_for_queueing() -> None:
    # 100 ms per prompt: 40 prompts a second are the whole of 4 workers.
    needed = smallest(plan(observations(Split(num_prefill=4, num_decode=4), traffic(39.0)), TARGETS))
    assert needed.num_prefill > 4


def test_no_requests_are_data_and_one_pair_would_do() -> None:
    proposal = plan(observations(Split(num_prefill=3, num_decode=3), Traffic(observed_s=60.0)), TARGETS)
    assert proposal.confident
    assert proposal.desired == proposal.current
    assert smallest(proposal) == Split(num_prefill=1, num_decode=1)


def test_workers_of_role_both_are_planned_as_such() -> None:
    seen = observations(Split(num_both=2), traffic(0.0, both_rate=2.0))
    proposal = plan(seen, TARGETS)
    assert proposal.desired == Split(num_both=2)
    assert smallest(proposal).total == smallest(proposal).num_both >= 1
    busier = plan(observations(Split(num_both=2), traffic(0.0, both_rate=30.0)), TARGETS)
    assert smallest(busier).num_both > 2
    assert "30 requests/s on 2 both miss" in busier.reason


def test_decode_workers_alone_prefill_too() -> None:
    proposal = plan(observations(Split(num_decode=4), traffic(1.0)), TARGETS)
    assert proposal.desired == Split(num_decode=4)
    overloaded = plan(observations(Split(num_decode=4), traffic(30.0)), TARGETS)
    assert overloaded.desired.total == 4


def test_a_worker_alone_is_never_split() -> None:
    proposal = plan(observations(Split(num_decode=1), traffic(100.0)), TARGETS)
    assert proposal.desired == Split(num_decode=1)
    assert proposal.confident


def test_long_prompts_leave_room_for_fewer_sequences() -> None:
    roomy = plan(observations(Split(num_prefill=2, num_decode=2), traffic(4.0)), TARGETS)
    tight = plan(observations(Split(num_prefill=2, num_decode=2), traffic(4.0), kv_tokens=4_000), TARGETS)
    assert smallest(tight).num_decode > smallest(roomy).num_decode


@pytest.mark.parametrize(
    ("seen", "what"),
    [
        (observations(Split(), traffic(1.0)), "no worker is serving"),
        (observations(Split(num_prefill=1, num_decode=1), traffic(1.0), num_silent=1), "no heartbeat"),
        (
            observations(
                Split(num_prefill=1, num_decode=1), dataclasses.replace(traffic(1.0), observed_s=3.0)
            ),
            "watched for 3 s only",
        ),
        (observations(Split(num_prefill=1, num_decode=1), traffic(90.0), decode_speed=None), "decode speed"),
        (
            observations(Split(num_prefill=1, num_decode=1), traffic(90.0), prefill_speed=None),
            "prefill speed",
        ),
        (
            observations(
                Split(num_prefill=1, num_decode=1), dataclasses.replace(traffic(1.0), num_decoding_samples=0)
            ),
            "seen decoding only 0 times",
        ),
    ],
)
def test_without_data_nothing_is_proposed_and_the_reason_says_what_is_missing(
    seen: Observations, what: str
) -> None:
    proposal = plan(seen, TARGETS)
    assert not proposal.confident
    assert proposal.desired == proposal.current == seen.workers.split
    assert proposal.smallest is None
    assert what in proposal.reason


kinds_of_load = st.builds(
    traffic,
    st.floats(0.1, 50.0),
    prompt_tokens=st.floats(10.0, 1800.0),
    output_tokens=st.floats(1.0, 500.0),
)


@settings(max_examples=60, deadline=None)
@given(seen=kinds_of_load, factor=st.floats(1.0, 3.0))
def test_more_load_never_needs_fewer_workers(seen: Traffic, factor: float) -> None:
    split = Split(num_prefill=2, num_decode=2)
    more = dataclasses.replace(seen, split_rate=seen.split_rate * factor)
    here, there = plan(observations(split, seen), TARGETS), plan(observations(split, more), TARGETS)
    if there.smallest is not None:
        assert smallest(here).num_prefill <= there.smallest.num_prefill
        assert smallest(here).num_decode <= there.smallest.num_decode


@settings(max_examples=60, deadline=None)
@given(
    seen=kinds_of_load,
    ttft=st.floats(1.0, 3.0),
    itl=st.floats(1.0, 3.0),
    percentile=st.sampled_from([0.5, 0.8, 0.9, 0.95]),
)
def test_looser_targets_never_need_more_workers(
    seen: Traffic, ttft: float, itl: float, percentile: float
) -> None:
    split = Split(num_prefill=2, num_decode=2)
    looser = Targets(ttft_ms=500.0 * ttft, itl_ms=50.0 * itl, percentile=percentile)
    strict, loose = plan(observations(split, seen), TARGETS), plan(observations(split, seen), looser)
    if strict.smallest is not None:
        assert smallest(loose).num_prefill <= strict.smallest.num_prefill
        assert smallest(loose).num_decode <= strict.smallest.num_decode


@settings(max_examples=60, deadline=None)
@given(seen=kinds_of_load, num_prefill=st.integers(0, 6), num_decode=st.integers(1, 6))
def test_advice_divides_the_workers_there_are_and_what_it_calls_enough_is_enough(
    seen: Traffic, num_prefill: int, num_decode: int
) -> None:
    split = Split(num_prefill=num_prefill, num_decode=num_decode)
    proposal = plan(observations(split, seen), TARGETS)
    assert proposal.desired.total == split.total
    assert all(math.isfinite(value) for value in proposal.figures.values())
    # Whoever follows the advice is told to stay.
    followed = plan(observations(proposal.desired, seen), TARGETS)
    assert followed.desired == proposal.desired
    if proposal.smallest is not None:
        enough = plan(observations(proposal.smallest, seen), TARGETS)
        assert enough.desired == proposal.smallest
        assert "miss" not in enough.reason
