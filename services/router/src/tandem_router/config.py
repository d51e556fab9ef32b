"""What can be set on a router."""

from __future__ import annotations

from dataclasses import dataclass

from tandem_common.config import ServiceConfig, setting

from tandem_router.policies import (
    POLICY_NAMES,
    LeastLoaded,
    Policy,
    Predictive,
    RandomWorkers,
    RoundRobin,
)


@dataclass(frozen=True, kw_only=True)
class RouterConfig(ServiceConfig):
    """Tandem's router: sends each request to the workers that will answer it soonest."""

    policy: str = setting("predictive", "how workers are chosen", choices=POLICY_NAMES)
    random_seed: int = setting(0, "seed of policy=random", minimum=0)
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
    drain_s: float = setting(2.0, "seconds that running calls get when the router stops", minimum=0)

    def make_policy(self) -> Policy:
        """The policy that `policy` names."""
        match self.policy:
            case RoundRobin.name:
                return RoundRobin()
            case RandomWorkers.name:
                return RandomWorkers(self.random_seed)
            case LeastLoaded.name:
                return LeastLoaded()
            case _:
                return Predictive(self.expected_new_tokens)
