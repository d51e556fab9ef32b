"""What can be set on a router."""

from __future__ import annotations

import math
from dataclasses import dataclass

from tandem_common.config import ConfigError, ServiceConfig, setting

from tandem_router.admission import AdmissionRules
from tandem_router.desk import QueueRules
from tandem_router.policies import (
    POLICY_NAMES,
    CacheAware,
    Dynamo,
    LeastLoaded,
    Policy,
    PowerOfTwo,
    Predictive,
    RandomWorkers,
    RoundRobin,
)
from tandem_router.servicer import ServicerRules


@dataclass(frozen=True, kw_only=True)
class RouterConfig(ServiceConfig):
    """Tandem's router: sends each request to the workers that will answer it soonest."""

    policy: str = setting("predictive", "how workers are chosen", choices=POLICY_NAMES)
    random_seed: int = setting(0, "seed of policy=random and policy=power_of_two", minimum=0)
    expected_new_tokens: int = setting(
        256, "length of an answer that policy=predictive plans for, if the request allows it", minimum=1
    )
    poll_interval_s: float = setting(0.25, "seconds between two looks at the registry", minimum=0.01)
    registry_grace_s: float = setting(
        3.0, "seconds that workers stay in the view after the whole registry came back empty", minimum=0
    )
    booking_max_age_s: float = setting(
        10.0, "seconds after which a booking is dropped if the worker never reported the request", minimum=0.1
    )
    max_bookings_per_worker: int = setting(4096, "bookings kept for one worker", minimum=1)
    remembered_decisions: int = setting(1024, "latest decisions that Explain can be asked about", minimum=1)
    max_worker_queue_ms: float = setting(
        3000.0, "requests wait in the router while more than this is ahead of them on the worker", minimum=0
    )
    interactive_deadline_ms: float = setting(
        60_000.0, "deadline of the first token of interactive requests that name none; 0: none", minimum=0
    )
    batch_deadline_ms: float = setting(0.0, "the same for batch requests", minimum=0)
    interactive_ttft_ms: float = setting(
        2000.0, "target that batch work must leave interactive requests for their first token", minimum=1
    )
    interactive_itl_ms: float = setting(50.0, "the same between two tokens", minimum=0.1)
    prediction_quantile: float = setting(
        0.9, "quantile of past prediction errors that refusals use", minimum=0.5, maximum=0.999
    )
    max_waiting: int = setting(1024, "requests that may wait for one model", minimum=1)
    max_waiting_s: float = setting(60.0, "longest that a request may wait in the router", minimum=0.1)
    batch_starvation_s: float = setting(
        30.0, "a batch request that waited so long gets one turn in nine", minimum=0
    )
    tenant_weights: tuple[str, ...] = setting(
        (), "tenant=weight: shares of tenants while requests wait; others have 1"
    )
    session_affinity: float = setting(
        0.1, "how much more the workers of a request's session may cost, as a part of the cheapest", minimum=0
    )
    session_ttl_s: float = setting(600.0, "how long a session's workers are remembered", minimum=0)
    speculative_ttl_s: float = setting(
        5.0,
        "how long routed blocks are expected on a worker before its events tell; 0: not at all",
        minimum=0,
    )
    drain_s: float = setting(2.0, "seconds that running calls get when the router stops", minimum=0)

    def __post_init__(self) -> None:
        """Check what one field cannot say."""
        super().__post_init__()
        self.weights()

    def weights(self) -> dict[str, float]:
        """Weights by tenant."""
        weights = {}
        for text in self.tenant_weights:
            tenant, _, weight = text.rpartition("=")
            try:
                weights[tenant] = float(weight)
            except ValueError:
                weights[tenant] = 0.0
            if not tenant or not 0 < weights[tenant] < math.inf:
                raise ConfigError(f"tenant_weights has {text!r}; write tenant=weight with a positive weight")
        return weights

    def servicer_rules(self) -> ServicerRules:
        """Rules for the service."""
        return ServicerRules(
            admission=AdmissionRules(
                max_worker_queue_ms=self.max_worker_queue_ms,
                interactive_deadline_ms=self.interactive_deadline_ms,
                batch_deadline_ms=self.batch_deadline_ms,
                interactive_ttft_ms=self.interactive_ttft_ms,
                interactive_itl_ms=self.interactive_itl_ms,
            ),
            queue=QueueRules(
                max_depth=self.max_waiting, max_age_s=self.max_waiting_s, starvation_s=self.batch_starvation_s
            ),
            error_quantile=self.prediction_quantile,
            remembered_decisions=self.remembered_decisions,
            speculative_ttl_s=self.speculative_ttl_s,
            session_ttl_s=self.session_ttl_s,
        )

    def make_policy(self) -> Policy:
        """The policy that `policy` names."""
        match self.policy:
            case RoundRobin.name:
                return RoundRobin()
            case RandomWorkers.name:
                return RandomWorkers(self.random_seed)
            case LeastLoaded.name:
                return LeastLoaded()
            case PowerOfTwo.name:
                return PowerOfTwo(self.random_seed)
            case CacheAware.name:
                return CacheAware()
            case Dynamo.name:
                return Dynamo()
            case _:
                return Predictive(self.expected_new_tokens, self.session_affinity)
