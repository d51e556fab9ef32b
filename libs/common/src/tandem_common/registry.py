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
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, Generic, TypeVar

import redis.asyncio
from google.protobuf.message import DecodeError
from redis.exceptions import RedisError
from tandem.v1 import cluster_pb2 as pb

from tandem_common.keys import Keys
from tandem_common.logs import get_logger
from tandem_common.redis_client import is_cluster
from tandem_common.redis_line import Command, line_of
from tandem_common.ticks import Ticks

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
        self._line = line_of(client)
        self._keys = keys
        self._ttl_ms = _ttl_ms(heartbeat_s)

    @property
    def ttl_s(self) -> float:
        """How long others believe a card that is not published again."""
        return self._ttl_ms / 1000

    @property
    def ticks(self) -> Ticks:
        """When to publish, so that it shares a round trip with what else is asked then."""
        return self._line.ticks

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
        answers = await self._line.ask(
            ("SET", self._keys.card(worker_id), card.SerializeToString(), "PX", self._ttl_ms),
            ("SET", self._keys.beat(worker_id), beat.SerializeToString(), "PX", self._ttl_ms),
            ("SADD", self._keys.workers(), worker_id),
        )
        _raise_any(answers)

    async def remove(self, worker_id: str) -> None:
        """Leave the registry now instead of when the card expires."""
        async with self._redis.pipeline(transaction=False) as pipeline:
            # An empty card says that it left; one that is missing could mean that Redis lost its memory.
            pipeline.set(self._keys.card(worker_id), b"", px=self._ttl_ms)
            pipeline.delete(self._keys.beat(worker_id))
            pipeline.srem(self._keys.workers(), worker_id)
            await pipeline.execute()


class ServicePublisher:
    """Keeps a router, planner or frontend in the registry."""

    def __init__(
        self, client: redis.asyncio.Redis, keys: Keys, card: pb.ServiceCard, heartbeat_s: float = 1.0
    ) -> None:
        self._redis = client
        self._line = line_of(client)
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
                    record = self._card.SerializeToString()
                    _raise_any(
                        await self._line.ask(
                            ("SET", key, record, "PX", ttl_ms), ("SADD", index, self._card.service_id)
                        )
                    )
                    outage.over()
                except (RedisError, OSError) as error:
                    outage.saw(error)
                await self._line.ticks.rest(self._heartbeat_s)
        finally:
            with contextlib.suppress(RedisError, OSError):
                await self._redis.delete(key)


T = TypeVar("T")
Records = tuple[Any, ...]  # as Redis gave them: bytes, or None for what is missing


@dataclass(frozen=True, slots=True)
class _Roll:
    """Who is listed, and the commands that ask for the records of all of them in this order."""

    listed: frozenset[bytes] = frozenset()
    ids: tuple[str, ...] = ()
    commands: tuple[Command, ...] = ()


