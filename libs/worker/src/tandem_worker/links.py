"""How fast blocks come in from each peer, measured by the handoffs themselves."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

from tandem.v1 import cluster_pb2 as pb

MAX_PEERS = 64
# Chunks below this say what a handoff costs at least, larger ones what a byte costs.
SMALL_CHUNK_BYTES = 64 << 10
_NEWEST_WEIGHT = 0.2


@dataclass(slots=True)
class _Link:
    bytes_per_ms: float = 0.0
    latency_ms: float = 0.0


class LinkSpeeds:
    """Moving averages for the peers heard of last, at most MAX_PEERS."""

    def __init__(self) -> None:
        self._links: OrderedDict[str, _Link] = OrderedDict()

    def observe(self, source_worker_id: str, num_bytes: int, duration_ms: float) -> None:
        """A chunk came in, and took this long from its header to the pool."""
        link = self._links.setdefault(source_worker_id, _Link())
        self._links.move_to_end(source_worker_id)
        if len(self._links) > MAX_PEERS:
            self._links.popitem(last=False)
        if num_bytes < SMALL_CHUNK_BYTES:
            link.latency_ms = _moved(link.latency_ms, duration_ms)
        else:
            link.bytes_per_ms = _moved(link.bytes_per_ms, num_bytes / max(duration_ms, 1e-3))

    def to_proto(self) -> list[pb.LinkSpeed]:
        """For the heartbeat; a link is listed once it has a speed."""
        return [
            pb.LinkSpeed(
                source_worker_id=worker_id, bytes_per_ms=link.bytes_per_ms, latency_ms=link.latency_ms
            )
            for worker_id, link in self._links.items()
            if link.bytes_per_ms > 0
        ]


def _moved(average: float, value: float) -> float:
    return value if average == 0 else average + _NEWEST_WEIGHT * (value - average)
