"""Building the parts of a worker around its started engine."""

from __future__ import annotations

from collections.abc import Sequence

import redis.asyncio
from tandem_common.config import ConfigError
from tandem_common.keys import Keys
from tandem_common.registry import ClusterWatcher
from tandem_engine.api import Engine

from tandem_worker.accepted import AcceptedRequests
from tandem_worker.config import WorkerConfig
from tandem_worker.dispatch import Dispatcher
from tandem_worker.gate import Gate, Role, role_named, supported_roles
from tandem_worker.incarnation import Incarnation
from tandem_worker.lease_keeper import LeaseKeeper
from tandem_worker.links import LinkSpeeds
from tandem_worker.receiving import ReceivedBlocks, chunk_bytes
from tandem_worker.step_book import StepBook
from tandem_worker.ticket import TicketOffice
from tandem_worker.transports import PeerConnections, Receiver, Source, shm, tcp
from tandem_worker.worker import Worker

# Bookings are dropped when a beat lists the request: it stays listed for this many beats, and at least so long.
_LISTED_BEATS = 4
_MIN_LISTED_S = 2.0


def make_worker(
    config: WorkerConfig,
    engine: Engine,
    client: redis.asyncio.Redis,
    *,
    worker_id: str,
    epoch: int,
    revision: str,
    duties: list[Role],
) -> Worker:
    """Everything that the roles share; nothing runs yet. `duties` are those of the installed roles.

    ConfigError when the configured role is not among what they allow.
    """
    role = role_named(config.role)
    supported = supported_roles(duties)
    if role not in supported:
        raise ConfigError(
            f"role = {config.role!r}: its package is not installed; install tandem-prefill or tandem-decode, "
            "or choose another role"
        )
    source = Source(worker_id=worker_id, epoch=epoch)
    return Worker(
        config=config,
        worker_id=worker_id,
        incarnation=Incarnation(epoch),
        model_revision=revision,
        engine=engine,
        dispatcher=Dispatcher(engine),
        gate=Gate(role, supported),
        leases=LeaseKeeper(config.lease_timeout_s),
        tickets=TicketOffice(config.secret_bytes()),
        links=LinkSpeeds(),
        connections=make_connections(source, config.transports, engine),
        watcher=ClusterWatcher(client, Keys(config.cluster), beats=False),
        accepted=AcceptedRequests(max(_MIN_LISTED_S, _LISTED_BEATS * config.heartbeat_s)),
        steps=StepBook(),
    )


def make_connections(source: Source, kinds: Sequence[str], engine: Engine) -> PeerConnections:
    """The sender's side of an engine's handoffs, for these kinds of transports."""
    memory = engine.blocks.memory if "shm" in kinds else None
    max_payload_bytes = chunk_bytes(engine.info.block_bytes)
    if memory is not None:
        max_payload_bytes = min(max_payload_bytes, engine.blocks.max_shared_bytes)
    return PeerConnections(source, kinds, max_payload_bytes, memory)


def make_receivers(worker: Worker) -> list[Receiver]:
    """A listening receiver for each transport that is allowed; OSError when a port is taken."""
    sink = ReceivedBlocks(
        worker.engine,
        worker.leases,
        worker.tickets,
        worker.links,
        worker_id=worker.worker_id,
        incarnation=worker.incarnation,
    )
    config = worker.config
    receivers = []
    if "shm" in config.transports:
        receivers.append(shm.listen(sink))
    if "tcp" in config.transports:
        host = config.kv_host or config.host
        advertised = config.advertise_host or host
        receivers.append(tcp.listen(host, config.kv_port, advertised, sink))
    return receivers
