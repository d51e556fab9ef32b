"""Which tenants wait at other routers. Synchronous; time is an argument.

Charges are shared, so all routers know who was served how much; but each starts only those who wait with it. A router
whose tenants have had their share therefore holds them back as long as another one has told of a tenant that was served
less: so tenants are served by their weights through whichever routers their requests come.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from tandem_common.generation import RequestClass

# A model and a class.
Line = tuple[str, RequestClass]

MAX_TENANTS = 256  # of one router that are told and remembered
_MAX_ROUTERS = 64


class WaitingElsewhere:
    """What other routers told last; forgotten when they do not tell it again within `ttl_s`."""

    def __init__(self, *, ttl_s: float = 1.0) -> None:
        self._ttl_s = ttl_s
        self._told: dict[str, tuple[float, dict[Line, frozenset[str]]]] = {}  # by router

    def note(self, router_id: str, waiting: Mapping[Line, Iterable[str]], now_s: float) -> None:
        """All that waits at this router."""
        self._told.pop(router_id, None)
        if waiting:
            lines = {line: frozenset(tenants) for line, tenants in waiting.items()}
            self._told[router_id] = (now_s, lines)
            if len(self._told) > _MAX_ROUTERS:
                del self._told[next(iter(self._told))]

    def tenants(self, line: Line, now_s: float) -> set[str]:
        """Who waits at any other router."""
        waiting: set[str] = set()
        for told_s, lines in self._told.values():
            if now_s - told_s <= self._ttl_s:
                waiting |= lines.get(line, frozenset())
        return waiting
