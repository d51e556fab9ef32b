"""The simulator's engine model against the real torch engine: predicted and measured TTFT and TPOT.

    .venv/bin/python bench/engine_model.py [--rounds 5] [--requests 40] [--rate 3]

One torch engine on one thread serves rounds of Poisson arrivals. Before and after each round the worker's own online
fits (the ones that it sends in its heartbeats) are taken; the simulator gets the same arrivals and lengths, these fits
and the real scheduler, and says what the round should have taken. Fits from before a round are what a router has; fits
from after it leave out how the machine's own speed changed meanwhile. The first round only teaches.
Writes bench/results/engine_model.json.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median

from machine import describe_machine
from tandem_common.generation import Generation, SamplingParams, StoppingParams
from tandem_common.speed import SpeedFitter
from tandem_engine import Engine, EngineConfig, EngineInfo, create_engine
from tandem_sim.scenario import Control, Scenario, WorkerGroup
from tandem_sim.simulation import Simulation
from tandem_sim.step_time import FittedStepTime
from tandem_sim.traffic import VOCAB_SIZE, TrafficRequest

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
    """The real engine, with the fits that a worker would have made of it."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.fitter = SpeedFitter()
        self.seen: dict[str, Seen] = {}
        self._num_left = 0
        self._done = asyncio.Event()

    async def consume(self) -> None:
        """Take what the engine makes known, for ever."""
        async for output in self.engine.steps():
            now_s = time.perf_counter()
            for token in output.tokens:
                self.seen[token.request_id].times_s += [now_s] * len(token.token_ids)
                if token.finish_reason is not None:
                    self._num_left -= 1
            if output.cost is not None:
                self.fitter.observe(**asdict(output.cost))
            if self._num_left == 0:
                self._done.set()

    async def serve(self, requests: Sequence[TrafficRequest], seed: int) -> list[Seen]:
        """Send the requests at their times and wait for all answers."""
        draw = random.Random(seed)
        vocab_size = self.engine.info.vocab_size
        self.seen, self._num_left = {}, len(requests)
        self._done.clear()
        start_s = time.perf_counter()
        for request in requests:
            generation = Generation(
                request_id=f"{seed}-{request.index}",
                token_ids=[draw.randrange(4, vocab_size) for _ in range(request.num_prompt_tokens)],
                num_prompt_tokens=request.num_prompt_tokens,
                namespace=bytes(16),
                stopping=StoppingParams(max_tokens=request.num_output_tokens),
                sampling=SamplingParams(temperature=0.0),
            )
            await asyncio.sleep(max(0.0, start_s + request.time_s - time.perf_counter()))
            self.seen[generation.request_id] = Seen(sent_s=time.perf_counter(), times_s=[])
            self.engine.submit(generation)
        await asyncio.wait_for(self._done.wait(), 300)
        return list(self.seen.values())


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


async def compare(num_rounds: int, num_requests: int, rate: float) -> list[Figures]:
    """One figure for each round but the first."""
    engine = create_engine(EngineConfig(model=str(ROOT / "models" / "tandem-tiny"), threads=1))
    await engine.start()
    measured = Measured(engine)
    consumer = asyncio.create_task(measured.consume())
    figures = []
    try:
        for number in range(num_rounds + 1):
            # The first round is slow, so that there are steps with prompts only and steps with decodes only.
            requests = arrivals(num_requests, rate if number else rate / 4, seed=number)
            predicted = predict(requests, measured.fitter, engine.info) if number else []
            seen = await measured.serve(requests, seed=number)
            if predicted:
                after = predict(requests, measured.fitter, engine.info)
                figures.append(
                    Figures(
                        measured_ttft_ms=1e3 * median(request.ttft_s for request in seen),
                        measured_tpot_ms=1e3 * median(request.tpot_s for request in seen),
                        before=_prediction(seen, predicted),
                        after=_prediction(seen, after),
                    )
                )
    finally:
        consumer.cancel()
        await engine.stop()
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
    parser.add_argument("--rate", type=float, default=2.0)
    arguments = parser.parse_args()
    machine = describe_machine()
    print(machine)
    rounds = asyncio.run(compare(arguments.rounds, arguments.requests, arguments.rate))
    for figures in rounds:
        print(f"measured TTFT {figures.measured_ttft_ms:.1f} TPOT {figures.measured_tpot_ms:.2f} ms")
        for name, predicted in (("before", figures.before), ("after", figures.after)):
            print(
                f"  fits {name}: TTFT {predicted.ttft_ms:.1f} TPOT {predicted.tpot_ms:.2f} ms, "
                f"error per request {predicted.ttft_error:.0%} and {predicted.tpot_error:.0%}"
            )
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(
        json.dumps({"machine": machine, "rounds": [asdict(figures) for figures in rounds]}, indent=1),
        encoding="utf-8",
    )


if __name__ == "__main__":
    main()
