from __future__ import annotations

from dataclasses import replace

import pytest
from router_fakes import DECODE_SPEED, PREFILL_SPEED, busy, make_facts, queued
from tandem_common.speed import DecodeSpeed, PrefillSpeed
from tandem_router import cost
from tandem_router.view import Link, Passable, WorkerLoad, WorkerRole

IDLE = WorkerLoad()
PREFILL = make_facts("p", WorkerRole.PREFILL)
DECODE = make_facts("d", WorkerRole.DECODE)
BOTH = make_facts("b", WorkerRole.BOTH)
LINEAR = PrefillSpeed(a_ms=10.0, b_ms=0.5, c_ms=0.0, num_samples=9)
QUADRATIC = PrefillSpeed(a_ms=0.0, b_ms=0.0, c_ms=0.001, num_samples=9)


def test_a_short_prompt_waits_for_half_a_step_of_the_long_one_that_it_passes() -> None:
    long = Passable(below_tokens=20_000, tokens=51_200, context=0)
    load = replace(queued(52_200), passable=(long,))
    behind = cost.queue_of(PREFILL, load, LINEAR, 0.0, cost.length_class(30_000))
    ahead = cost.queue_of(PREFILL, load, LINEAR, 0.0, cost.length_class(100))
    assert behind.total == cost.queue_of(PREFILL, queued(52_200), LINEAR, 0.0).total
    half_a_step = (10 + 512 * 0.5) / 2
    assert ahead.total == pytest.approx(cost.queue_of(PREFILL, queued(1000), LINEAR, 0.0).total + half_a_step)
    assert ahead.draining < ahead.total


def test_what_a_beat_told_of_becomes_less_as_time_passes_and_what_was_booked_since_does_not() -> None:
    load = replace(queued(1000), booked_prefill_tokens=400)

    def queue_after(elapsed_ms: float) -> float:
        surroundings = cost.Surroundings(elapsed_ms=elapsed_ms)
        return cost.prefill_terms(PREFILL, load, LINEAR, None, (100, 0), surroundings).queue

    told = cost.queue_of(PREFILL, load, LINEAR, 0.0).total
    assert queue_after(0.0) == queue_after(-5.0) == told
    assert queue_after(50.0) == pytest.approx(told - 50.0)
    assert queue_after(60_000.0) == pytest.approx(0.4 * told)


def test_the_price_of_a_prompt_tells_what_it_takes_from_those_to_come() -> None:
    alone = cost.prefill_terms(PREFILL, queued(1000), LINEAR, None, (100, 0))
    crowded = cost.prefill_terms(
        PREFILL, queued(1000), LINEAR, None, (100, 0), cost.Surroundings(crowding_per_ms=0.002)
    )
    assert alone.followers == 0.0
    assert crowded.followers == pytest.approx(0.002 * crowded.prefill * (crowded.queue + crowded.prefill / 2))
    assert crowded.total == pytest.approx(alone.total + crowded.followers)


@pytest.mark.parametrize(
    ("load", "speed", "interleaved", "expected"),
    [
        (IDLE, LINEAR, 7.0, 0.0),
        (queued(100), LINEAR, 0.0, 10 + 50),
        (queued(512), LINEAR, 0.0, 10 + 256),
        (queued(513), LINEAR, 0.0, 20 + 256.5),
        (queued(1024), LINEAR, 7.0, 20 + 512 + 14),
        # What is before the queued tokens is counted by those who hold them.
        (replace(queued(200), queued_prefill_context=9000), QUADRATIC, 0.0, 9000 * 0.001),
    ],
)
def test_the_queue_costs_the_steps_of_all_prompts_ahead(
    load: WorkerLoad, speed: PrefillSpeed, interleaved: float, expected: float
) -> None:
    assert cost.queue_of(PREFILL, load, speed, interleaved).total == pytest.approx(expected)


def test_prefill_costs_what_the_workers_own_fit_says_of_the_uncached_tokens() -> None:
    terms = cost.prefill_terms(PREFILL, IDLE, PREFILL_SPEED, None, (600, 400))
    assert terms.prefill == pytest.approx(PREFILL_SPEED.predict_prompt_ms(600, 400, 512))
    assert terms.num_steps == 2
    assert terms.queue == terms.stall == 0.0


def test_a_longer_context_makes_the_same_tokens_dearer() -> None:
    near = cost.prefill_terms(PREFILL, IDLE, PREFILL_SPEED, None, (100, 0))
    far = cost.prefill_terms(PREFILL, IDLE, PREFILL_SPEED, None, (100, 5000))
    assert far.prefill - near.prefill == pytest.approx(100 * 5000 * PREFILL_SPEED.c_ms)