class _Watcher(ABC, Generic[T]):
    """Polls one family of records and keeps the last view while Redis is away.

    A poll is one round trip, shared with what else the process asks at that moment, unless somebody came or went.
    Records are parsed when their bytes have changed.

    Who is not listed any more and did not say that it leaves was dropped by nobody: Redis lost its memory, and knows it
    again after its next heartbeat. Until its card would have expired it counts as it was.
    """

    def __init__(self, client: redis.asyncio.Redis, index: str, interval_s: float) -> None:
        """`index` is the key of the set of ids."""
        self._line = line_of(client)
        self._is_cluster = is_cluster(client)
        self._index = index
        self._interval_s = interval_s
        self._roll = self._answered = _Roll()
        self._listed: frozenset[bytes] = frozenset()  # in Redis
        self._lost: dict[bytes, float] = {}  # ids that were, and until when they count
        self._answers: list[Any] = []
        self._records: dict[str, Records] = {}
        self._view: dict[str, T] = {}
        self._answered_at = time.monotonic()
        self._changed = asyncio.Event()
        self._polled = asyncio.Event()

    @property
    def stale_ms(self) -> int:
        """Milliseconds since Redis last answered."""
        return round(1000 * (time.monotonic() - self._answered_at))

    async def changed(self) -> None:
        """Wait for the next poll that found a difference."""
        await self._changed.wait()

    async def polled(self) -> None:
        """Wait until `run` has looked again, whether there was a difference, or an answer, or not."""
        await self._polled.wait()

    async def run(self) -> None:
        """Poll until cancelled; an outage is logged once and ends with a line too."""
        outage = _Outage("watching the registry")
        while True:
            try:
                await self.refresh()
                outage.over()
            except (RedisError, OSError) as error:
                outage.saw(error)
            self._polled.set()
            self._polled = asyncio.Event()
            await self._line.ticks.rest(
                self._interval_s if self._view else min(self._interval_s, _EMPTY_INTERVAL_S)
            )

    async def refresh(self) -> None:
        """Poll once; raises RedisError."""
        roll = self._roll
        members, *answers = await self._line.ask(("SMEMBERS", self._index), *roll.commands)
        _raise_any([members])
        listed = await self._with_lost(frozenset(members))
        if listed != roll.listed:
            roll = self._call_roll(listed)
            answers = await self._line.ask(*roll.commands)
            self._roll = roll
        _raise_any(answers)
        self._answered_at = time.monotonic()
        if roll is not self._answered or answers != self._answers:
            self._answered, self._answers = roll, answers
            self._take(roll.ids, answers)

    async def _with_lost(self, listed: frozenset[bytes]) -> frozenset[bytes]:
        now_s = time.monotonic()
        self._lost = {id_: end_s for id_, end_s in self._lost.items() if now_s < end_s and id_ not in listed}
        gone = [id_ for id_ in self._listed - listed if id_.decode(errors="replace") in self._view]
        if gone:
            cards = await self._line.ask(
                *(("GET", self._keys_of(id_.decode(errors="replace"))[0]) for id_ in gone)
            )
            _raise_any(cards)
            self._lost |= {
                id_: now_s + MIN_TTL_S for id_, card in zip(gone, cards, strict=True) if card is None
            }
        self._listed = listed
        return listed | self._lost.keys()

    def _call_roll(self, listed: frozenset[bytes]) -> _Roll:
        ids = tuple(sorted(member.decode("utf-8", "replace") for member in listed))
        # A key of another type is None in the answer, as if it were missing.
        asked = [self._keys_of(id_) for id_ in ids]
        together = asked if self._is_cluster else [tuple(chain.from_iterable(asked))] if asked else []
        return _Roll(listed, ids, tuple(("MGET", *keys) for keys in together))

    def _take(self, ids: Sequence[str], answers: Sequence[Sequence[Any]]) -> None:
        width = len(self._keys_of(""))
        flat = chain.from_iterable(answers)
        records = dict(zip(ids, zip(*[flat] * width, strict=True), strict=True))
        view = {}
        for id_, its_records in records.items():
            before, known = self._records.get(id_), self._view.get(id_)
            is_lost = id_.encode() in self._lost and its_records[0] is None
            entry = known if is_lost or its_records == before else self._parse(id_, its_records, known)
            if entry is not None:
                view[id_] = entry
        self._records = records
        if view != self._view:
            self._view = view
            self._changed.set()
            self._changed = asyncio.Event()

    @abstractmethod
    def _keys_of(self, id_: str) -> tuple[str, ...]:
        """Where its records are: as many keys for each, all with one hash tag."""

    @abstractmethod
    def _parse(self, id_: str, records: Records, known: T | None) -> T | None:
        """What is registered, or None; `known` is what was before. Unchanged parts are taken over from there."""


class ClusterWatcher(_Watcher[RegisteredWorker]):
    """All registered workers, by worker id. `run` must be started by the owner."""

    def __init__(
        self, client: redis.asyncio.Redis, keys: Keys, interval_s: float = 0.25, *, beats: bool = True
    ) -> None:
        """Without `beats`, only cards are looked at: a view that hardly ever changes."""
        super().__init__(client, keys.workers(), interval_s)
        self._keys = keys
        self._beats = beats

    @property
    def workers(self) -> Mapping[str, RegisteredWorker]:
        """The last view."""
        return self._view

    def _keys_of(self, id_: str) -> tuple[str, ...]:
        return (self._keys.card(id_), self._keys.beat(id_)) if self._beats else (self._keys.card(id_),)

    def _parse(self, id_: str, records: Records, known: RegisteredWorker | None) -> RegisteredWorker | None:
        card = _parse(records[0], pb.WorkerCard)
        if card is None or card.worker_id != id_:
            return None
        if known is not None and known.card == card:
            card = known.card
        beat = _parse(records[1], pb.WorkerBeat) if self._beats else None
        return RegisteredWorker(card, beat if beat and beat.epoch == card.epoch else None)


class ServiceWatcher(_Watcher[pb.ServiceCard]):
    """All registered services of one kind, by service id. `run` must be started by the owner."""

    def __init__(self, client: redis.asyncio.Redis, keys: Keys, kind: str, interval_s: float = 1.0) -> None:
        super().__init__(client, keys.services(kind), interval_s)
        self._keys = keys
        self._kind = kind

    @property
    def services(self) -> Mapping[str, pb.ServiceCard]:
        """The last view."""
        return self._view

    def _keys_of(self, id_: str) -> tuple[str, ...]:
        return (self._keys.service(self._kind, id_),)

    def _parse(self, id_: str, records: Records, known: pb.ServiceCard | None) -> pb.ServiceCard | None:
        return _parse(records[0], pb.ServiceCard)


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


def _raise_any(answers: Sequence[object]) -> None:
    for answer in answers:
        if isinstance(answer, Exception):
            raise answer


M = TypeVar("M", pb.WorkerCard, pb.WorkerBeat, pb.ServiceCard)


def _parse(record: object, kind: type[M]) -> M | None:
    """The message, or None for a record that is missing or was not written by us."""
    if not isinstance(record, bytes) or len(record) > MAX_RECORD_BYTES:
        return None
    try:
        return kind.FromString(record)
    except DecodeError:
        return None
