"""Connections to the workers that blocks are shipped to: made when needed, the best transport first."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field

from tandem.v1 import cluster_pb2
from tandem_common.errors import Unavailable
from tandem_common.logs import get_logger
from tandem_engine.pool_memory import PoolMemory

from tandem_worker.transports import shm, tcp
from tandem_worker.transports.api import OutgoingChunk, Source, TransportBroken
from tandem_worker.transports.connection import SenderConnection

_log = get_logger("transports")

CONNECT_TIMEOUT_S = 2.0
IDLE_TIMEOUT_S = 60.0
# A transport that failed between two workers is left alone for so long.
RETRY_AFTER_S = 30.0
# Several handoffs at once keep a link busy while one of them waits for an answer, and a short one need not wait for a
# long one; more would take turns on the processors.
MAX_CONNECTIONS_PER_PEER = 2
_KINDS = {"shm": cluster_pb2.TRANSPORT_KIND_SHM, "tcp": cluster_pb2.TRANSPORT_KIND_TCP}


@dataclass(slots=True)
class _Peer:
    connections: list[SenderConnection] = field(default_factory=list)
    connecting: asyncio.Lock = field(default_factory=asyncio.Lock)
    used_at_s: float = 0.0
    failed_at_s: dict[str, float] = field(default_factory=dict)  # by kind of transport


class PeerConnections:
    """The sender's side of all handoffs of one worker.

    `kinds` are the transports allowed, best first. What is shared with processes of this host is `memory`, if anything.
    """

    def __init__(
        self,
        source: Source,
        kinds: Sequence[str],
        max_payload_bytes: int,
        memory: PoolMemory | None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._source = source
        self._kinds = kinds
        self.max_payload_bytes = max_payload_bytes  # of one chunk
        self._clock = clock
        self._memory = memory
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
        return sum(len(peer.connections) for peer in self._peers.values())

    async def drop_unused(self, alive: Collection[tuple[str, int]]) -> None:
        """Close connections to peers that vanished, and those idle for long. Called now and then."""
        now_s = self._clock()
        for key, peer in list(self._peers.items()):
            busy = peer.connecting.locked() or any(link.num_in_flight for link in peer.connections)
            if busy or (key in alive and now_s - peer.used_at_s < IDLE_TIMEOUT_S):
                continue
            del self._peers[key]
            for connection in peer.connections:
                await connection.close()

    async def close(self) -> None:
        """Close everything."""
        peers, self._peers = self._peers, {}
        for peer in peers.values():
            for connection in peer.connections:
                await connection.close()

    async def _connection(self, peer: _Peer, card: cluster_pb2.WorkerCard) -> SenderConnection:
        """An idle connection, a new one, or the least busy one."""
        async with peer.connecting:
            peer.used_at_s = self._clock()
            for connection in [link for link in peer.connections if link.closed]:
                peer.connections.remove(connection)
                await connection.close()
            trusted = [link for link in peer.connections if not self._failed_lately(peer, link.kind)]
            if trusted and (
                len(trusted) >= MAX_CONNECTIONS_PER_PEER or not min(map(_num_in_flight, trusted))
            ):
                return min(trusted, key=_num_in_flight)
            for kind, address in self._routes(peer, card):
                if peer.connections and self._failed_lately(peer, kind):
                    break  # nothing better can be had
                try:
                    connection = await self._connect(kind, address)
                except (OSError, ValueError, TimeoutError) as error:
                    _log.warning(
                        "cannot connect for blocks",
                        peer=card.worker_id,
                        transport=kind,
                        error=type(error).__name__,
                    )
                    peer.failed_at_s[kind] = self._clock()
                    continue
                peer.connections.append(connection)
                return connection
            if peer.connections:
                return min(trusted or peer.connections, key=_num_in_flight)
            raise Unavailable("the decode worker cannot be reached for its blocks")

    async def _connect(self, kind: str, address: str) -> SenderConnection:
        limits = (self.max_payload_bytes, CONNECT_TIMEOUT_S)
        if kind == "shm" and self._memory is not None:
            return await shm.connect(address, self._source, self._memory, *limits)
        return await tcp.connect(address, self._source, *limits)

    def _failed_lately(self, peer: _Peer, kind: str) -> bool:
        return self._clock() - peer.failed_at_s.get(kind, -RETRY_AFTER_S) < RETRY_AFTER_S

    def _routes(self, peer: _Peer, card: cluster_pb2.WorkerCard) -> list[tuple[str, str]]:
        """(kind, address) in the order to try them; those that failed lately come last."""
        routes = [
            (kind, endpoint.address)
            for kind in self._kinds
            for endpoint in card.kv_endpoints
            if endpoint.kind == _KINDS[kind] and (kind != "shm" or self._shares_with(endpoint))
        ]
        return sorted(routes, key=lambda route: self._failed_lately(peer, route[0]))

    def _shares_with(self, endpoint: cluster_pb2.KvEndpoint) -> bool:
        return self._memory is not None and endpoint.host_id == self._host_id


def _num_in_flight(connection: SenderConnection) -> int:
    return connection.num_in_flight
