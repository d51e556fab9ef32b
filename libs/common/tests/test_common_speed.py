"""Tests of the online fit of step times."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tandem.v1 import cluster_pb2
from tandem_common.speed import DecodeSpeed, PrefillSpeed, SpeedFitter

WARMUP = 3
FIRST_FIT = WARMUP + 8

base_ms = st.floats(0.5, 50.0)
per_token_ms = st.floats(0.001, 1.0)
per_product_ms = st.floats(1e-7, 1e-4)
seeds = st.integers(0, 2**32)


def observe_prefill(fitter: SpeedFitter, duration_ms: float, num_tokens: int, context: int) -> None:
    fitter.observe(
        duration_ms=duration_ms,
        num_prefill_tokens=num_tokens,
        prefill_token_context=num_tokens * context,
        num_decode_sequences=0,
        decode_kv_tokens=0,
    )


def observe_decode(fitter: SpeedFitter, duration_ms: float, num_sequences: int, kv_tokens: int) -> None:
    fitter.observe(
        duration_ms=duration_ms,
        num_prefill_tokens=0,
        prefill_token_context=0,
        num_decode_sequences=num_sequences,
        decode_kv_tokens=kv_tokens,
    )


def fitted_prefill(fitter: SpeedFitter) -> PrefillSpeed:
    speed = fitter.prefill
    assert speed is not None
    return speed


def fitted_decode(fitter: SpeedFitter) -> DecodeSpeed:
    speed = fitter.decode
    assert speed is not None
    return speed


@settings(max_examples=30, deadline=None)
@given(a=base_ms, b=per_token_ms, c=per_product_ms, seed=seeds)
def test_prefill_is_recovered_through_noise_and_tenfold_outliers(
    a: float, b: float, c: float, seed: int
) -> None:
    draw, fitter = random.Random(seed), SpeedFitter()
    truth = PrefillSpeed(a_ms=a, b_ms=b, c_ms=c, num_samples=0)
    for _ in range(500):
        tokens, context = draw.randint(1, 512), draw.choice([0, 0, 512, 1024, 4096])
        duration = truth.predict_ms(tokens, context) * max(0.2, draw.gauss(1.0, 0.05))
        observe_prefill(fitter, duration * (10.0 if draw.random() < 0.05 else 1.0), tokens, context)
    fit = fitted_prefill(fitter)
    assert fit.num_samples == 500 - WARMUP
    for tokens in (16, 128, 512):
        for context in (0, 1024, 4096):
            assert fit.predict_ms(tokens, context) == pytest.approx(
                truth.predict_ms(tokens, context), rel=0.15
            )


@settings(max_examples=30, deadline=None)
@given(a=base_ms, b=st.floats(0.0, 2.0), c=st.floats(0.0, 0.01), seed=seeds)
def test_decode_is_recovered_through_noise_and_tenfold_outliers(
    a: float, b: float, c: float, seed: int
) -> None:
    draw, fitter = random.Random(seed), SpeedFitter()
    truth = DecodeSpeed(a_ms=a, b_ms=b, c_ms=c, num_samples=0)
    for _ in range(500):
        sequences = draw.randint(1, 32)
        kv_tokens = sequences * draw.randint(20, 2000)
        duration = truth.step_ms(sequences, kv_tokens) * max(0.2, draw.gauss(1.0, 0.05))
        observe_decode(fitter, duration * (10.0 if draw.random() < 0.05 else 1.0), sequences, kv_tokens)
    fit = fitted_decode(fitter)
    for sequences in (2, 8, 32):
        for length in (100, 500, 2000):
            assert fit.step_ms(sequences, sequences * length) == pytest.approx(
                truth.step_ms(sequences, sequences * length), rel=0.15
            )


def test_exact_samples_give_the_exact_coefficients() -> None:
    fitter = SpeedFitter()
    for i in range(200):
        tokens, context = 1 + i % 50, (i % 7) * 100
        observe_prefill(fitter, 4.0 + 0.1 * tokens + 1e-4 * tokens * context, tokens, context)
    fit = fitted_prefill(fitter)
    assert fit.a_ms == pytest.approx(4.0, rel=1e-3)
    assert fit.b_ms == pytest.approx(0.1, rel=1e-3)
    assert fit.c_ms == pytest.approx(1e-4, rel=1e-3)


@settings(max_examples=30, deadline=None)
@given(tokens=st.integers(1, 100_000), context=st.integers(0, 100_000), duration=st.floats(1e-3, 1e5))
def test_samples_that_are_all_alike_are_predicted_and_their_neighbours_sensibly(
    tokens: int, context: int, duration: float
) -> None:
    fitter = SpeedFitter()
    for _ in range(40):
        observe_prefill(fitter, duration, tokens, context)
    fit = fitted_prefill(fitter)
    assert fit.predict_ms(tokens, context) == pytest.approx(duration, rel=0.01)
    assert fit.predict_ms(2 * tokens, context) <= 2.05 * duration
    assert fit.predict_ms(max(1, tokens // 2), context) <= 1.01 * duration


def test_one_kind_of_load_does_not_wipe_out_what_was_known_of_others() -> None:
    fitter, truth = SpeedFitter(), DecodeSpeed(a_ms=4.0, b_ms=0.5, c_ms=1e-3, num_samples=0)
    for i in range(300):
        sequences, length = (1, 4, 16)[i % 3], 100 + 37 * (i % 11)
        observe_decode(fitter, truth.step_ms(sequences, sequences * length), sequences, sequences * length)
    for i in range(3000):
        observe_decode(fitter, truth.step_ms(1, 100 + i % 400), 1, 100 + i % 400)
    assert fitted_decode(fitter).step_ms(16, 8000) == pytest.approx(truth.step_ms(16, 8000), rel=0.1)


@settings(max_examples=20, deadline=None)
@given(factor=st.sampled_from([0.25, 0.5, 2.0, 4.0]), seed=seeds)
def test_a_lasting_change_of_speed_is_followed(factor: float, seed: int) -> None:
    draw, fitter = random.Random(seed), SpeedFitter()
    for i in range(1000):
        tokens = draw.randint(1, 512)
        duration = (5.0 + 0.1 * tokens) * draw.gauss(1.0, 0.03) * (1.0 if i < 500 else factor)
        observe_prefill(fitter, duration, tokens, 0)
    assert fitted_prefill(fitter).predict_ms(256, 0) == pytest.approx(factor * 30.6, rel=0.15)


@settings(max_examples=30, deadline=None)
@given(unit=st.sampled_from([1e-6, 1e-3, 1e3, 1e6]), token_unit=st.sampled_from([1, 8, 1000]), seed=seeds)
def test_units_of_time_and_length_do_not_matter(unit: float, token_unit: int, seed: int) -> None:
    draw, plain, scaled = random.Random(seed), SpeedFitter(), SpeedFitter()
    for _ in range(60):
        sequences, kv_tokens = draw.randint(1, 32), draw.randint(20, 20_000)
        duration = (4.0 + 0.5 * sequences + 1e-3 * kv_tokens) * draw.lognormvariate(0.0, 0.1)
        observe_decode(plain, duration, sequences, kv_tokens)
        observe_decode(scaled, duration * unit, sequences * token_unit, kv_tokens * token_unit)
    here, there = fitted_decode(plain), fitted_decode(scaled)
    for sequences, kv_tokens in ((1, 100), (32, 20_000)):
        assert there.step_ms(sequences * token_unit, kv_tokens * token_unit) == pytest.approx(
            here.step_ms(sequences, kv_tokens) * unit, rel=1e-6
        )


@settings(max_examples=50, deadline=None)
@given(
    samples=st.lists(
        st.tuples(st.integers(1, 10**6), st.integers(0, 10**6), st.floats(1e-3, 1e7)),
        min_size=FIRST_FIT,
        max_size=60,
    )
)
def test_whatever_comes_in_coefficients_are_finite_and_not_negative(
    samples: list[tuple[int, int, float]],
) -> None:
    fitter = SpeedFitter()
    for tokens, context, duration in samples:
        observe_prefill(fitter, duration, tokens, context)
    fit = fitted_prefill(fitter)
    assert all(math.isfinite(value) and value >= 0.0 for value in (fit.a_ms, fit.b_ms, fit.c_ms))
    assert fit.predict_ms(*samples[-1][:2]) > 0.0


def test_falling_times_do_not_give_a_negative_slope() -> None:
    fitter = SpeedFitter()
    for i in range(200):
        observe_prefill(fitter, 10.0 - 0.01 * (37 * i % 100), 1 + 37 * i % 100, 0)
    fit = fitted_prefill(fitter)
    assert fit.b_ms == 0.0
    assert fit.a_ms == pytest.approx(9.5, rel=0.02)


def test_nothing_is_said_before_enough_samples_and_the_warm_up_counts_for_nothing() -> None:
    fitter = SpeedFitter()
    for _ in range(WARMUP):
        observe_prefill(fitter, 60_000.0, 100, 0)
    for _ in range(FIRST_FIT - WARMUP - 1):
        observe_prefill(fitter, 10.0, 100, 0)
    assert fitter.prefill is None
    observe_prefill(fitter, 10.0, 100, 0)
    assert fitted_prefill(fitter).predict_ms(100, 0) == pytest.approx(10.0, rel=1e-3)
    assert fitter.decode is None


@pytest.mark.parametrize("duration_ms", [0.0, -1.0, 1e-300, 1e300, math.nan, math.inf])
def test_impossible_durations_are_ignored(duration_ms: float) -> None:
    fitter = SpeedFitter()
    for _ in range(2 * FIRST_FIT):
        observe_prefill(fitter, duration_ms, 100, 0)
    assert fitter.prefill is None


def test_an_aggregated_worker_learns_from_steps_that_do_both() -> None:
    fitter = SpeedFitter()
    for step in range(4 * FIRST_FIT):
        sequences, tokens, context = 4 + step % 5, 100 + 40 * (step % 7), 1000 * (step % 3)
        decoding_ms = 0.5 * sequences + 0.001 * 500 * sequences
        for num_prefill_tokens in (0, tokens):
            prefill_ms = 0.05 * num_prefill_tokens + 1e-5 * num_prefill_tokens * context
            fitter.observe(
                duration_ms=10.0 + decoding_ms + prefill_ms,
                num_prefill_tokens=num_prefill_tokens,
                prefill_token_context=num_prefill_tokens * context,
                num_decode_sequences=sequences,
                decode_kv_tokens=500 * sequences,
            )
    assert fitter.prefill is not None
    assert fitter.prefill.predict_ms(300, 1500) == pytest.approx(10.0 + 15.0 + 4.5, rel=0.05)


def test_steps_that_do_both_or_nothing_teach_nothing_before_one_knows_what_decoding_takes() -> None:
    fitter = SpeedFitter()
    for tokens, sequences in [(100, 4), (0, 0)] * FIRST_FIT:
        fitter.observe(
            duration_ms=10.0,
            num_prefill_tokens=tokens,
            prefill_token_context=0,
            num_decode_sequences=sequences,
            decode_kv_tokens=100 * sequences,
        )
    assert fitter.prefill is None
    assert fitter.decode is None


@given(tokens=st.integers(0, 3000), context=st.integers(0, 5000), step=st.integers(1, 700))
def test_a_prompt_takes_as_long_as_its_steps(tokens: int, context: int, step: int) -> None:
    speed = PrefillSpeed(a_ms=3.0, b_ms=0.1, c_ms=1e-5, num_samples=9)
    expected, done = 0.0, 0
    while done < tokens:
        chunk = min(step, tokens - done)
        expected += speed.predict_ms(chunk, context + done)
        done += chunk
    assert speed.predict_prompt_ms(tokens, context, step) == pytest.approx(expected)


def test_speeds_survive_the_wire() -> None:
    prefill = PrefillSpeed(a_ms=1.5, b_ms=0.25, c_ms=0.125, num_samples=7)
    decode = DecodeSpeed(a_ms=2.5, b_ms=0.5, c_ms=0.0, num_samples=8)
    assert PrefillSpeed.from_proto(prefill.to_proto()) == prefill
    assert DecodeSpeed.from_proto(decode.to_proto()) == decode


@pytest.mark.parametrize("value", [-1.0, math.nan, math.inf])
def test_nonsense_on_the_wire_is_no_speed(value: float) -> None:
    assert PrefillSpeed.from_proto(cluster_pb2.PrefillSpeed(b_ms=value)) is None
    assert DecodeSpeed.from_proto(cluster_pb2.DecodeSpeed(c_ms=value)) is None
