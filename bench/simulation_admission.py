"""What queue, classes, fairness and admission do, on virtual time: batch filling, tenants, overload.

    .venv/bin/python bench/simulation_admission.py [--only capacity,overload,cold,batch,tenants]

2 prefill + 2 decode workers of the 70B shape on 4 H100 each, chats only (median 600 tokens in, 200 out), targets TTFT
2 s and TPOT 50 ms. `capacity` sweeps the rate without deadlines; its best goodput is what the others are measured by.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from statistics import median

from tandem_load.histogram import percentile
from tandem_load.traffic import TrafficRequest
from tandem_sim.measurement import Measurement, RequestRecord
from tandem_sim.report import meets
from tandem_sim.scenario import RouterSetting, Scenario, Targets, WorkerGroup
from tandem_sim.simulation import Simulation
from tandem_sim.synthetic import CHAT_ONLY, poisson

WORKERS = (
    WorkerGroup(role="prefill", count=2, max_step_tokens=2048),
    WorkerGroup(role="decode", count=2, max_step_tokens=512),
)
TARGETS = Targets()
SCENARIO = Scenario(workers=WORKERS, block_size=64, targets=TARGETS, with_planner=False)
SECONDS = 60.0
WARM_S = 20.0


def simulate(scenario: Scenario, requests: Sequence[TrafficRequest]) -> Measurement:
    """Run."""
    return Simulation(scenario).run(requests)


def chats(rate: float, seconds: float = SECONDS, *, seed: int = 7, **changes: object) -> list[TrafficRequest]:
    """Chats at a rate for so long."""
    made = poisson(CHAT_ONLY, rate=rate, num_requests=round(rate * seconds), seed=seed)
    return [replace(request, **changes) for request in made]  # type: ignore[arg-type]


def merged(*streams: Sequence[TrafficRequest]) -> list[TrafficRequest]:
    """All streams together, numbered anew."""
    ordered = sorted((r for stream in streams for r in stream), key=lambda r: r.time_s)
    return [replace(request, index=index) for index, request in enumerate(ordered)]


def warmed(requests: Sequence[TrafficRequest]) -> list[TrafficRequest]:
    """After a while of light traffic, in which workers learn how fast they are."""
    return merged(chats(10.0, WARM_S, seed=6), [replace(r, time_s=r.time_s + WARM_S) for r in requests])


def measured(records: Sequence[RequestRecord]) -> list[RequestRecord]:
    """Interactive requests after the warm-up."""
    return [record for record in records if record.sent_s >= WARM_S and not record.is_batch]


def goodput(records: Sequence[RequestRecord]) -> float:
    """Requests in target per second."""
    return sum(meets(record, TARGETS) for record in records) / SECONDS


def busy(measurement: Measurement) -> str:
    """Share of time in steps, by role, while requests came."""
    samples = [s for s in measurement.samples if WARM_S + 5 <= s.time_s <= WARM_S + SECONDS]
    shares = {
        role: sum(sample.utilisation[role] for sample in samples) / len(samples)
        for role in ("prefill", "decode")
    }
    return ", ".join(f"{role} {share:.1%}" for role, share in shares.items())


def ttft_ms(records: Sequence[RequestRecord], share: float) -> float:
    """Percentile of those who got a token."""
    return 1e3 * (percentile([r.ttft_s for r in records if r.ttft_s is not None], share) or 0.0)


def capacity(rates: Sequence[float]) -> float:
    """The best goodput over the rates."""
    best = 0.0
    for rate in rates:
        measurement = simulate(SCENARIO, warmed(chats(rate)))
        records = measured(measurement.records)
        good = goodput(records)
        print(
            f"capacity: {rate:5.1f}/s sent, {good:5.2f}/s in target, TTFT p50 {ttft_ms(records, 0.5):.0f}, "
            f"p99 {ttft_ms(records, 0.99):.0f} ms; busy {busy(measurement)}"
        )
        best = max(best, good)
    return best


def overload(peak: float, times: float = 3.0) -> None:
    """Far more than can be served, with a deadline of the target."""
    measurement = simulate(SCENARIO, warmed(chats(times * peak, deadline_s=TARGETS.ttft_s)))
    records = measured(measurement.records)
    refused = [record for record in records if record.refusal]
    told = [(r.retry_after_s, r.drained_after_s) for r in refused if r.retry_after_s and r.drained_after_s]
    admitted = [record for record in records if not record.refusal]
    at_once = sum(record.refused_after_s <= 0.05 for record in refused)
    print(
        f"overload: {len(records) / SECONDS:.1f}/s sent, {goodput(records):.2f}/s in target, "
        f"{goodput(records) / peak:.1%} of the peak; {len(refused)} refused, {at_once / len(refused):.1%} of them "
        f"within 50 ms; of {len(admitted)} let in {sum(meets(r, TARGETS) for r in admitted) / len(admitted):.1%} in "
        f"target, TTFT p99 {ttft_ms(records, 0.99):.0f} ms"
    )
    print(
        f"  Retry-After: median {median(said for said, _ in told):.2f} s, all before them were started after "
        f"{median(seen for _, seen in told):.2f} s, median error "
        f"{median(abs(said - seen) / seen for said, seen in told):.0%} of {len(told)}"
    )


def cold(peak: float, times: float = 3.0) -> None:
    """The same overload from the first second on, when no worker knows how fast it is."""
    measurement = simulate(SCENARIO, chats(times * peak, 30.0, deadline_s=TARGETS.ttft_s))
    for first_s in range(0, 30, 5):
        records = [r for r in measurement.records if first_s <= r.sent_s < first_s + 5]
        admitted = [record for record in records if not record.refusal]
        good = sum(meets(record, TARGETS) for record in records)
        print(
            f"cold start, from {first_s} s: {len(records) / 5:.1f}/s sent, {good / 5:.1f}/s in target; "
            f"{len(records) - len(admitted)} refused, of {len(admitted)} let in {good / max(1, len(admitted)):.1%} in "
            f"target, TTFT p99 {ttft_ms(admitted, 0.99):.0f} ms"
        )


def batch(peak: float, share: float = 0.4) -> None:
    """Interactive work at a part of the peak, alone and with batch work without end."""
    interactive = chats(share * peak)
    alone = simulate(SCENARIO, warmed(interactive))
    both = simulate(SCENARIO, warmed(merged(interactive, chats(1.2 * peak, seed=8, is_batch=True))))
    before, after = measured(alone.records), measured(both.records)
    done = sum(r.is_batch and r.done and (r.last_token_s or 0) <= WARM_S + SECONDS for r in both.records)
    print(
        f"batch: interactive goodput {goodput(before):.2f}/s alone, {goodput(after):.2f}/s beside batch work "
        f"({goodput(after) / goodput(before):.1%}); TTFT p50 {ttft_ms(before, 0.5):.0f} and "
        f"{ttft_ms(after, 0.5):.0f} ms; busy {busy(alone)} alone, {busy(both)} beside it; "
        f"{done / SECONDS:.1f} batch requests/s done"
    )


def tenants(peak: float, num_routers: int = 4) -> None:
    """Two tenants, weights 4 and 1, who both ask for more than there is."""
    requests = merged(chats(1.4 * peak, seed=9, tenant="gold"), chats(0.7 * peak, seed=10, tenant="plain"))
    for routers in (1, num_routers):
        settings: dict[str, RouterSetting] = {
            "tenant_weights": ("gold=4", "plain=1"),
            "interactive_deadline_ms": 0.0,
            "max_waiting_s": 600.0,
            "max_waiting": 100_000,
        }
        measurement = simulate(replace(SCENARIO, num_routers=routers, router=settings), requests)
        served = {tenant: _served(measurement.records, tenant) for tenant in ("gold", "plain")}
        print(
            f"tenants: {routers} routers, {served['gold']} and {served['plain']} tokens served in "
            f"{SECONDS - 10:.0f} s, {served['gold'] / served['plain']:.2f}:1"
        )


def _served(records: Sequence[RequestRecord], tenant: str) -> int:
    """Prompt and answer of what was started while both waited."""
    return sum(
        record.num_prompt_tokens + record.num_output_tokens
        for record in records
        if record.tenant == tenant
        and not record.refusal
        and WARM_S + 10 <= record.sent_s + record.routed_after_s <= WARM_S + SECONDS
    )


def main() -> None:
    """Run what was asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", default="capacity,overload,cold,batch,tenants")
    parser.add_argument("--rates", default="40,48,56,64")
    parser.add_argument("--peak", type=float, default=0.0, help="requests/s; 0: as `capacity` finds")
    arguments = parser.parse_args()
    names = arguments.only.split(",")
    peak = arguments.peak
    if "capacity" in names or not peak:
        peak = peak or capacity([float(rate) for rate in arguments.rates.split(",")])
    if "overload" in names:
        overload(peak)
    if "cold" in names:
        cold(peak)
    if "batch" in names:
        batch(peak)
    if "tenants" in names:
        tenants(peak)


if __name__ == "__main__":
    main()
