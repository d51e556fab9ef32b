"""All Redis keys, in one place.

The part in braces is the hash tag: in a Redis Cluster, keys with one tag live on one node, so that a worker's
records can be written together. Times to live are set by the writers in `registry`.
"""

from __future__ import annotations

# The one field of an entry of a KV stream: a serialized KvEvents.
KV_ENTRY_FIELD = b"events"


class Keys:
    """Keys of one cluster of Tandem; `cluster` separates several that share a Redis."""

    def __init__(self, cluster: str) -> None:
        self._prefix = f"tandem:{cluster}"

    def workers(self) -> str:
        """Set of worker ids; members without a card are stale."""
        return f"{self._prefix}:workers"

    def card(self, worker_id: str) -> str:
        """WorkerCard; lives for three heartbeats."""
        return f"{self._prefix}:worker:{{{worker_id}}}:card"

    def beat(self, worker_id: str) -> str:
        """WorkerBeat; lives for three heartbeats."""
        return f"{self._prefix}:worker:{{{worker_id}}}:beat"

    def epoch(self, worker_id: str) -> str:
        """Counter of a worker's incarnations; lives for a day, so that a restart outlives its cards."""
        return f"{self._prefix}:worker:{{{worker_id}}}:epoch"

    def kv_stream(self, worker_id: str) -> str:
        """Stream of KvEvents under KV_ENTRY_FIELD; trimmed by length, kept alive by the worker's heartbeats."""
        return f"{self._prefix}:worker:{{{worker_id}}}:kv"

    def kv_snapshot(self, worker_id: str) -> str:
        """KvSnapshot that the stream is followed from."""
        return f"{self._prefix}:worker:{{{worker_id}}}:kv-snapshot"

    def services(self, kind: str) -> str:
        """Set of the ids of routers, planners or frontends."""
        return f"{self._prefix}:services:{kind}"

    def service(self, kind: str, service_id: str) -> str:
        """ServiceCard; lives for three heartbeats."""
        return f"{self._prefix}:service:{kind}:{{{service_id}}}"

    def bookings(self) -> str:
        """Stream through which routers share bookings; seconds."""
        return f"{self._prefix}:bookings"

    def plan(self, model: str) -> str:
        """Latest Decision for a model; kept until the next."""
        return f"{self._prefix}:planner:{{{model}}}:plan"

    def planner_lease(self) -> str:
        """Who plans; lives for the lease's time."""
        return f"{self._prefix}:{{planner}}:lease"

    def planner_token(self) -> str:
        """Fencing counter of the planner's lease; never expires."""
        return f"{self._prefix}:{{planner}}:token"
