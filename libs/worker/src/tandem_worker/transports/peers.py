"""Connections to the workers that blocks are shipped to: one per peer, made when needed, the best transport first."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field

from tandem.v1 import cluster_pb2
from tandem_common.errors import Unavailable
from tandem_common.logs import get_logger

from tandem_worker.transports import shm, tcp
from tandem_worker.transports.api import OutgoingChunk, Source, TransportBroken
from tandem_worker.transports.connection import SlottedConnection

_log = get_logger("transports")

CONNECT_TIMEOUT_S = 2.0
IDLE_TIMEOUT_S = 60.0
# A transport that failed between two workers is left alone for so long.
RETRY_AFTER_S = 30.0
_KINDS = {"shm": cluster_pb2.TRANSPORT_KIND_SHM, "tcp": cluster_pb2.TRANSPORT_KIND_TCP}


@dataclass(slots=True)
class _Peer:
    connection: SlottedConnection | None = None
    connecting: asyncio.Lock = field(default_factory=asyncio.Lock)
    used_at_s: float = 0.0
    failed_at_s: dict[str, float] = field(default_factory=dict)  # by kind of transport


class PeerConnections:
    """The sender's side of all handoffs of one worker. `kinds` are the transports allowed, best first."""

    def __init__(
        self,
        source: Source,
        kinds: Sequence[str],
        slot_bytes: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._source = source
        self._kinds = kinds
        self._slot_bytes = slot_bytes
        self._clock = clock
        self._host_id = shm.host_id() if "shm" in kinds else ""
        self._peers: dict[tuple[str, int], _Peer] = {}

    async def ship(self, card: cluster_pb2.WorkerCard, chunk: OutgoingChunk, timeout_s: float) -> str:
        """Ship a chunk to a registered worker; returns the kind of transport that brought it there.

        A transport that breaks is replaced by the next one and the chunk shipped again (receivers ignore what they
        have). Raises the receiver's refusal, or Unavailable when no transport works.
        """
        peer = self._peers.setdefault((card.worker_id, card.epoch), _Peer())
        for _ in self._kinds:
            connection = await self._connection(peer, card)
            try:
                await connection.ship(chunk, timeout_s)
            except TransportBroken as error:
                _log.warning(
                    "a transport broke", peer=card.worker_id, transport=connection.kind, error=str(error)
                )
                peer.failed_at_s[connection.kind] = self._clock()
                continue
            return connection.kind
        raise Unavailable("the blocks could not be shipped")

    @property
    def num_connections(self) -> int:
        """Connections that are open."""
        return sum(1 for peer in self._peers.values() if peer.connection is not None)

    async def drop_unused(self, alive: Collection[tuple[str, int]]) -> None:
        """Close connections to peers that vanished, and those idle for long. Called now and then."""
        now_s = self._clock()
        for key, peer in list(self._peers.items()):
            connection = peer.connection
            busy = peer.connecting.locked() or (connection is not None and not connection.idle)
            if busy or (key in alive and now_s - peer.used_at_s < IDLE_TIMEOUT_S):
                continue
            del self._peers[key]
            if connection is not None:
                await connection.close()

    async def close(self) -> None:
        """Close everything."""
        peers, self._peers = self._peers, {}
        for peer in peers.values():
            if peer.connection is not None:
                await peer.connection.close()

    async def _connection(self, peer: _Peer, card: cluster_pb2.WorkerCard) -> SlottedConnection:
        async with peer.connecting:
            peer.used_at_s = self._clock()
            if peer.connection is not None:
                if not peer.connection.closed:
                    return peer.connection
                await peer.connection.close()
                peer.connection = None
            for kind, address in self._routes(peer, card):
                try:
                    if kind == "shm":
                        peer.connection = await shm.connect(
                            address, self._source, self._slot_bytes, CONNECT_TIMEOUT_S
                        )
                    else:
                        peer.connection = await tcp.connect(
                            address, self._source, self._slot_bytes, CONNECT_TIMEOUT_S
                        )
                except (OSError, ValueError, TimeoutError) as error:
                    _log.warning(
                        "cannot connect for blocks",
                        peer=card.worker_id,
                        transport=kind,
                        error=type(error).__name__,
                    )
                    peer.failed_at_s[kind] = self._clock()
                    continue
                return peer.connection
            raise Unavailable("the decode worker cannot be reached for its blocks")

    def _routes(self, peer: _Peer, card: cluster_pb2.WorkerCard) -> list[tuple[str, str]]:
        """(kind, address) in the order to try them; those that failed lately come last."""
        routes = [
            (kind, endpoint.address)
            for kind in self._kinds
            for endpoint in card.kv_endpoints
            if endpoint.kind == _KINDS[kind] and (kind != "shm" or endpoint.host_id == self._host_id)
        ]
        now_s = self._clock()
        return sorted(
            routes,
            key=lambda route: now_s - peer.failed_at_s.get(route[0], -RETRY_AFTER_S) < RETRY_AFTER_S,
        )
