"""No schedule does better than the bound: by hand, for steps of any size, and for whole simulations."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tandem_engine.api import StepCost
from tandem_load.traffic import TrafficRequest
from tandem_sim.bound import Demand, highest_decoding_rate, highest_rate, lines_below
from tandem_sim.hardware import GPUS, Efficiency
from tandem_sim.models import MODELS
from tandem_sim.scenario import Scenario, WorkerGroup
from tandem_sim.simulation import Simulation
from tandem_sim.step_time import STEP_MODELS, Roofline, gpu_step_time
from tandem_sim.synthetic import MIXED, poisson

IDEAL = Roofline(
    GPUS["H100"],
    MODELS["llama-3-8b"],
    Efficiency(compute=1.0, attention=1.0, bandwidth=1.0, peer=1.0, step_s=0.0, collective_s=0.0, memory=1.0),
)
TOKEN_S = 2 * 8.03e9 / 989.5e12
WEIGHTS_S = 2 * 8.03e9 / 3.35e12
STEP_TIMES = {name: gpu_step_time(name, "H100", "llama-3-70b") for name in STEP_MODELS}


def request(num_prompt_tokens: int, num_output_tokens: int) -> TrafficRequest:
    return TrafficRequest(
        index=0, time_s=0.0, num_prompt_tokens=num_prompt_tokens, num_output_tokens=num_output_tokens
    )


def test_a_prompt_alone_costs_its_products_and_its_attention() -> None:
    demand = Demand.of([request(8192, 1)], IDEAL)
    attention_s = 4 * 32 * 32 * 128 * 8192 * 8192 / 2 / 989.5e12
    assert demand.num_decode_steps == 0
    assert highest_rate(demand, IDEAL, 3, 256) == pytest.approx(3 / (8192 * TOKEN_S + attention_s))


def test_an_answer_costs_its_part_of_the_weights_that_its_steps_read() -> None:
    """4 sequences at once: far from computing as long as reading takes."""
    demand = Demand.of([request(1, 101), request(1, 201)], IDEAL)
    kv_s = 131_072 / 3.35e12
    read_s = kv_s * (100 * (1 + 99 / 2) + 200 * (1 + 199 / 2)) / 2
    assert demand.num_decode_steps == 150
    assert highest_rate(demand, IDEAL, 1, 4) == pytest.approx(1 / (150 * WEIGHTS_S / 4 + read_s), rel=1e-3)


def test_a_worker_that_decodes_all_the_time_has_as_many_steps_as_its_sequences_have_tokens() -> None:
    """Half of the time goes into the constant of its steps, the other half computes prompts."""
    efficiency = Efficiency(compute=1.0, attention=1.0, bandwidth=1e6, step_s=0.010, collective_s=0.0)
    steps = Roofline(GPUS["H100"], MODELS["llama-3-8b"], efficiency)
    demand = Demand.of([request(1000, 1)], steps)
    prompt_s = 1000 * TOKEN_S + demand.attention_s
    assert highest_decoding_rate(demand, steps, 2, 2, tpot_s=0.020) == pytest.approx(1 / prompt_s, rel=1e-3)
    assert highest_decoding_rate(demand, steps, 4, 2, tpot_s=0.020) == pytest.approx(3 / prompt_s, rel=1e-3)
    assert highest_decoding_rate(demand, steps, 2, 2, tpot_s=0.005) == 0.0


@pytest.mark.parametrize("name", STEP_MODELS)
@given(num_tokens=st.integers(1, 8192))
def test_no_step_is_cheaper_than_a_line_says(name: str, num_tokens: int) -> None:
    steps = STEP_TIMES[name]
    seconds = steps.step_s(StepCost(duration_ms=0, num_prefill_tokens=num_tokens), 0)
    assert all(
        step_s + token_s * num_tokens <= seconds * (1 + 1e-9) for step_s, token_s in lines_below(steps)
    )


@pytest.mark.parametrize("name", STEP_MODELS)
@pytest.mark.parametrize(
    "workers",
    [
        (WorkerGroup(role="prefill", count=1), WorkerGroup(role="decode", count=1, max_step_tokens=256)),
        (WorkerGroup(role="both", count=2, max_step_tokens=256, handoffs=False),),
    ],
    ids=["split", "whole"],
)
def test_no_simulation_needs_less_of_its_workers_than_the_bound(
    workers: tuple[WorkerGroup, ...], name: str
) -> None:
    requests = poisson(MIXED, rate=1000.0, num_requests=150, seed=3)
    scenario = Scenario(workers=workers, block_size=64, step_model=name, with_planner=False)
    measurement = Simulation(scenario).run(requests)
    assert all(record.done for record in measurement.records)
    steps = STEP_TIMES[name]
    served = len(requests) / sum(measurement.busy_s.values())
    bound = highest_rate(Demand.of(requests, steps), steps, 1, 256)
    assert 0.2 * bound < served < bound
