"""What a link is worth before any handoff has measured it."""

from __future__ import annotations

import enum
from functools import lru_cache

from tandem_router.view import SAME_HOST_LINK, Link, Place, WorkerView


class Distance(enum.Enum):
    """The closest thing that two workers share."""

    HOST = 0
    RACK = 1
    ZONE = 2
    REGION = 3
    APART = 4


# Shared memory; one switch; a data centre's network; between data centres; the rest of the world. Rates are what one
# handoff can hope for beside others.
PRIOR_LINKS: dict[Distance, Link] = {
    Distance.HOST: SAME_HOST_LINK,
    Distance.RACK: Link(bytes_per_ms=2.5e6, latency_ms=0.5),
    Distance.ZONE: Link(bytes_per_ms=1.2e6, latency_ms=1.0),
    Distance.REGION: Link(bytes_per_ms=2.5e5, latency_ms=4.0),
    Distance.APART: Link(bytes_per_ms=5e4, latency_ms=60.0),
}


@lru_cache(maxsize=65_536)
def distance(a: Place, b: Place) -> Distance:
    """How far apart two places are; workers that say nothing of their zone are taken to share one.

    A wider label that differs outweighs a narrower one that is equal: racks of two zones may have the same name.
    """
    if _differ(a.region, b.region):
        return Distance.APART
    if _differ(a.zone, b.zone):
        return Distance.REGION
    if a.host and a.host == b.host:
        return Distance.HOST
    if a.rack and a.rack == b.rack:
        return Distance.RACK
    return Distance.ZONE


def link_between(source: WorkerView, destination: WorkerView) -> Link:
    """The measured link, or what to expect from the distance."""
    measured = destination.links.measured.get(source.facts.worker_id)
    if measured is not None:
        return measured
    return PRIOR_LINKS[distance(source.facts.place, destination.facts.place)]


def _differ(a: str, b: str) -> bool:
    return bool(a) and bool(b) and a != b
