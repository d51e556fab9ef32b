"""The planner's settings."""

from __future__ import annotations

from dataclasses import dataclass

from tandem_common.config import ConfigError, ServiceConfig, setting
from tandem_common.errors import InvalidRequest

from tandem_planner.plan import MIN_OBSERVED_S, Policy
from tandem_planner.targets import Targets


@dataclass(frozen=True, kw_only=True)
class PlannerConfig(ServiceConfig):
    """The planner: says how many workers should prefill and how many decode."""

    ttft_ms: float = setting(500.0, "target for the time to first token, in milliseconds")
    itl_ms: float = setting(50.0, "target for the gap between tokens, in milliseconds")
    percentile: float = setting(0.95, "share of requests that must meet both targets, between 0 and 1")
    interval_s: float = setting(5.0, "seconds between plans", minimum=0.1, maximum=600)
    observe_interval_s: float = setting(
        0.5, "seconds between looks at the heartbeats", minimum=0.05, maximum=1
    )
    window_s: int = setting(60, "seconds of traffic that a plan rests on", minimum=30, maximum=3600)
    min_observed_s: float = setting(
        MIN_OBSERVED_S, "seconds of traffic without which nothing is proposed", minimum=1, maximum=3600
    )
    max_stale_s: float = setting(
        3.0, "age of the registry's view, in seconds, from which no plan is made", minimum=0.5, maximum=60
    )
    service_cv2: float = setting(
        1.0, "squared coefficient of variation of prompt times", minimum=0, maximum=16
    )
    num_to_switch: int = setting(3, "plans in a row before another split is advised", minimum=1, maximum=1000)
    num_to_fall: int = setting(
        12, "plans in a row before fewer workers are called enough", minimum=1, maximum=1000
    )
    lease_s: float = setting(
        10.0, "life of the planner's lease, in seconds: how long a dead planner blocks others", minimum=1
    )

    def __post_init__(self) -> None:
        """Check what depends on more than one setting."""
        super().__post_init__()
        try:
            self.targets()
        except InvalidRequest as error:
            raise ConfigError(error.message) from None
        if self.min_observed_s > self.window_s:
            raise ConfigError(
                f"min_observed_s = {self.min_observed_s:g}: must be at most window_s = {self.window_s}"
            )

    def targets(self) -> Targets:
        """The targets to start with."""
        return Targets(ttft_ms=self.ttft_ms, itl_ms=self.itl_ms, percentile=self.percentile)

    def policy(self) -> Policy:
        """How cautious plans are."""
        return Policy(service_cv2=self.service_cv2, min_observed_s=self.min_observed_s)
