"""Where the last request of a session went: a preference for the next one, never a must."""

from __future__ import annotations

from collections import OrderedDict

from tandem_router.query import Decision


class Sessions:
    """Workers by tenant and session id, for `ttl_s` after the last use; the least lately used make room."""

    def __init__(self, *, ttl_s: float, capacity: int = 100_000) -> None:
        self._ttl_s = ttl_s
        self._capacity = capacity
        self._workers: OrderedDict[tuple[str, str], tuple[frozenset[str], float]] = OrderedDict()

    def preferred(self, tenant: str, session_id: str, now_s: float) -> frozenset[str]:
        """Workers that served the session last; none for an empty id."""
        workers, until_s = self._workers.get((tenant, session_id), (frozenset[str](), 0.0))
        return workers if until_s > now_s else frozenset()

    def note(self, tenant: str, session_id: str, decision: Decision, now_s: float) -> None:
        """The session's latest request went there."""
        if not session_id:
            return
        chosen = decision.chosen
        workers = frozenset({chosen.decode.facts.worker_id, chosen.computing.facts.worker_id})
        self._workers[tenant, session_id] = (workers, now_s + self._ttl_s)
        self._workers.move_to_end((tenant, session_id))
        if len(self._workers) > self._capacity:
            self._workers.popitem(last=False)

    def __len__(self) -> int:
        """Sessions known."""
        return len(self._workers)
