"""The estimates against traffic whose demand is known."""

from __future__ import annotations

import dataclasses
import random

import pytest
from tandem.v1 import cluster_pb2 as pb
from tandem_common.registry import RegisteredWorker
from tandem_common.speed import DecodeSpeed, PrefillSpeed
from tandem_planner.demand import MissingData, estimate_demand
from tandem_planner.observations import Observations, Traffic, Workers
from tandem_planner.observer import Observer
from tandem_planner.split import Split

PREFILL = PrefillSpeed(a_ms=5.0, b_ms=0.2, c_ms=0.0, num_samples=100)
DECODE = DecodeSpeed(a_ms=10.0, b_ms=0.5, c_ms=0.0, num_samples=100)
TICK_MS = 5.0

SEEN = Observations(
    model="m",
    workers=Workers(
        split=Split(num_prefill=2, num_decode=2),
        prefill_speed=PREFILL,
        decode_speed=DECODE,
        max_step_tokens=512,
        max_sequences=64,
        kv_tokens=100_000,
    ),
    traffic=Traffic(
        observed_s=60.0,
        split_rate=6.0,
        mean_rate=5.0,
        prefilled_rate=5.0,
        num_busy_prefill=0.5,
        num_busy_samples=100,
        num_decoding=4.0,
        num_decoding_samples=200,
        sequence_tokens=450.0,
        token_rate=500.0,
    ),
)


def with_traffic(**changes: object) -> Observations:
    return dataclasses.replace(SEEN, traffic=dataclasses.replace(SEEN.traffic, **changes))  # type: ignore[arg-type]


def with_workers(**changes: object) -> Observations:
    return dataclasses.replace(SEEN, workers=dataclasses.replace(SEEN.workers, **changes))  # type: ignore[arg-type]


def test_tokens_per_request_follow_from_both_rates() -> None:
    assert estimate_demand(SEEN).output_tokens == 100.0


def test_prompt_time_follows_from_how_busy_workers_are() -> None:
    assert estimate_demand(SEEN).prompt_ms == pytest.approx(100.0)


def test_with_few_busy_heartbeats_prompt_time_follows_from_length() -> None:
    # 450 tokens while decoding, less half of 100 of output: 400 tokens in one step.
    assert estimate_demand(with_traffic(num_busy_samples=5)).prompt_ms == pytest.approx(85.0)


def test_of_saturated_workers_the_greater_estimate_counts() -> None:
    seen = with_traffic(num_busy_prefill=1.95, prefilled_rate=50.0)
    assert estimate_demand(seen).prompt_ms == pytest.approx(85.0)


def test_prompt_time_is_known_without_a_prefill_fit_when_use_was_seen() -> None:
    assert estimate_demand(with_workers(prefill_speed=None)).prompt_ms == pytest.approx(100.0)


@pytest.mark.parametrize(
    ("seen", "what"),
    [
        (with_workers(decode_speed=None), "decode speed"),
        (with_traffic(num_decoding_samples=3), "seen decoding only 3 times"),
        (with_traffic(token_rate=None), "decode speed"),
        (
            dataclasses.replace(
                with_workers(prefill_speed=None), traffic=with_traffic(num_busy_samples=0).traffic
            ),
            "prefill speed",
        ),
    ],
)
def test_what_is_missing_is_named(seen: Observations, what: str) -> None:
    with pytest.raises(MissingData, match=what):
        estimate_demand(seen)


class SmallCluster:
    """Two prefill and two decode workers in steps of TICK_MS, as their heartbeats would show them."""

    def __init__(
        self, draw: random.Random, rate_per_s: float, prompt_tokens: int, output_tokens: int
    ) -> None:
        self._draw = draw
        self._arrival_chance = rate_per_s * TICK_MS / 1000.0
        self._prompt_tokens, self._output_tokens = prompt_tokens, output_tokens
        self._prompts: list[list[float]] = [[], []]
        self._sequences: list[list[float]] = [[], []]
        self._accepted: list[list[str]] = [[], [], [], []]
        self._num_requests = self._num_beats = 0

    def tick(self) -> None:
        prompt_ms = PREFILL.predict_ms(self._prompt_tokens, 0)
        if self._draw.random() < self._arrival_chance:
            index = min((0, 1), key=lambda i: len(self._prompts[i]))
            self._prompts[index].append(prompt_ms)
            self._accepted[index].append(f"r{self._num_requests}")
            self._num_requests += 1
        for index, prompts in enumerate(self._prompts):
            if prompts:
                prompts[0] -= TICK_MS
                if prompts[0] <= 0.0:
                    prompts.pop(0)
                    self._sequences[index].append(0.0)
        for index, sequences in enumerate(self._sequences):
            step_ms = DECODE.step_ms(len(sequences), 0)
            self._sequences[index] = [
                written + TICK_MS / step_ms
                for written in sequences
                if written + TICK_MS / step_ms < self._output_tokens
            ]

    def beats(self) -> dict[str, RegisteredWorker]:
        self._num_beats += 1
        workers = {}
        for index in range(4):
            role = pb.ROLE_PREFILL if index < 2 else pb.ROLE_DECODE
            prompts = self._prompts[index] if index < 2 else []
            sequences = self._sequences[index - 2] if index >= 2 else []
            card = pb.WorkerCard(
                worker_id=f"w{index}",
                epoch=1,
                model="m",
                role=role,
                status=pb.WORKER_STATUS_SERVING,
                block_size=16,
                num_blocks=4096,
                max_step_tokens=2048,
                max_sequences=64,
            )
            beat = pb.WorkerBeat(
                worker_id=card.worker_id,
                epoch=1,
                sequence=self._num_beats,
                queued_prefill_tokens=self._prompt_tokens * len(prompts),
                num_decoding=len(sequences),
                decode_kv_tokens=sum(self._prompt_tokens + int(written) for written in sequences),
                prefill_speed=PREFILL.to_proto() if index < 2 else None,
                decode_speed=DECODE.to_proto() if index >= 2 else None,
                accepted_request_ids=self._accepted[index][-20:],
            )
            workers[card.worker_id] = RegisteredWorker(card, beat)
        return workers


@pytest.mark.parametrize(
    ("rate", "prompt_tokens", "output_tokens"), [(4.0, 800, 50), (10.0, 300, 120), (1.0, 900, 200)]
)
def test_the_demand_of_a_small_cluster_is_found_from_its_heartbeats(
    rate: float, prompt_tokens: int, output_tokens: int
) -> None:
    cluster, observer = SmallCluster(random.Random(11), rate, prompt_tokens, output_tokens), Observer(60)
    for tick in range(round(90_000 / TICK_MS)):
        cluster.tick()
        if tick % 100 == 0:
            observer.observe(1000.0 + tick * TICK_MS / 1000.0, cluster.beats())
    (seen,) = observer.observations(1090.0)
    demand = estimate_demand(seen)
    assert seen.traffic.mean_rate == pytest.approx(rate, rel=0.35)
    assert demand.output_tokens == pytest.approx(output_tokens, rel=0.2)
    assert demand.sequence_tokens == pytest.approx(prompt_tokens + output_tokens / 2, rel=0.1)
    assert demand.prompt_ms == pytest.approx(PREFILL.predict_ms(prompt_tokens, 0), rel=0.3)