def test_decoding_sequences_slow_a_prompt_down_on_the_same_worker() -> None:
    load = busy(12, context=100)
    terms = cost.prefill_terms(BOTH, load, LINEAR, DECODE_SPEED, (1000, 0))
    alone = LINEAR.predict_prompt_ms(1000, 0, 500)  # twelve of a step's 512 tokens go to the sequences
    per_step = 12 * DECODE_SPEED.b_ms + 1200 * DECODE_SPEED.c_ms
    assert terms.num_steps == 2
    assert terms.prefill == pytest.approx(alone + 2 * per_step)
    assert terms.stall == pytest.approx(12 * 1000 * LINEAR.b_ms)


@pytest.mark.parametrize(
    ("role", "num_sequences", "expected"),
    [
        (WorkerRole.PREFILL, 9, 0),
        (WorkerRole.BOTH, 0, 0),
        (WorkerRole.BOTH, 9, 9),
        (WorkerRole.DECODE, 9, 9),
        (WorkerRole.DECODE, 0, 1),  # it will not stay empty
    ],
)
def test_a_prompt_stalls_the_sequences_that_decode_beside_it(
    role: WorkerRole, num_sequences: int, expected: int
) -> None:
    assert cost.neighbours_of(make_facts("w", role), WorkerLoad(num_sequences=num_sequences)) == expected


@pytest.mark.parametrize(
    ("computing_ms", "num_steps", "expected"),
    [
        (100.0, 1, 40.0),  # nothing to hide behind: all of it comes after the only step
        (100.0, 4, 10.0),  # three of four parts are hidden
        (40.0, 4, 10.0),  # computing is just fast enough to hide them
        (20.0, 4, 25.0),  # the link is the slower one: 40 less three quarters of 20
        (0.0, 1, 40.0),
    ],
)
def test_shipping_costs_what_computing_does_not_hide(
    computing_ms: float, num_steps: int, expected: float
) -> None:
    link = Link(bytes_per_ms=1000.0, latency_ms=3.0)
    shipped = cost.ship_ms(link, 40_000, computing_ms, num_steps)
    assert shipped == pytest.approx(cost.HANDOFF_MS + 3.0 + expected)


def test_a_handoff_of_nothing_still_costs_its_call() -> None:
    assert cost.ship_ms(Link(bytes_per_ms=1e6, latency_ms=0.0), 0, 10.0, 3) == cost.HANDOFF_MS


def test_decoding_costs_own_steps_and_what_it_adds_to_the_others() -> None:
    speed = DecodeSpeed(a_ms=10.0, b_ms=1.0, c_ms=0.01, num_samples=9)
    terms = cost.decode_terms(DECODE, busy(4, context=100), speed, num_tokens=200, num_new_tokens=20)
    length = 210  # half way through the answer
    assert terms.decode == pytest.approx(20 * (10 + 5 * 1.0 + (400 + length) * 0.01))
    assert terms.neighbours == pytest.approx(4 * 20 * (1.0 + length * 0.01))
    assert terms.room == 0.0


def test_prompts_that_wait_for_prefill_will_be_neighbours_too() -> None:
    speed = DecodeSpeed(a_ms=0.0, b_ms=0.0, c_ms=1.0, num_samples=9)
    terms = cost.decode_terms(BOTH, queued(300), speed, num_tokens=100, num_new_tokens=1)
    assert terms.decode == pytest.approx(400.0)
    assert terms.neighbours == pytest.approx(100.0)


@pytest.mark.parametrize(
    ("load", "expected"),
    [
        (IDLE, 0.0),
        (WorkerLoad(num_sequences=63), 0.0),
        (WorkerLoad(num_sequences=64), 640.0 / 64),  # one place, of 64 that end within a lifetime
        (WorkerLoad(num_sequences=96), 640.0 * 33 / 96),
        (WorkerLoad(num_used_blocks=990), 0.0),
        (WorkerLoad(num_used_blocks=1000), 640.0 * 10 / 1000),
        (WorkerLoad(num_sequences=64, num_used_blocks=1000), 640.0 / 64),  # the longer wait of the two
    ],
)
def test_a_full_worker_costs_the_wait_for_a_place_and_for_blocks(load: WorkerLoad, expected: float) -> None:
    assert cost.room_ms(DECODE, load, num_tokens=160, lifetime_ms=640.0) == pytest.approx(expected)
