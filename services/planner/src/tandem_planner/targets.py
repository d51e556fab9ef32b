"""What latency the planner plans for."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Self

from tandem.v1 import planner_pb2
from tandem_common.errors import InvalidRequest

MAX_TARGET_MS = 3_600_000.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Targets:
    """Time to first token and gap between tokens that a share of the requests must meet, both of them.

    Raises InvalidRequest for values that nothing could meet or that mean nothing.
    """

    ttft_ms: float
    itl_ms: float
    percentile: float  # share of requests, in (0, 1)

    def __post_init__(self) -> None:
        for name in ("ttft_ms", "itl_ms"):
            value = getattr(self, name)
            if not (math.isfinite(value) and 0.0 < value <= MAX_TARGET_MS):
                raise InvalidRequest(
                    f"{name} = {value:g}: must be above 0 and at most {MAX_TARGET_MS:g} milliseconds",
                    param=name,
                )
        if not 0.0 < self.percentile < 1.0:
            raise InvalidRequest(
                f"percentile = {self.percentile:g}: must be between 0 and 1, exclusive (0.95 for 95 %)",
                param="percentile",
            )

    @property
    def share_each(self) -> float:
        """Share that must meet each target so that `percentile` meets both, were the two independent."""
        return math.sqrt(self.percentile)

    def to_proto(self) -> planner_pb2.Targets:
        """The message."""
        return planner_pb2.Targets(ttft_ms=self.ttft_ms, itl_ms=self.itl_ms, percentile=self.percentile)

    @classmethod
    def from_proto(cls, message: planner_pb2.Targets) -> Self:
        """What a caller asks for; raises InvalidRequest."""
        return cls(ttft_ms=message.ttft_ms, itl_ms=message.itl_ms, percentile=message.percentile)
