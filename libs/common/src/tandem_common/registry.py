"""Who is alive: workers and services publish cards and beats to Redis, watchers poll them.

A card lives for three heartbeats, and for three seconds at least: a process that gets no CPU for a moment is not
dead, and one that died is noticed sooner by those who are connected to it. Every heartbeat writes all of the card
again, index membership included, so a Redis that comes back empty is full again one heartbeat later. Watchers
keep their last view while Redis is away, and say how old it is.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Generic, TypeVar

import redis.asyncio
from google.protobuf.message import DecodeError
from redis.exceptions import RedisError
from tandem.v1 import cluster_pb2 as pb

from tandem_common.keys import Keys
from tandem_common.logs import get_logger
from tandem_common.redis_client import is_of_wrong_type

HEARTBEATS_TO_LIVE = 3
MIN_TTL_S = 3.0
EPOCH_TTL_S = 86_400
# A record larger than this was not written by us.
MAX_RECORD_BYTES = 1 << 20
# Between two looks while nothing has come up yet.
_EMPTY_INTERVAL_S = 0.25

_log = get_logger("registry")


@dataclass(frozen=True)
class RegisteredWorker:
    """A worker as Redis knows it; `beat` is missing, or of the card's epoch."""

    card: pb.WorkerCard
    beat: pb.WorkerBeat | None


class WorkerPublisher:
    """Writes one worker's card and beat. Every method raises RedisError when Redis is away."""

    def __init__(self, client: redis.asyncio.Redis, keys: Keys, heartbeat_s: float) -> None:
        self._redis = client
        self._keys = keys
        self._ttl_ms = _ttl_ms(heartbeat_s)

    @property
    def ttl_s(self) -> float:
        """How long others believe a card that is not published again."""
        return self._ttl_ms / 1000

    async def next_epoch(self, worker_id: str) -> int:
        """A number greater than that of every earlier incarnation, even if Redis forgot them.

        Milliseconds since 1970 are the floor: after Redis lost its memory, a restart still counts on.
        """
        async with self._redis.pipeline(transaction=True) as pipeline:
            pipeline.set(self._keys.epoch(worker_id), int(1000 * time.time()), nx=True, ex=EPOCH_TTL_S)
            pipeline.incr(self._keys.epoch(worker_id))
            pipeline.expire(self._keys.epoch(worker_id), EPOCH_TTL_S)
            results = await pipeline.execute()
        return int(results[1])

    async def publish(self, card: pb.WorkerCard, beat: pb.WorkerBeat) -> None:
        """Register or go on being registered."""
        worker_id = card.worker_id
        async with self._redis.pipeline(transaction=False) as pipeline:
            pipeline.set(self._keys.card(worker_id), card.SerializeToString(), px=self._ttl_ms)
            pipeline.set(self._keys.beat(worker_id), beat.SerializeToString(), px=self._ttl_ms)
            pipeline.sadd(self._keys.workers(), worker_id)
            await pipeline.execute()

    async def remove(self, worker_id: str) -> None:
        """Leave the registry now instead of when the card expires."""
        async with self._redis.pipeline(transaction=False) as pipeline:
            pipeline.delete(self._keys.card(worker_id))
            pipeline.delete(self._keys.beat(worker_id))
            pipeline.srem(self._keys.workers(), worker_id)
            await pipeline.execute()


class ServicePublisher:
    """Keeps a router, planner or frontend in the registry."""

    def __init__(
        self, client: redis.asyncio.Redis, keys: Keys, card: pb.ServiceCard, heartbeat_s: float = 1.0
    ) -> None:
        self._redis = client
        self._keys = keys
        self._card = card
        self._heartbeat_s = heartbeat_s

    async def run(self) -> None:
        """Publish until cancelled, then remove the card."""
        index, key = (
            self._keys.services(self._card.kind),
            self._keys.service(self._card.kind, self._card.service_id),
        )
        ttl_ms = _ttl_ms(self._heartbeat_s)
        outage = _Outage("publishing the service card")
        try:
            while True:
                try:
                    async with self._redis.pipeline(transaction=False) as pipeline:
                        pipeline.set(key, self._card.SerializeToString(), px=ttl_ms)
                        pipeline.sadd(index, self._card.service_id)
                        await pipeline.execute()
                    outage.over()
                except (RedisError, OSError) as error:
                    outage.saw(error)
                await asyncio.sleep(self._heartbeat_s)
        finally:
            with contextlib.suppress(RedisError, OSError):
                await self._redis.delete(key)


T = TypeVar("T")


