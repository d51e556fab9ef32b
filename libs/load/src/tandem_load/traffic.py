"""The requests that a simulation sends."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

# Token ids from here on are in one request only.
_FIRST_UNSHARED = 1 << 24
VOCAB_SIZE = 1 << 31


@dataclass(frozen=True, kw_only=True, slots=True)
class TrafficRequest:
    """One request: lengths, and which parts of its prompt others share.

    `segments` names the prompt piece by piece, `segment_tokens` each; equal prefixes of segments are equal prefixes
    of tokens. What they do not cover is shared with nobody. `label` groups requests in reports. `deadline_s` bounds the
    time to the first token; 0 leaves that to whoever serves.
    """

    index: int
    time_s: float
    num_prompt_tokens: int
    num_output_tokens: int
    segments: Sequence[int] = ()
    segment_tokens: int = 512
    label: str = ""
    tenant: str = ""
    is_batch: bool = False
    deadline_s: float = 0.0

    @property
    def own_token(self) -> int:
        """A token id that no other request has."""
        return _FIRST_UNSHARED + self.index

    def token_ids(self) -> list[int]:
        """The prompt."""
        tokens: list[int] = []
        for segment in self.segments:
            tokens += [segment] * self.segment_tokens
        del tokens[self.num_prompt_tokens :]
        tokens += [self.own_token] * (self.num_prompt_tokens - len(tokens))
        return tokens


def faster(requests: Sequence[TrafficRequest], factor: float) -> list[TrafficRequest]:
    """The same requests, arriving `factor` times as fast."""
    if factor <= 0:
        raise ValueError(f"a load must be above 0, got {factor:g}")
    return [replace(request, time_s=request.time_s / factor) for request in requests]


def mean_rate(requests: Sequence[TrafficRequest]) -> float:
    """Requests per second from the first to the last."""
    span_s = requests[-1].time_s - requests[0].time_s if requests else 0.0
    return (len(requests) - 1) / span_s if span_s > 0 else 0.0
