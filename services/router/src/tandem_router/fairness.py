"""Who was served how much: a virtual counter of tokens per tenant.

The one with the smallest counter is served next, and pays for what it gets by its weight, so backlogged tenants are
served in proportion to their weights. A tenant that comes back after having had nothing to ask is *lifted* to the
smallest counter among those that wait: time not used is not saved up, and cannot be used to push the others aside.
When nobody waits, it is lifted to the largest counter of all, so that what was served while there was enough for
everybody is held against nobody.
Source: Sheng et al., "Fairness in Serving Large Language Models" (OSDI 2024), the virtual token counter.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping


class FairShares:
    """Counters by tenant. Bounded: beyond `max_tenants` the one that was charged longest ago is forgotten."""

    def __init__(self, weights: Mapping[str, float] | None = None, *, max_tenants: int = 10_000) -> None:
        """Tenants without a weight have 1; a weight must be positive."""
        self._weights = dict(weights or {})
        if any(weight <= 0 for weight in self._weights.values()):
            raise ValueError("weights of tenants must be positive")
        self._max_tenants = max_tenants
        self._counters: dict[str, float] = {}  # the one charged longest ago first
        self._floor = 0.0  # what a tenant begins with that is not known
        self._highest = 0.0  # of all counters ever

    def weight(self, tenant: str) -> float:
        """Its part of the whole, relative to others."""
        return self._weights.get(tenant, 1.0)

    def counter(self, tenant: str) -> float:
        """Tokens served by weight, since nobody knows when; only differences mean something."""
        return self._counters.get(tenant, self._floor)

    def charge(self, tenant: str, num_tokens: int) -> None:
        """It was served this much."""
        if num_tokens < 0:
            raise ValueError(f"cannot charge {num_tokens} tokens")
        self._set(tenant, self._counters.pop(tenant, self._floor) + num_tokens / self.weight(tenant))

    def correct(self, tenant: str, num_tokens: int) -> None:
        """It was served so many more tokens than it was charged, or fewer if negative; unknown ones are let be."""
        if tenant in self._counters:
            corrected = self._counters[tenant] + num_tokens / self.weight(tenant)
            self._counters[tenant] = max(0.0, corrected)

    def lift(self, tenant: str, waiting: Iterable[str]) -> None:
        """It begins to wait beside those that wait already: from now on it is at least where the least of them is."""
        least = min((self.counter(other) for other in waiting if other != tenant), default=self._highest)
        if self.counter(tenant) < least:
            self._counters.pop(tenant, None)
            self._set(tenant, least)

    def check_integrity(self) -> None:
        """Assert the bounds."""
        assert len(self._counters) <= self._max_tenants
        assert all(counter >= 0 for counter in self._counters.values())

    def _set(self, tenant: str, counter: float) -> None:
        self._counters[tenant] = counter
        self._highest = max(self._highest, counter)
        if len(self._counters) > self._max_tenants:
            forgotten = self._counters.pop(next(iter(self._counters)))
            # Forgetting is no gain: whoever is unknown begins where the forgotten were.
            self._floor = max(self._floor, forgotten)
