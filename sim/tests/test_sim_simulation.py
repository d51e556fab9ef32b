"""Whole simulations: exact, repeatable, complete, also when workers die."""

import os
import subprocess
import sys
from dataclasses import replace

import pytest
from tandem_engine.api import StepCost
from tandem_load.traffic import TrafficRequest, mean_rate
from tandem_router.policies import POLICY_NAMES
from tandem_sim.hardware import GPUS
from tandem_sim.measurement import Measurement
from tandem_sim.models import MODELS
from tandem_sim.report import Run, summarise, to_json
from tandem_sim.scenario import Fault, Scenario, WorkerGroup
from tandem_sim.simulation import Simulation
from tandem_sim.step_time import Roofline
from tandem_sim.synthetic import Kind, poisson

SPLIT = (WorkerGroup(role="prefill", count=2), WorkerGroup(role="decode", count=2))
WHOLE = (WorkerGroup(role="both", count=2),)
REMOTE = "round_robin"  # always prefills remotely where it can


def scenario(workers: tuple[WorkerGroup, ...] = SPLIT, policy: str = "predictive") -> Scenario:
    return Scenario(model="llama-3-8b", workers=workers, policy=policy, block_size=64)


# Short answers: the time that a test takes is in their tokens.
KINDS = (
    Kind(label="chat", share=0.9, prompt_median=600, prompt_sigma=0.8, output_median=20, output_sigma=0.6),
    Kind(label="long", share=0.1, prompt_median=16_000, output_median=20),
)


def traffic(num_requests: int = 40, rate: float = 20.0) -> list[TrafficRequest]:
    return poisson(KINDS, rate=rate, num_requests=num_requests, seed=5)


def one(**changes: int) -> TrafficRequest:
    request = TrafficRequest(index=0, time_s=1.0, num_prompt_tokens=640, num_output_tokens=5)
    return replace(request, **changes)  # type: ignore[arg-type]


def simulate(what: Scenario, requests: list[TrafficRequest]) -> tuple[Measurement, Simulation]:
    simulation = Simulation(what)
    measurement = simulation.run(requests)
    simulation.check_integrity()
    return measurement, simulation


def summary_json(what: Scenario, requests: list[TrafficRequest]) -> str:
    measurement, _ = simulate(what, requests)
    return to_json(
        [summarise(Run(scenario=what, load=1.0, rate=mean_rate(requests), measurement=measurement))]
    )


def assert_all_answered(measurement: Measurement, requests: list[TrafficRequest]) -> None:
    assert len(measurement.records) == len(requests)
    for record in measurement.records:
        assert record.done, record
        assert record.num_tokens == record.num_output_tokens
        assert record.ttft_s is not None
        assert record.ttft_s > 0


@pytest.mark.parametrize("policy", POLICY_NAMES)
@pytest.mark.parametrize("workers", [SPLIT, WHOLE], ids=["split", "whole"])
def test_every_policy_answers_every_request_and_leaves_nothing_behind(
    workers: tuple[WorkerGroup, ...], policy: str
) -> None:
    requests = traffic()
    measurement, simulation = simulate(scenario(workers, policy), requests)
    assert_all_answered(measurement, requests)
    # The last releases are still on their way when the last token has come.
    held = [list(worker.scheduler.sequences()) for worker in simulation.workers.values()]
    assert sum(map(len, held)) <= 1


