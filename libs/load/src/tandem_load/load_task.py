"""What a load generator is told to do: one point of a measurement."""

from __future__ import annotations

import msgspec

from tandem_load.conversation import PromptShape
from tandem_load.dialect import Dialect
from tandem_load.target import Target


class Clients(msgspec.Struct, frozen=True, kw_only=True, tag="clients"):
    """Closed loop: so many clients, each of which asks again when it was answered."""

    count: int


class Arrivals(msgspec.Struct, frozen=True, kw_only=True, tag="arrivals"):
    """Open loop: requests per second that come whatever the server does; evenly, or as a Poisson process."""

    rate: float
    evenly: bool = False


class Replay(msgspec.Struct, frozen=True, kw_only=True, tag="replay"):
    """Open loop: a trace, `speed` times as fast, its lengths multiplied by `length_scale`."""

    path: str
    speed: float = 1.0
    length_scale: float = 1.0


Traffic = Clients | Arrivals | Replay


class LatencyTargets(msgspec.Struct, frozen=True, kw_only=True):
    """What a request must meet to count as goodput, each in seconds; None: nothing is asked."""

    ttft_s: float | None = None
    tpot_s: float | None = None
    itl_s: float | None = None  # no gap of the request is longer
    e2e_s: float | None = None


class LoadTask(msgspec.Struct, frozen=True, kw_only=True):
    """One point. Requests that were to be sent within `duration_s` after `warmup_s` are measured, all to their end.

    Without a duration it takes as long as `max_requests`, or the trace, do.
    """

    target: Target
    dialect: Dialect
    traffic: Traffic
    shape: PromptShape
    targets: LatencyTargets = LatencyTargets()
    warmup_s: float = 1.0
    duration_s: float | None = 10.0
    max_requests: int | None = None  # measured ones
    timeout_s: float = 600.0  # of a request, from when it was to be sent
    seed: int = 0
    report_interval_s: float = 0.25
