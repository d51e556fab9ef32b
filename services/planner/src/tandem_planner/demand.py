"""What one request asks of the workers, worked out from what heartbeats say.

Prompt and output lengths are in no heartbeat. They follow from two laws that hold for every system in equilibrium,
whatever its distributions (sources: J. Little, "A Proof for the Queuing Formula L = λW" (1961); P. Denning and
J. Buzen, "The Operational Analysis of Queueing Network Models" (1978), for the utilisation law):

- tokens per request = tokens written per second ÷ requests per second, with the tokens per second of each worker
  from its fitted step time;
- prompt time per request = busy prefill workers ÷ prompts per second.

Where too few heartbeats found a prefill worker busy, or all of them did (then the law says nothing about what
waits), the prompt's length is taken instead: mean length of the sequences that decode, less half of the output. It
counts cached tokens as if they were computed, so it errs towards more workers.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from tandem_planner.observations import Observations

# Heartbeats that found a prefill worker busy, before their share is believed.
_MIN_BUSY_SAMPLES = 30
# Above this the workers may be hiding a growing line.
_SATURATED = 0.9
# Times that a worker was seen decoding, before lengths are believed.
_MIN_DECODING_SAMPLES = 8


class MissingData(Exception):
    """No plan can be made; the message says what is missing."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Demand:
    """A request of the present traffic, on average."""

    prompt_ms: float  # of a prefill worker, alone
    num_prompt_steps: int
    output_tokens: float
    sequence_tokens: float  # length while decoding


def estimate_demand(seen: Observations) -> Demand:
    """The demand behind what was seen; raises MissingData."""
    traffic, workers = seen.traffic, seen.workers
    if workers.decode_speed is None:
        raise MissingData("no worker has measured its decode speed yet")
    if traffic.num_decoding_samples < _MIN_DECODING_SAMPLES:
        raise MissingData(
            f"sequences were seen decoding only {traffic.num_decoding_samples} times, "
            f"{_MIN_DECODING_SAMPLES} are needed to know their lengths"
        )
    if traffic.token_rate is None or traffic.mean_rate <= 0.0:
        raise MissingData("the decode speed is known for too small a part of the traffic seen")
    output_tokens = max(1.0, traffic.token_rate / traffic.mean_rate)
    sequence_tokens = max(1.0, traffic.sequence_tokens)
    prompt_tokens = max(1, math.ceil(sequence_tokens - 0.5 * output_tokens))
    by_length_ms = (
        workers.prefill_speed.predict_prompt_ms(prompt_tokens, 0, workers.max_step_tokens)
        if workers.prefill_speed
        else None
    )
    by_use_ms = (
        1000.0 * traffic.num_busy_prefill / traffic.prefilled_rate
        if traffic.num_busy_samples >= _MIN_BUSY_SAMPLES and traffic.prefilled_rate > 0.0
        else None
    )
    saturated = traffic.num_busy_prefill > _SATURATED * workers.split.num_prefill
    if by_use_ms is not None and by_length_ms is not None:
        prompt_ms = max(by_use_ms, by_length_ms) if saturated else by_use_ms
    elif by_use_ms is not None and not saturated:
        prompt_ms = by_use_ms
    elif by_length_ms is not None:
        prompt_ms = by_length_ms
    else:
        raise MissingData("no worker has measured its prefill speed yet")
    return Demand(
        prompt_ms=prompt_ms,
        num_prompt_steps=math.ceil(prompt_tokens / workers.max_step_tokens),
        output_tokens=output_tokens,
        sequence_tokens=sequence_tokens,
    )
