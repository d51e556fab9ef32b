"""Made-up traffic: Poisson arrivals of several kinds of requests."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass

from tandem_load.traffic import TrafficRequest


@dataclass(frozen=True, kw_only=True, slots=True)
class Kind:
    """Requests of one kind: log-normal lengths by median and spread (sigma of the logarithm), cut at `longest`."""

    label: str
    share: float  # of all requests
    prompt_median: int
    output_median: int
    prompt_sigma: float = 0.0
    output_sigma: float = 0.0
    longest: int = 100_000


# 1 % of prompts with 32 k tokens among short chats.
MIXED = (
    Kind(
        label="chat",
        share=0.99,
        prompt_median=600,
        prompt_sigma=0.8,
        output_median=200,
        output_sigma=0.6,
        longest=8000,
    ),
    Kind(label="long", share=0.01, prompt_median=32_000, output_median=200, output_sigma=0.6),
)
CHAT_ONLY = (
    Kind(
        label="chat",
        share=1.0,
        prompt_median=600,
        prompt_sigma=0.8,
        output_median=200,
        output_sigma=0.6,
        longest=8000,
    ),
)
MIXES = {"mixed": MIXED, "chat": CHAT_ONLY}


def poisson(kinds: Sequence[Kind], *, rate: float, num_requests: int, seed: int) -> list[TrafficRequest]:
    """`num_requests` requests at `rate` per second, each of a kind drawn by its share."""
    draw = random.Random(seed)
    weights = [kind.share for kind in kinds]
    requests = []
    time_s = 0.0
    for index in range(num_requests):
        time_s += draw.expovariate(rate)
        (kind,) = draw.choices(kinds, weights)
        requests.append(
            TrafficRequest(
                index=index,
                time_s=time_s,
                num_prompt_tokens=_length(draw, kind.prompt_median, kind.prompt_sigma, kind.longest),
                num_output_tokens=_length(draw, kind.output_median, kind.output_sigma, kind.longest),
                label=kind.label,
            )
        )
    return requests


def _length(draw: random.Random, median: int, sigma: float, longest: int) -> int:
    return min(longest, max(1, round(median * math.exp(draw.gauss(0.0, sigma)))))
