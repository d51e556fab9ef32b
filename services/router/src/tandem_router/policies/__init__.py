"""Ways to choose workers, behind one interface and chosen by configuration."""

from __future__ import annotations

from tandem_router.policies.cache_aware import CacheAware
from tandem_router.policies.dynamo import Dynamo
from tandem_router.policies.least_loaded import LeastLoaded
from tandem_router.policies.policy import Policy
from tandem_router.policies.power_of_two import PowerOfTwo
from tandem_router.policies.predictive import Predictive
from tandem_router.policies.random_workers import RandomWorkers
from tandem_router.policies.round_robin import RoundRobin

__all__ = [
    "POLICY_NAMES",
    "CacheAware",
    "Dynamo",
    "LeastLoaded",
    "Policy",
    "PowerOfTwo",
    "Predictive",
    "RandomWorkers",
    "RoundRobin",
]

POLICY_NAMES = (
    Predictive.name,
    Dynamo.name,
    CacheAware.name,
    LeastLoaded.name,
    PowerOfTwo.name,
    RoundRobin.name,
    RandomWorkers.name,
)
