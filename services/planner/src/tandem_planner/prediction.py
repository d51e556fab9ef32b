"""The latencies that a number of workers would give the present traffic."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from tandem_planner.demand import Demand
from tandem_planner.observations import Observations
from tandem_planner.queueing import SharedProcessor, WaitingLine
from tandem_planner.split import Split
from tandem_planner.targets import Targets

# More sequences than this are not looked at one by one.
_MAX_SEQUENCES = 2_048


@dataclass(frozen=True, kw_only=True, slots=True)
class Prediction:
    """Latencies that the wanted share of requests stays within; infinite where a line grows for ever."""

    ttft_ms: float
    itl_ms: float

    def excess(self, targets: Targets) -> float:
        """The worse of the two latencies in parts of its target; at most 1 when both are met."""
        return max(self.ttft_ms / targets.ttft_ms, self.itl_ms / targets.itl_ms)

    def __str__(self) -> str:
        return f"TTFT {_milliseconds(self.ttft_ms)}, ITL {_milliseconds(self.itl_ms)}"


def _milliseconds(value: float) -> str:
    if not math.isfinite(value):
        return "without bound"
    return f"{value:.0f} ms" if value >= 100.0 else f"{value:.2g} ms"


@dataclass(frozen=True, kw_only=True, slots=True)
class Predictor:
    """What would happen with other numbers of workers, all else equal.

    Assumptions: every prompt of the split side is computed by a prefill worker, though decode workers may compute some
    (errs towards more prefill workers); handoffs overlap with prefill; requests are spread over decode workers at
    random (the router does better); service times vary by `service_cv2`.
    """

    seen: Observations
    demand: Demand
    service_cv2: float
    share: float  # of requests that each latency must hold for

    def ttft_ms(self, num_prefill: int) -> float:
        """First token with so many prefill workers."""
        if not num_prefill:
            return math.inf
        return WaitingLine(
            num_servers=num_prefill,
            rate_per_ms=self.seen.traffic.split_rate / 1000.0,
            service_ms=self.demand.prompt_ms,
            arrival_cv2=self.seen.traffic.arrival_cv2,
            service_cv2=self.service_cv2,
        ).sojourn_quantile_ms(self.share)

    def itl_ms(self, num_decode: int) -> float:
        """Gap between tokens with so many decode workers."""
        return self._step_quantile_ms(num_decode, self.seen.traffic.split_rate, 1.0)

    def aggregated(self, num_workers: int, rate: float) -> Prediction:
        """Both latencies when `num_workers` prefill and decode `rate` requests per second on their own.

        Decoding gets the time that prompts leave over; a prompt's step carries the batch that decodes along.
        """
        if not num_workers:
            return Prediction(ttft_ms=math.inf, itl_ms=math.inf)
        per_worker_ms = rate / 1000.0 / num_workers
        left = 1.0 - per_worker_ms * self.demand.prompt_ms
        if left <= 0.0:
            return Prediction(ttft_ms=math.inf, itl_ms=math.inf)
        itl_ms = self._step_quantile_ms(num_workers, rate, left)
        line = WaitingLine(
            num_servers=num_workers,
            rate_per_ms=rate / 1000.0,
            service_ms=self.demand.prompt_ms + self.demand.num_prompt_steps * min(itl_ms * left, 1e9),
            arrival_cv2=self.seen.traffic.arrival_cv2,
            service_cv2=self.service_cv2,
        )
        return Prediction(ttft_ms=line.sojourn_quantile_ms(self.share), itl_ms=itl_ms)

    def split(self, split: Split) -> Prediction:
        """Both latencies of the prefill and decode workers of `split`.

        Without prefill workers, decode workers compute the prompts too.
        """
        if not split.num_prefill:
            return self.aggregated(split.num_decode, self.seen.traffic.split_rate)
        return Prediction(ttft_ms=self.ttft_ms(split.num_prefill), itl_ms=self.itl_ms(split.num_decode))

    def whole(self, split: Split) -> Prediction:
        """Both latencies of all workers of `split`: the worse of the two sides that have traffic."""
        sides = []
        if self.seen.traffic.split_rate > 0.0:
            sides.append(self.split(split))
        if self.seen.traffic.both_rate > 0.0:
            sides.append(self.aggregated(split.num_both, self.seen.traffic.both_rate))
        return Prediction(
            ttft_ms=max((side.ttft_ms for side in sides), default=0.0),
            itl_ms=max((side.itl_ms for side in sides), default=0.0),
        )

    def prefill_utilisation(self, num_prefill: int) -> float:
        """Share of time that so many prefill workers would be busy; above 1: overloaded."""
        return self.seen.traffic.split_rate / 1000.0 * self.demand.prompt_ms / max(1, num_prefill)

    def _step_quantile_ms(self, num_workers: int, rate: float, share_of_time: float) -> float:
        if not num_workers:
            return math.inf
        workers = self.seen.workers
        places = int(workers.kv_tokens // self.demand.sequence_tokens)
        return SharedProcessor(
            rate_per_ms=rate / 1000.0 / num_workers,
            num_steps=self.demand.output_tokens,
            step_ms=self._step_time(share_of_time),
            max_sequences=max(1, min(_MAX_SEQUENCES, workers.max_sequences, places)),
        ).step_quantile_ms(self.share)

    def _step_time(self, share_of_time: float) -> Callable[[int], float]:
        """Step time by number of sequences of the present mean length."""
        speed = self.seen.workers.decode_speed
        if speed is None:
            raise ValueError("a demand was estimated without a decode speed")
        base_ms = speed.a_ms / share_of_time
        each_ms = (speed.b_ms + speed.c_ms * self.demand.sequence_tokens) / share_of_time
        return lambda num_sequences: base_ms + each_ms * num_sequences