def test_one_request_takes_what_its_calls_and_steps_take() -> None:
    what = replace(scenario(WHOLE), workers=(WorkerGroup(role="both", count=1),))
    measurement, _ = simulate(what, [one()])
    (record,) = measurement.records
    step_time = Roofline(GPUS["H100"], MODELS["llama-3-8b"])
    prompt_s = step_time.step_s(StepCost(duration_ms=0, num_prefill_tokens=640), 640 * 640 // 2)
    assert record.ttft_s == pytest.approx(2 * what.control.rpc_s + prompt_s)
    decode_s = sum(
        step_time.step_s(StepCost(duration_ms=0, num_decode_sequences=1, decode_kv_tokens=640 + n), 0)
        for n in range(1, 5)
    )
    assert record.tpot_s == pytest.approx(decode_s / 4)


def test_a_handoff_takes_two_more_calls_and_the_last_chunk_on_the_way() -> None:
    what = replace(
        scenario(policy=REMOTE),
        workers=(WorkerGroup(role="prefill", count=1), WorkerGroup(role="decode", count=1)),
        host_network="ethernet-10g",
    )
    measurement, _ = simulate(what, [one()])
    (record,) = measurement.records
    step_time = Roofline(GPUS["H100"], MODELS["llama-3-8b"])
    prompt_s = step_time.step_s(StepCost(duration_ms=0, num_prefill_tokens=640), 640 * 640 // 2)
    shipping_s = 640 * 131_072 / 1e9 + 500e-6
    assert measurement.num_handoffs == 1
    assert measurement.handoff_bytes == 640 * 131_072
    assert record.ttft_s == pytest.approx(3 * what.control.rpc_s + prompt_s + shipping_s)


def test_a_prefix_that_was_computed_is_not_computed_again() -> None:
    first = one(num_prompt_tokens=1024 + 64)
    requests = [
        replace(first, segments=(3, 4)),
        replace(first, index=1, time_s=3.0, segments=(3, 4)),
        replace(first, index=2, time_s=6.0, segments=(3, 5)),
    ]
    measurement, _ = simulate(replace(scenario(), seed=1), requests)
    assert [record.num_cached_tokens for record in measurement.records] == [0, 1024, 512]


def test_the_same_seed_gives_the_same_json_byte_for_byte() -> None:
    assert summary_json(scenario(), traffic()) == summary_json(scenario(), traffic())
    changed = replace(scenario(policy="random"), seed=1)
    assert summary_json(changed, traffic()) != summary_json(replace(changed, seed=2), traffic())


def test_the_result_does_not_depend_on_how_the_process_hashes_strings() -> None:
    code = (
        "from tandem_sim.scenario import Fault, Scenario, WorkerGroup\n"
        "from tandem_sim.simulation import Simulation\n"
        "from tandem_sim.report import Run, summarise, to_json\n"
        "from tandem_sim.synthetic import MIXED, poisson\n"
        "groups = (WorkerGroup(role='prefill', count=3), WorkerGroup(role='decode', count=3))\n"
        "s = Scenario(model='llama-3-8b', workers=groups, block_size=64,\n"
        "             faults=(Fault(time_s=0.7, worker_id='decode-0001'),))\n"
        "m = Simulation(s).run(poisson(MIXED, rate=30, num_requests=30, seed=1))\n"
        "print(to_json([summarise(Run(scenario=s, load=1, rate=1, measurement=m))]))\n"
    )
    outputs = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            check=True,
            timeout=100,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(outputs) == 1


def test_requests_of_a_dead_decode_worker_go_on_elsewhere_without_a_token_lost_or_repeated() -> None:
    requests = traffic(60, 40.0)
    what = replace(scenario(), faults=(Fault(time_s=1.0, worker_id="decode-0000"),))
    measurement, _ = simulate(what, requests)
    assert_all_answered(measurement, requests)
    assert any(record.num_attempts > 1 for record in measurement.records)


def test_prompts_of_a_dead_prefill_worker_are_computed_by_the_decode_worker() -> None:
    requests = [replace(one(), index=i, time_s=1.0 + i / 100, num_prompt_tokens=6000) for i in range(20)]
    what = replace(
        scenario(policy=REMOTE),
        workers=(WorkerGroup(role="prefill", count=1), WorkerGroup(role="decode", count=2)),
        faults=(Fault(time_s=1.2, worker_id="prefill-0000"),),
    )
    measurement, _ = simulate(what, requests)
    assert_all_answered(measurement, requests)
    assert any(record.local_prefill for record in measurement.records)
    assert all(record.num_attempts == 1 for record in measurement.records)


def test_without_a_worker_left_requests_are_refused_not_forgotten() -> None:
    requests = traffic(40, 20.0)
    what = replace(
        scenario(),
        workers=(WorkerGroup(role="both", count=1),),
        faults=(Fault(time_s=1.0, worker_id="both-0000"),),
    )
    measurement, _ = simulate(what, requests)
    assert all(record.done or record.refusal for record in measurement.records)
    assert any(record.refusal for record in measurement.records)


def test_a_slow_worker_gets_less() -> None:
    groups = tuple(WorkerGroup(role="both", count=1, speed=speed) for speed in (1.0, 0.25))
    _, simulation = simulate(scenario(groups), traffic(60, 30.0))
    fast, slow = simulation.workers.values()
    # Turns, instead of this, would keep the slow one busy for four times as long.
    assert slow.busy_s < 2 * fast.busy_s


def test_the_planner_advises_but_nothing_changes() -> None:
    measurement, _ = simulate(scenario(), traffic(200, 10.0))
    assert measurement.advice
    assert all("prefill" in advice.desired for advice in measurement.advice)


def test_hundreds_of_workers_run() -> None:
    groups = (WorkerGroup(role="prefill", count=150), WorkerGroup(role="decode", count=150))
    requests = traffic(20, 100.0)
    measurement, simulation = simulate(scenario(groups), requests)
    assert_all_answered(measurement, requests)
    assert len(simulation.workers) == 300


def test_what_makes_no_sense_is_refused() -> None:
    with pytest.raises(ValueError, match="nobody decodes"):
        Scenario(workers=(WorkerGroup(role="prefill", count=1),))
    with pytest.raises(ValueError, match="must be one of"):
        WorkerGroup(role="decode", count=1, gpu="H1000")
    with pytest.raises(ValueError, match="no worker is called"):
        Simulation(replace(scenario(), faults=(Fault(time_s=1, worker_id="decode-0007"),)))
