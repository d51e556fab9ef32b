"""The latest decisions, so that Explain can be asked about a request that was routed already."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

from tandem_router.query import Decision, Query
from tandem_router.view import ClusterView


@dataclass(frozen=True, kw_only=True, slots=True)
class Remembered:
    """A decision with what it was taken on: policies are pure, so all the other candidates follow from it."""

    query: Query
    view: ClusterView
    decision: Decision


class RecentDecisions:
    """By request id, the latest `capacity` of them; a request that was routed again is remembered once."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._decisions: OrderedDict[str, Remembered] = OrderedDict()

    def add(self, remembered: Remembered) -> None:
        """Remember one, and forget the oldest beyond the capacity."""
        request_id = remembered.query.request_id
        self._decisions[request_id] = remembered
        self._decisions.move_to_end(request_id)
        if len(self._decisions) > self._capacity:
            self._decisions.popitem(last=False)

    def get(self, request_id: str) -> Remembered | None:
        """The request's latest decision, if it is still remembered."""
        return self._decisions.get(request_id)

    def __len__(self) -> int:
        """How many are remembered."""
        return len(self._decisions)
