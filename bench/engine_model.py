"""The simulator's engine model against the real torch engine: predicted and measured TTFT and TPOT.

    .venv/bin/python bench/engine_model.py [--rounds 5] [--requests 40] [--rate 4] [--clock cpu]

The torch engine's scheduler and runner on one thread serve rounds of Poisson arrivals. Before and after each round the
worker's own online fits (the ones that it sends in its heartbeats) are taken; the simulator gets the same arrivals and
lengths, these fits and the real scheduler, and says what the round should have taken. Fits from before a round are what
a router has; fits from after it leave out how the machine's own speed changed meanwhile. The first round only teaches.
Writes bench/results/engine_model.json.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median

from machine import describe_machine
from tandem_common.generation import Generation, SamplingParams, StoppingParams
from tandem_common.speed import SpeedFitter
from tandem_engine import EngineConfig, EngineInfo
from tandem_engine.block_pool import BlockPool
from tandem_engine.scheduler import Scheduler
from tandem_engine.step_cost import step_cost
from tandem_engine.torch_engine import TorchRunner
from tandem_load.traffic import VOCAB_SIZE, TrafficRequest
from tandem_sim.scenario import Control, Scenario, WorkerGroup
from tandem_sim.simulation import Simulation
from tandem_sim.step_time import FittedStepTime

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "bench" / "results" / "engine_model.json"


@dataclass(frozen=True, kw_only=True)
class Figures:
    """Medians over the requests of one round, and the median error of the predictions of each request.

    `before` and `after`: with the fits as of the start of the round, and as of its end.
    """

    measured_ttft_ms: float
    measured_tpot_ms: float
    before: Prediction
    after: Prediction


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """Medians over requests; an error is |predicted - measured| / measured."""

    ttft_ms: float
    tpot_ms: float
    ttft_error: float
    tpot_error: float


@dataclass(kw_only=True)
class Seen:
    """One request as it was measured."""

    sent_s: float
    times_s: list[float]

    @property
    def ttft_s(self) -> float:
        """Time to the first token."""
        return self.times_s[0] - self.sent_s

    @property
    def tpot_s(self) -> float:
        """Mean gap between tokens."""
        return (self.times_s[-1] - self.times_s[0]) / (len(self.times_s) - 1)


class Measured:
    """The real scheduler and torch runner in the engine's loop, with the fits that a worker would have made of it.

    Arrivals come at times of the given clock, which stands still while there is nothing to do. With the CPU time of
    this thread, other processes of the machine do not count.
    """

    def __init__(self, config: EngineConfig, clock: Callable[[], float]) -> None:
        self._runner = TorchRunner(config)
        self._clock = clock
        self.info = self._runner.load()
        self._scheduler = Scheduler(self.info, BlockPool(self.info.num_blocks, self.info.block_size))
        self.fitter = SpeedFitter()

    def serve(self, requests: Sequence[TrafficRequest], seed: int) -> list[Seen]:
        """Compute all requests, as soon as they have arrived."""
        draw = random.Random(seed)
        seen: dict[str, Seen] = {}
        waiting = deque(requests)
        now_s, num_left = 0.0, len(requests)
        while num_left:
            started_s = self._clock()
            while waiting and waiting[0].time_s <= now_s:
                request = waiting.popleft()
                generation = self._generation(request, seed, draw)
                seen[generation.request_id] = Seen(sent_s=request.time_s, times_s=[])
                self._scheduler.submit(generation)
            batch = self._scheduler.schedule()
            if not batch.sequences:
                now_s = waiting[0].time_s
                continue
            executing_s = self._clock()
            drawn = self._runner.execute(batch)
            cost = step_cost(batch, 1e3 * (self._clock() - executing_s))
            output = self._scheduler.postprocess(batch, drawn, cost)
            self.fitter.observe(**asdict(cost))
            now_s += self._clock() - started_s
            for token in output.reports():
                seen[token.request_id].times_s.append(now_s)
                num_left -= token.finish_reason is not None
        return list(seen.values())

    def close(self) -> None:
        """Free the model."""
        self._runner.close()

    def _generation(self, request: TrafficRequest, seed: int, draw: random.Random) -> Generation:
        return Generation(
            request_id=f"{seed}-{request.index}",
            token_ids=[draw.randrange(4, self.info.vocab_size) for _ in range(request.num_prompt_tokens)],
            num_prompt_tokens=request.num_prompt_tokens,
            namespace=bytes(16),
            stopping=StoppingParams(max_tokens=request.num_output_tokens),
            sampling=SamplingParams(temperature=0.0),
        )


def arrivals(num_requests: int, rate: float, seed: int) -> list[TrafficRequest]:
    """Prompts of 32 to 1,500 tokens, answers of 16 to 64."""
    draw = random.Random(seed)
    time_s, requests = 0.0, []
    for index in range(num_requests):
        time_s += draw.expovariate(rate)
        requests.append(
            TrafficRequest(
                index=index,
                time_s=time_s,
                num_prompt_tokens=draw.choice((32, 100, 300, 700, 1500)),
                num_output_tokens=draw.randint(16, 64),
            )
        )
    return requests


def predict(
    requests: Sequence[TrafficRequest], fitter: SpeedFitter, info: EngineInfo
) -> list[tuple[float, float]]:
    """TTFT and TPOT of each request, by the simulator."""
    prefill, decode = fitter.prefill, fitter.decode
    if prefill is None or decode is None:
        raise RuntimeError("the first round was too short for a fit; send more requests")
    scenario = Scenario(
        workers=(WorkerGroup(role="both", count=1),),
        policy="round_robin",
        block_size=info.block_size,
        control=Control(rpc_s=0.0),
        with_planner=False,
    )
    simulation = Simulation(
        scenario,
        {
            "both-0000": (
                FittedStepTime(prefill=prefill, decode=decode),
                replace(info, vocab_size=VOCAB_SIZE),
            )
        },
    )
    records = simulation.run(requests).records
    return [(record.ttft_s or 0.0, record.tpot_s or 0.0) for record in records]


def compare(num_rounds: int, num_requests: int, rate: float, clock: Callable[[], float]) -> list[Figures]:
    """One figure for each round but the first."""
    measured = Measured(EngineConfig(model=str(ROOT / "models" / "tandem-tiny"), threads=1), clock)
    figures = []
    try:
        for number in range(num_rounds + 1):
            # The first round is slow, so that there are steps with prompts only and steps with decodes only.
            requests = arrivals(num_requests, rate if number else rate / 4, seed=number)
            before = predict(requests, measured.fitter, measured.info) if number else []
            seen = measured.serve(requests, seed=number)
            if before:
                after = predict(requests, measured.fitter, measured.info)
                figures.append(
                    Figures(
                        measured_ttft_ms=1e3 * median(request.ttft_s for request in seen),
                        measured_tpot_ms=1e3 * median(request.tpot_s for request in seen),
                        before=_prediction(seen, before),
                        after=_prediction(seen, after),
                    )
                )
    finally:
        measured.close()
    return figures


def _prediction(seen: Sequence[Seen], predicted: Sequence[tuple[float, float]]) -> Prediction:
    pairs = list(zip(seen, predicted, strict=True))
    return Prediction(
        ttft_ms=1e3 * median(ttft_s for ttft_s, _ in predicted),
        tpot_ms=1e3 * median(tpot_s for _, tpot_s in predicted),
        ttft_error=median(abs(ttft_s - request.ttft_s) / request.ttft_s for request, (ttft_s, _) in pairs),
        tpot_error=median(abs(tpot_s - request.tpot_s) / request.tpot_s for request, (_, tpot_s) in pairs),
    )


def main() -> None:
    """Measure, predict, print, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--requests", type=int, default=40)
    parser.add_argument("--rate", type=float, default=4.0)
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall", help="cpu: on a shared machine")
    arguments = parser.parse_args()
    machine = describe_machine()
    print(machine)
    clock = time.thread_time if arguments.clock == "cpu" else time.perf_counter
    rounds = compare(arguments.rounds, arguments.requests, arguments.rate, clock)
    for figures in rounds:
        print(f"measured TTFT {figures.measured_ttft_ms:.1f} TPOT {figures.measured_tpot_ms:.2f} ms")
        for name, predicted in (("before", figures.before), ("after", figures.after)):
            print(
                f"  fits {name}: TTFT {predicted.ttft_ms:.1f} TPOT {predicted.tpot_ms:.2f} ms, "
                f"error per request {predicted.ttft_error:.0%} and {predicted.tpot_error:.0%}"
            )
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(
        json.dumps(
            {"machine": machine, "clock": arguments.clock, "rounds": [asdict(figures) for figures in rounds]},
            indent=1,
        ),
        encoding="utf-8",
    )


if __name__ == "__main__":
    main()
