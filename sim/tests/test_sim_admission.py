"""Queue, admission, fairness and several routers on virtual time."""

from dataclasses import replace

from tandem_load.traffic import TrafficRequest
from tandem_sim.drain_watch import DrainWatch
from tandem_sim.measurement import Measurement, RequestRecord
from tandem_sim.scenario import Scenario, WorkerGroup
from tandem_sim.simulation import Simulation
from tandem_sim.synthetic import Kind, poisson

SCENARIO = Scenario(
    model="llama-3-8b",
    workers=(WorkerGroup(role="prefill", count=1), WorkerGroup(role="decode", count=1)),
    block_size=64,
    with_planner=False,
)
PROMPTS = (Kind(label="prompt", share=1.0, prompt_median=4000, output_median=2),)


def prompts(rate: float, num_requests: int, **changes: object) -> list[TrafficRequest]:
    made = poisson(PROMPTS, rate=rate, num_requests=num_requests, seed=3)
    return [replace(request, **changes) for request in made]  # type: ignore[arg-type]


def simulate(what: Scenario, requests: list[TrafficRequest]) -> Measurement:
    simulation = Simulation(what)
    measurement = simulation.run(requests)
    simulation.check_integrity()
    return measurement


def record(index: int = 0) -> RequestRecord:
    return RequestRecord(index=index, label="", num_prompt_tokens=1, num_output_tokens=1, sent_s=0.0)


def test_what_cannot_start_in_time_waits_in_the_router_and_is_answered() -> None:
    measurement = simulate(SCENARIO, prompts(40.0, 200))
    assert all(r.done for r in measurement.records)
    waited = [r for r in measurement.records if r.routed_after_s > 0]
    assert len(waited) > 50
    for r in waited:
        assert r.ttft_s is not None
        assert r.ttft_s > r.routed_after_s


def test_overload_with_a_deadline_is_refused_at_once_and_told_when_to_come_back() -> None:
    measurement = simulate(SCENARIO, prompts(40.0, 400, deadline_s=1.0))
    # Until workers know how fast they are nobody can tell who will be late: those wait for as long as they may.
    refused = [r for r in measurement.records if r.refusal and r.sent_s > 3.0]
    assert len(refused) > 100
    for r in refused:
        assert r.refusal == "RESOURCE_EXHAUSTED"
        assert r.refused_after_s < 0.05
        assert r.retry_after_s > 0
        assert r.drained_after_s is not None


def test_batch_work_waits_for_interactive_work() -> None:
    requests = [replace(request, is_batch=bool(request.index % 2)) for request in prompts(25.0, 300)]
    records = simulate(SCENARIO, requests).records
    waits = {
        is_batch: [r.routed_after_s for r in records if r.is_batch is is_batch] for is_batch in (False, True)
    }
    assert sum(waits[True]) > 2 * sum(waits[False])


def test_tenants_are_served_by_weight_through_several_routers() -> None:
    requests = [
        replace(request, tenant="gold" if request.index % 8 < 4 else "plain")
        for request in prompts(60.0, 600)
    ]
    scenario = replace(
        SCENARIO,
        num_routers=4,
        router={
            "tenant_weights": ("gold=3", "plain=1"),
            "max_waiting_s": 600.0,
            "interactive_deadline_ms": 0.0,
        },
    )
    records = simulate(scenario, requests).records
    assert all(r.done for r in records)
    # Both have some waiting until then.
    started = [r for r in records if 3.0 <= r.sent_s + r.routed_after_s <= 21.0]
    gold = sum(r.tenant == "gold" for r in started)
    assert 2.5 <= gold / (len(started) - gold) <= 3.5


def test_a_refusal_is_drained_when_all_before_it_have_begun() -> None:
    watch, refused = DrainWatch(), record()
    first, second = watch.arrived(), watch.arrived()
    third = watch.arrived()
    watch.refused(third, refused, 1.0)
    watch.settled(watch.arrived(), 1.5)
    watch.settled(second, 2.0)
    assert refused.drained_after_s is None
    watch.settled(first, 4.0)
    assert refused.drained_after_s == 3.0
    at_once = record(1)
    watch.refused(watch.arrived(), at_once, 5.0)
    assert at_once.drained_after_s == 0.0
