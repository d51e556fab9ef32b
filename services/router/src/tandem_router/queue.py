"""Requests that wait in the router, and who of them goes next. Synchronous; time is an argument.

class     interactive before batch; but a batch request that has waited for the starvation bound gets one turn
          after every `turns_per_starved` interactive ones
tenant    within a class, the one that was served the least (see `fairness`)
deadline  within a tenant, the earliest, or when it is due if that is sooner; equals in order of arrival
"""

from __future__ import annotations

import math
from bisect import bisect_left, insort
from collections.abc import Container, Iterable
from dataclasses import dataclass, field

from tandem_common.generation import RequestClass

from tandem_router.fairness import FairShares


class QueueFull(Exception):
    """No more requests may wait."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Waiting:
    """One request; `key` is the queue's caller's and unique, times are monotonic seconds."""

    key: int
    tenant: str
    request_class: RequestClass
    num_tokens: int  # of work: what it will be charged
    arrived_s: float
    deadline_s: float = math.inf
    due_s: float = math.inf  # decides as a deadline does, but being late has no consequence

    @property
    def turn_s(self) -> float:
        """What the waiting of one tenant are ordered by."""
        return min(self.deadline_s, self.due_s)


@dataclass(slots=True)
class _Class:
    """The waiting of one class."""

    by_key: dict[int, Waiting] = field(default_factory=dict)  # in order of arrival
    by_tenant: dict[str, list[tuple[float, int]]] = field(default_factory=dict)  # (turn, key), sorted
    num_tokens: int = 0


class RequestQueue:
    """The waiting requests of one model."""

    def __init__(
        self, shares: FairShares, *, max_depth: int, starvation_s: float, turns_per_starved: int = 8
    ) -> None:
        """At most `max_depth` wait; a batch request is starved after `starvation_s`."""
        self._shares = shares
        self._max_depth = max_depth
        self._starvation_s = starvation_s
        self._turns_per_starved = turns_per_starved
        self._turns = 0  # of interactive requests since the last one of batch
        self._classes = {RequestClass.INTERACTIVE: _Class(), RequestClass.BATCH: _Class()}

    def push(self, item: Waiting, elsewhere: Iterable[str] = ()) -> None:
        """Let it wait; QueueFull when too many do.

        Its tenant is lifted if it did not wait before; `elsewhere` are those that wait at other routers.
        """
        if len(self) >= self._max_depth:
            raise QueueFull
        waiting = self._classes[item.request_class]
        assert item.key not in waiting.by_key, "keys are unique"
        if item.tenant not in waiting.by_tenant:
            self._shares.lift(item.tenant, (*waiting.by_tenant, *elsewhere))
        waiting.by_key[item.key] = item
        insort(waiting.by_tenant.setdefault(item.tenant, []), (item.turn_s, item.key))
        waiting.num_tokens += item.num_tokens

    def head(self, now_s: float) -> Waiting | None:
        """Who goes next; None when nobody waits."""
        starved = self.starved(now_s)
        if starved is not None and self._turns >= self._turns_per_starved:
            return starved
        for waiting in self._classes.values():
            if waiting.by_key:
                tenant = min(waiting.by_tenant, key=self._shares.counter)
                return waiting.by_key[waiting.by_tenant[tenant][0][1]]
        return None

    def upcoming(self, now_s: float, passed: Container[int]) -> Waiting | None:
        """Who goes next if those with keys in `passed` are left out; only others of the class that goes next."""
        head = self.head(now_s)
        if head is None or head.key not in passed:
            return head
        waiting = self._classes[head.request_class]
        for tenant in sorted(waiting.by_tenant, key=self._shares.counter):
            for _, key in waiting.by_tenant[tenant]:
                if key not in passed:
                    return waiting.by_key[key]
        return None

    def starved(self, now_s: float) -> Waiting | None:
        """The batch request that came first, if it has waited for the starvation bound."""
        oldest = next(iter(self._classes[RequestClass.BATCH].by_key.values()), None)
        return oldest if oldest is not None and now_s - oldest.arrived_s >= self._starvation_s else None

    def remove(self, item: Waiting) -> bool:
        """It was started or given up; False when it did not wait any more."""
        waiting = self._classes[item.request_class]
        if waiting.by_key.pop(item.key, None) is None:
            return False
        order = waiting.by_tenant[item.tenant]
        del order[bisect_left(order, (item.turn_s, item.key))]
        if not order:
            del waiting.by_tenant[item.tenant]
        waiting.num_tokens -= item.num_tokens
        return True

    def started(self, request_class: RequestClass) -> None:
        """A request of this class was started, whether it had to wait or not: turns are counted by this."""
        self._turns = 0 if request_class is RequestClass.BATCH else self._turns + 1

    def overdue(self, now_s: float, max_age_s: float) -> list[Waiting]:
        """Those whose deadline has passed or that have waited for too long."""
        return [
            item
            for waiting in self._classes.values()
            for item in waiting.by_key.values()
            if now_s >= item.deadline_s or now_s - item.arrived_s >= max_age_s
        ]

    def is_free_for(self, request_class: RequestClass) -> bool:
        """Whether nobody waits who would go before a newcomer of this class."""
        return not self._ahead_of(request_class)

    def tokens_ahead_of(self, request_class: RequestClass) -> int:
        """Work of those who may go before a newcomer of this class."""
        return sum(waiting.num_tokens for waiting in self._ahead_of(request_class))

    def count(self, request_class: RequestClass) -> int:
        """How many of a class wait."""
        return len(self._classes[request_class].by_key)

    def items(self) -> list[Waiting]:
        """All that wait."""
        return [item for waiting in self._classes.values() for item in waiting.by_key.values()]

    def __len__(self) -> int:
        """How many wait."""
        return sum(len(waiting.by_key) for waiting in self._classes.values())

    def check_integrity(self) -> None:
        """Assert that the orders hold the same requests, that sums are sums, and the bound."""
        assert len(self) <= self._max_depth
        for request_class, waiting in self._classes.items():
            assert waiting.num_tokens == sum(item.num_tokens for item in waiting.by_key.values())
            listed = [(tenant, entry) for tenant, order in waiting.by_tenant.items() for entry in order]
            assert len(listed) == len(waiting.by_key)
            for tenant, (turn_s, key) in listed:
                item = waiting.by_key[key]
                assert (item.tenant, item.turn_s, item.request_class) == (
                    tenant,
                    turn_s,
                    request_class,
                )
            assert all(order and order == sorted(order) for order in waiting.by_tenant.values())

    def _ahead_of(self, request_class: RequestClass) -> list[_Class]:
        classes = [self._classes[RequestClass.INTERACTIVE]]
        if request_class is RequestClass.BATCH:
            classes.append(self._classes[RequestClass.BATCH])
        return [waiting for waiting in classes if waiting.by_key]
