"""The highest rate that workers could serve, whatever schedules them: what is left for a better layout to gain.

A step of n tokens takes, beside its attention, f(n). Whatever a schedule is, its steps have some sizes n, so every line
that is nowhere above f gives a bound: with f(n) >= d + c n, a request takes at least c for each of its tokens, its
attention, and its share of d for each of its steps. Steps are shared by at most as many sequences as fit at once; and
on a worker that decodes all the time there are at least as many as the target between tokens asks for. The lowest of
the bounds is taken. Nobody waits, no worker idles, and blocks move for nothing: a run can exceed it only by what was
not done when its last request came.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from tandem_engine.api import StepCost
from tandem_load.traffic import TrafficRequest

from tandem_sim.step_time import StepTime

# Sizes of steps at which f is looked at: all small ones, since it bends there, then every eighth up to what a step is
# taken to hold.
_LARGEST_STEP = 8192
_SIZES = (*range(1, 2048), *range(2048, _LARGEST_STEP + 1, 8))


@dataclass(frozen=True, kw_only=True, slots=True)
class Demand:
    """A mean request: what it asks of workers, whoever schedules it. Seconds of one worker."""

    num_tokens: float  # computed: the prompt's, and all of the answer's but the last
    num_decode_steps: float  # tokens of the answer after the first
    attention_s: float

    @classmethod
    def of(cls, requests: Sequence[TrafficRequest], step_time: StepTime) -> Demand:
        """Means over `requests`, with no prefix in common."""
        pair_s, kv_s = _attention_s(step_time)
        num_tokens = num_steps = attention_s = 0.0
        for request in requests:
            prompt, later = request.num_prompt_tokens, request.num_output_tokens - 1
            num_tokens += prompt + later
            num_steps += later
            attention_s += pair_s * prompt * prompt / 2 + kv_s * later * (prompt + (later - 1) / 2)
        count = len(requests)
        return cls(
            num_tokens=num_tokens / count,
            num_decode_steps=num_steps / count,
            attention_s=attention_s / count,
        )


def highest_rate(demand: Demand, step_time: StepTime, num_workers: int, sequences_at_once: int) -> float:
    """Requests per second that no schedule on so many workers exceeds.

    `sequences_at_once`: of one worker, the most that decode in one step.
    """
    return min(
        num_workers
        / (
            demand.num_tokens * token_s
            + demand.attention_s
            + step_s * demand.num_decode_steps / sequences_at_once
        )
        for step_s, token_s in lines_below(step_time)
    )


def highest_decoding_rate(
    demand: Demand, step_time: StepTime, num_workers: int, num_decoding: int, tpot_s: float
) -> float:
    """The same when `num_decoding` of the workers decode all the time, a token of each sequence every `tpot_s`.

    All of them: aggregated workers, with prompts in whatever chunks.
    """
    return max(
        0.0,
        min(
            (num_workers - num_decoding * step_s / tpot_s)
            / (demand.num_tokens * token_s + demand.attention_s)
            for step_s, token_s in lines_below(step_time)
        ),
    )


def lines_below(step_time: StepTime) -> Iterator[tuple[float, float]]:
    """(d, c) of lines that are nowhere above the time of a step: the sides of its lower convex hull with d >= 0."""
    hull: list[tuple[int, float]] = []
    for size in _SIZES:
        point = (size, step_time.step_s(StepCost(duration_ms=0, num_prefill_tokens=size), 0))
        while len(hull) > 1 and _slope(hull[-2], hull[-1]) >= _slope(hull[-2], point):
            hull.pop()
        hull.append(point)
    # Through the origin: steps cost no less per token than the largest.
    yield 0.0, min(seconds / size for size, seconds in hull)
    for left, right in pairwise(hull):
        token_s = _slope(left, right)
        step_s = left[1] - token_s * left[0]
        if step_s >= 0:
            yield step_s, token_s


def _slope(left: tuple[int, float], right: tuple[int, float]) -> float:
    return (right[1] - left[1]) / (right[0] - left[0])


def _attention_s(step_time: StepTime) -> tuple[float, float]:
    """Seconds per pair of a prompt's tokens, and per token of KV that a decode reads."""
    many = 1_000_000
    alone_s = step_time.step_s(StepCost(duration_ms=0, num_prefill_tokens=1), 0)
    pairs_s = step_time.step_s(StepCost(duration_ms=0, num_prefill_tokens=1), many)
    decode_s = step_time.step_s(StepCost(duration_ms=0, num_decode_sequences=1), 0)
    kv_s = step_time.step_s(StepCost(duration_ms=0, num_decode_sequences=1, decode_kv_tokens=many), 0)
    return (pairs_s - alone_s) / many, (kv_s - decode_s) / many