class _Watcher(ABC, Generic[T]):
    """Polls one family of records and keeps the last view while Redis is away."""

    def __init__(self, client: redis.asyncio.Redis, interval_s: float) -> None:
        self._redis = client
        self._interval_s = interval_s
        self._view: dict[str, T] = {}
        self._answered_at = time.monotonic()
        self._changed = asyncio.Event()

    @property
    def stale_ms(self) -> int:
        """Milliseconds since Redis last answered."""
        return round(1000 * (time.monotonic() - self._answered_at))

    async def changed(self) -> None:
        """Wait for the next poll that found a difference."""
        await self._changed.wait()

    async def run(self) -> None:
        """Poll until cancelled; an outage is logged once and ends with a line too."""
        outage = _Outage("watching the registry")
        while True:
            try:
                await self.refresh()
                outage.over()
            except (RedisError, OSError) as error:
                outage.saw(error)
            await asyncio.sleep(self._interval_s if self._view else min(self._interval_s, _EMPTY_INTERVAL_S))

    async def refresh(self) -> None:
        """Poll once; raises RedisError."""
        view = await self._poll()
        self._answered_at = time.monotonic()
        if view != self._view:
            self._view = view
            self._changed.set()
            self._changed = asyncio.Event()

    @abstractmethod
    async def _poll(self) -> dict[str, T]:
        """What is registered now, by id."""


class ClusterWatcher(_Watcher[RegisteredWorker]):
    """All registered workers, by worker id. `run` must be started by the owner."""

    def __init__(self, client: redis.asyncio.Redis, keys: Keys, interval_s: float = 0.25) -> None:
        super().__init__(client, interval_s)
        self._keys = keys

    @property
    def workers(self) -> Mapping[str, RegisteredWorker]:
        """The last view."""
        return self._view

    async def _poll(self) -> dict[str, RegisteredWorker]:
        ids = await _members(self._redis, self._keys.workers())
        async with self._redis.pipeline(transaction=False) as pipeline:
            for worker_id in ids:
                pipeline.get(self._keys.card(worker_id))
                pipeline.get(self._keys.beat(worker_id))
            # A poisoned key (of another type, say) spoils itself only.
            records = await pipeline.execute(raise_on_error=False)
        view = {}
        for worker_id, card_bytes, beat_bytes in zip(ids, records[::2], records[1::2], strict=True):
            card = None if is_of_wrong_type(card_bytes) else _parse(card_bytes, pb.WorkerCard)
            if card is None or card.worker_id != worker_id:
                continue
            beat = None if is_of_wrong_type(beat_bytes) else _parse(beat_bytes, pb.WorkerBeat)
            view[worker_id] = RegisteredWorker(card, beat if beat and beat.epoch == card.epoch else None)
        return view


class ServiceWatcher(_Watcher[pb.ServiceCard]):
    """All registered services of one kind, by service id. `run` must be started by the owner."""

    def __init__(self, client: redis.asyncio.Redis, keys: Keys, kind: str, interval_s: float = 1.0) -> None:
        super().__init__(client, interval_s)
        self._keys = keys
        self._kind = kind

    @property
    def services(self) -> Mapping[str, pb.ServiceCard]:
        """The last view."""
        return self._view

    async def _poll(self) -> dict[str, pb.ServiceCard]:
        ids = await _members(self._redis, self._keys.services(self._kind))
        async with self._redis.pipeline(transaction=False) as pipeline:
            for service_id in ids:
                pipeline.get(self._keys.service(self._kind, service_id))
            records = await pipeline.execute(raise_on_error=False)
        cards = {
            service_id: _parse(record, pb.ServiceCard)
            for service_id, record in zip(ids, records, strict=True)
            if not is_of_wrong_type(record)
        }
        return {service_id: card for service_id, card in cards.items() if card is not None}


class _Outage:
    """Logs the first failure of a row and the recovery."""

    def __init__(self, doing: str) -> None:
        self._doing = doing
        self._since: float | None = None

    def saw(self, error: Exception) -> None:
        if self._since is None:
            self._since = time.monotonic()
            _log.warning(
                "redis does not answer; going on with the last view", doing=self._doing, error=str(error)
            )

    def over(self) -> None:
        if self._since is not None:
            _log.info(
                "redis answers again", doing=self._doing, after_s=round(time.monotonic() - self._since, 1)
            )
            self._since = None


def _ttl_ms(heartbeat_s: float) -> int:
    return round(1000 * max(MIN_TTL_S, HEARTBEATS_TO_LIVE * heartbeat_s))


async def _members(client: redis.asyncio.Redis, key: str) -> list[str]:
    members = await client.smembers(key)
    return sorted(member.decode("utf-8", "replace") for member in members if isinstance(member, bytes))


M = TypeVar("M", pb.WorkerCard, pb.WorkerBeat, pb.ServiceCard)


def _parse(record: object, kind: type[M]) -> M | None:
    """The message, or None for a record that is missing or was not written by us."""
    if not isinstance(record, bytes) or len(record) > MAX_RECORD_BYTES:
        return None
    try:
        return kind.FromString(record)
    except DecodeError:
        return None
