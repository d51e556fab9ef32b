"""What a plan rests on: one model's workers and traffic as they are now."""

from __future__ import annotations

from dataclasses import dataclass

from tandem_common.speed import DecodeSpeed, PrefillSpeed

from tandem_planner.split import Split


@dataclass(frozen=True, kw_only=True, slots=True)
class Workers:
    """One model's workers. Sizes and speeds are means over those who know them."""

    split: Split  # those that serve
    num_draining: int = 0
    num_silent: int = 0  # registered and serving, but without a heartbeat
    prefill_speed: PrefillSpeed | None = None
    decode_speed: DecodeSpeed | None = None
    max_step_tokens: int = 1
    max_sequences: int = 1
    kv_tokens: int = 1  # room of one worker


@dataclass(frozen=True, kw_only=True, slots=True)
class Traffic:
    """One model's traffic in the window that the planner remembers. Rates are per second."""

    observed_s: float  # part of the window that was really watched
    # Requests to plan for, by where they came: prefill and decode workers, or workers of role both. A rise counts
    # more than the mean.
    split_rate: float = 0.0
    both_rate: float = 0.0
    mean_rate: float = 0.0  # requests, over the whole window
    arrival_cv2: float = 1.0  # variation of arrivals, 1 for independent users
    prefilled_rate: float = 0.0  # requests that prefill workers accepted
    num_busy_prefill: float = 0.0  # prefill workers that had work, on average
    num_busy_samples: int = 0  # heartbeats that said so
    num_decoding: float = 0.0  # sequences, on average, over all workers
    num_decoding_samples: int = 0  # times that a worker was seen decoding
    sequence_tokens: float = 0.0  # mean length of a decoding sequence
    token_rate: float | None = None  # tokens written; None when the decode speed is not known
    queued_prefill_tokens: float = 0.0  # on average, over all workers

    @property
    def rate(self) -> float:
        """All requests to plan for."""
        return self.split_rate + self.both_rate


@dataclass(frozen=True, kw_only=True, slots=True)
class Observations:
    """Everything that a plan for `model` rests on."""

    model: str
    workers: Workers
    traffic: Traffic
