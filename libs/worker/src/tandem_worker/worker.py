"""What the parts of one worker share: handed to its roles."""

from __future__ import annotations

from dataclasses import dataclass

from redis.exceptions import RedisError
from tandem.v1 import cluster_pb2 as pb
from tandem_common.registry import ClusterWatcher
from tandem_engine.api import Engine

from tandem_worker.accepted import AcceptedRequests
from tandem_worker.config import WorkerConfig
from tandem_worker.dispatch import Dispatcher
from tandem_worker.gate import Gate
from tandem_worker.incarnation import Incarnation
from tandem_worker.lease_keeper import LeaseKeeper
from tandem_worker.links import LinkSpeeds
from tandem_worker.step_book import StepBook
from tandem_worker.ticket import TicketOffice
from tandem_worker.transports import PeerConnections


@dataclass(frozen=True, kw_only=True)
class Worker:
    """One engine and everything around it that its roles use."""

    config: WorkerConfig
    worker_id: str
    incarnation: Incarnation
    model_revision: str
    engine: Engine
    dispatcher: Dispatcher
    gate: Gate
    leases: LeaseKeeper
    tickets: TicketOffice
    links: LinkSpeeds
    connections: PeerConnections
    watcher: ClusterWatcher
    accepted: AcceptedRequests
    steps: StepBook

    @property
    def epoch(self) -> int:
        """Of the present incarnation."""
        return self.incarnation.epoch

    async def find_peer(self, worker_id: str, epoch: int) -> pb.WorkerCard | None:
        """The card of another registered worker of that incarnation; never our own.

        Looks once more at Redis for a worker that has just come; without Redis, the last view counts.
        """
        if worker_id == self.worker_id:
            return None
        found = self.watcher.workers.get(worker_id)
        if found is None or found.card.epoch != epoch:
            try:
                await self.watcher.refresh()
            except (RedisError, OSError):
                return None
            found = self.watcher.workers.get(worker_id)
        return found.card if found is not None and found.card.epoch == epoch else None
