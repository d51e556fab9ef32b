"""The planner's Prometheus metrics."""

from __future__ import annotations

from collections.abc import Mapping

from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge, Histogram

from tandem_planner.decision import Decision
from tandem_planner.split import Split

_FIGURES = ("arrival_rate_per_s", "current_ttft_ms", "current_itl_ms", "prefill_utilisation")


class Metrics:
    """All families of the planner."""

    def __init__(self, registry: CollectorRegistry = REGISTRY) -> None:
        self._workers = Gauge(
            "tandem_planner_workers",
            "Workers by role: plan=current as they are, desired as advised, needed the fewest that meet the targets",
            ["model", "role", "plan"],
            registry=registry,
        )
        self._figures = {
            name: Gauge(
                f"tandem_planner_{name}", f"{name} that the last plan rests on", ["model"], registry=registry
            )
            for name in _FIGURES
        }
        self._confident = Gauge(
            "tandem_planner_confident", "0 while data for a plan is missing", ["model"], registry=registry
        )
        self.decisions = Counter("tandem_planner_decisions", "Changed decisions", registry=registry)
        self.redis_errors = Counter(
            "tandem_planner_redis_errors", "Plans that could not be written to Redis", registry=registry
        )
        self.lease_token = Gauge(
            "tandem_planner_lease_token", "Fencing token of the lease; 0 when not held", registry=registry
        )
        self.registry_age_s = Gauge(
            "tandem_planner_registry_age_seconds", "Seconds since Redis last answered", registry=registry
        )
        self.planning_s = Histogram(
            "tandem_planner_planning_seconds", "Time that making all plans took", registry=registry
        )

    def show(self, decisions: Mapping[str, Decision]) -> None:
        """Set what depends on the plans; models without one disappear."""
        self._workers.clear()
        self._confident.clear()
        for gauge in self._figures.values():
            gauge.clear()
        for model, decision in decisions.items():
            proposal = decision.proposal
            self._confident.labels(model).set(proposal.confident)
            self._show_split(model, "current", proposal.current)
            self._show_split(model, "desired", proposal.desired)
            if proposal.smallest is not None:
                self._show_split(model, "needed", proposal.smallest)
            for name, gauge in self._figures.items():
                if name in proposal.figures:
                    gauge.labels(model).set(proposal.figures[name])

    def _show_split(self, model: str, plan: str, split: Split) -> None:
        self._workers.labels(model, "prefill", plan).set(split.num_prefill)
        self._workers.labels(model, "decode", plan).set(split.num_decode)
        self._workers.labels(model, "both", plan).set(split.num_both)
