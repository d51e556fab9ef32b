"""Keeps a worker in the registry: a card and a beat every heartbeat, and at once when something changes."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable

from redis.exceptions import RedisError
from tandem.v1 import cluster_pb2 as pb
from tandem_common.logs import get_logger
from tandem_common.registry import ClusterWatcher, WorkerPublisher

from tandem_worker.card import Endpoints, make_beat, make_card
from tandem_worker.metrics import CACHED_BLOCKS, LEASES, REDIS_OUTAGES, USED_BLOCKS
from tandem_worker.worker import Worker

_log = get_logger("registration")


_FIRST_PUBLISH_S = 2.0


class Fenced(Exception):
    """A later incarnation has taken this worker's id: this one must end."""


class Registration:
    """One worker's records in the registry."""

    def __init__(
        self,
        worker: Worker,
        publisher: WorkerPublisher,
        endpoints: Endpoints,
        on_renewal: Callable[[int], None] = lambda _: None,
    ) -> None:
        """`on_renewal` gets the epoch when this worker goes on as a later incarnation."""
        self._worker = worker
        self._on_renewal = on_renewal
        self._publisher = publisher
        self._endpoints = endpoints
        self.abandoned = False
        self._num_beats = 0
        self._changed = asyncio.Event()
        self._published = asyncio.Event()

    def touch(self) -> None:
        """Publish now: role or status changed."""
        self._changed.set()

    def records(self) -> tuple[pb.WorkerCard, pb.WorkerBeat]:
        """Card and beat as of now."""
        card = make_card(self._worker, self._endpoints)
        return card, make_beat(self._worker, self._num_beats, time.monotonic())

    async def run(self) -> None:
        """Publish until cancelled; raises Fenced. Redis may come, go and forget at any time.

        A turn that took longer than a card lives means that this process was frozen, and is dead for others: it goes on
        as a later incarnation, so that nothing meant for the one before reaches it.
        """
        away = frozen = False
        seen_s = time.monotonic()
        while True:
            self._changed.clear()
            _check_not_fenced(self._worker, self._worker.watcher)
            now_s = time.monotonic()
            frozen = frozen or now_s - seen_s > self._publisher.ttl_s
            seen_s = now_s
            try:
                if frozen:
                    await self._renew()
                    frozen = False
                await self.publish()
                if away:
                    _log.info("redis answers again; registered")
                away = False
            except (RedisError, OSError) as error:
                if not away:
                    REDIS_OUTAGES.inc()
                    _log.warning("redis does not answer; serving on", error=type(error).__name__)
                away = True
            self._publisher.ticks.call(self._worker.config.heartbeat_s, self._changed.set)
            await self._changed.wait()

    async def _renew(self) -> None:
        worker = self._worker
        worker.incarnation.renew(await self._publisher.next_epoch(worker.worker_id))
        self._num_beats = 0
        self._on_renewal(worker.epoch)
        _log.warning("this process was frozen; it goes on as a later incarnation", epoch=worker.epoch)

    async def publish(self) -> None:
        """Publish once; raises RedisError."""
        self._num_beats += 1
        card, beat = self.records()
        USED_BLOCKS.set(beat.num_used_blocks)
        CACHED_BLOCKS.set(beat.num_cached_blocks)
        LEASES.set(len(self._worker.leases.table))
        if not self.abandoned:
            await self._publisher.publish(card, beat)
        self._published.set()

    async def published(self) -> None:
        """Return when others can find this worker, or Redis has been away for a while."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_FIRST_PUBLISH_S):
                await self._published.wait()

    def abandon(self) -> None:
        """Never publish again."""
        self.abandoned = True

    async def remove(self) -> None:
        """Leave the registry for good; raises RedisError."""
        self.abandon()
        await self._publisher.remove(self._worker.worker_id)


def _check_not_fenced(worker: Worker, watcher: ClusterWatcher) -> None:
    seen = watcher.workers.get(worker.worker_id)
    if seen is not None and seen.card.epoch > worker.epoch:
        raise Fenced(f"another worker runs as {worker.worker_id}; give each its own worker_id")
