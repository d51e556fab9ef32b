"""Steps by a measured layer, and by a roofline that hides only a part."""

import pytest
from tandem_engine.api import StepCost
from tandem_sim import layer_times
from tandem_sim.hardware import GPUS, Efficiency
from tandem_sim.models import MODELS
from tandem_sim.scenario import Scenario, WorkerGroup
from tandem_sim.step_time import STEP_MODELS, MeasuredLayers, Roofline, gpu_step_time

H100, LLAMA = GPUS["H100"], MODELS["llama-3-70b"]
SPLIT = (WorkerGroup(role="prefill", count=1), WorkerGroup(role="decode", count=1))


def prefill(num_tokens: int) -> StepCost:
    return StepCost(duration_ms=0, num_prefill_tokens=num_tokens)


def test_sizes_are_in_their_order() -> None:
    sizes = layer_times.TOKENS
    assert list(sizes) == sorted(set(sizes))


def test_a_layer_takes_what_was_measured_and_between_that_what_lies_between() -> None:
    assert layer_times.layer_ms(256) == pytest.approx(0.215 + 0.025)
    assert layer_times.layer_ms(1) == pytest.approx(0.159 + 0.020)
    assert layer_times.layer_ms(136) == pytest.approx(0.213 + 0.023)
    assert layer_times.layer_ms(24) == pytest.approx((0.1605 + 0.021 + 0.1695 + 0.022) / 2)
    assert layer_times.layer_ms(8192) == pytest.approx(2 * layer_times.layer_ms(4096))


def test_a_tile_more_costs_what_it_costs() -> None:
    measured = MeasuredLayers(H100, LLAMA)
    step_s = [measured.step_s(prefill(n), 0) for n in (248, 256, 264)]
    assert step_s[2] - step_s[1] > 5 * abs(step_s[1] - step_s[0])


def test_what_is_not_hidden_is_added() -> None:
    hidden, exposed, half = (
        Roofline(H100, LLAMA, Efficiency(overlap=overlap)).step_s(prefill(256), 0)
        for overlap in (1.0, 0.0, 0.5)
    )
    assert hidden < half < exposed
    assert half == pytest.approx((hidden + exposed) / 2)


def test_the_fitted_roofline_is_nearer_to_the_layer_than_the_assumed_one() -> None:
    assumed, fitted, measured = (gpu_step_time(name, "H100", "llama-3-70b") for name in STEP_MODELS)

    def error(model: Roofline) -> float:
        steps = [prefill(n) for n in layer_times.TOKENS]
        return sum((model.step_s(s, 0) / measured.step_s(s, 0) - 1.0) ** 2 for s in steps)

    assert error(fitted) < error(assumed)


def test_only_what_was_measured_can_be_asked_for() -> None:
    with pytest.raises(ValueError, match="llama-3-70b on H100"):
        gpu_step_time("measured", "H100", "llama-3-8b")
    with pytest.raises(ValueError, match="roofline, fitted, measured"):
        gpu_step_time("guessed", "H100", "llama-3-70b")
    with pytest.raises(ValueError, match="step_model"):
        Scenario(workers=SPLIT, step_model="guessed")


def test_half_the_speed_takes_twice_as_long() -> None:
    whole, half = (gpu_step_time("measured", "H100", "llama-3-70b", speed) for speed in (1.0, 0.5))
    assert half.step_s(prefill(512), 0) == pytest.approx(2 * whole.step_s(prefill(512), 0))
