"""Keeps the block index up to date: loads each worker's snapshot, then follows its stream.

The cursor of a worker is the id of the last entry that was applied. It stops being good, and the snapshot is loaded
again, when

- the worker registers with another epoch;
- the stream's first entry is younger than the cursor and the snapshot is too: entries were trimmed unread. (Workers
  trim only what their snapshot holds already, so an older snapshot means that nothing was missed.);
- the stream's last entry is older than the cursor, or the stream is gone: Redis was emptied or replaced;
- the index has more blocks of a worker than the worker can hold: something was missed after all.

While Redis is away the index stays as it is. A worker's unreadable records harm nobody but itself.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import redis.asyncio
from redis.exceptions import RedisError, ResponseError
from tandem_common.keys import Keys
from tandem_common.logs import get_logger
from tandem_common.redis_client import is_of_wrong_type
from tandem_common.redis_line import line_of

from tandem_router.index import BlockIndex
from tandem_router.kv_records import START, MalformedRecord, StreamId, parse_events, parse_snapshot
from tandem_router.metrics import RouterMetrics
from tandem_router.stream_reader import Entries, StreamReader

_GATHER_S = 0.05  # between reads, so that one read brings the entries of several steps and workers
_CHECK_S = 1.0
_BLOCKS_PER_TURN = 4096  # applied before others on the event loop get their turn
_MIN_BACKOFF_S, _MAX_BACKOFF_S = 0.1, 2.0

_log = get_logger("kv_follower")


@dataclass(frozen=True, slots=True)
class Target:
    """An incarnation of a worker whose blocks are to be known."""

    epoch: int
    num_blocks: int


@dataclass(slots=True)
class _Followed:
    target: Target
    cursor: StreamId = START
    loaded: bool = False  # False: load the snapshot before reading on
    poisoned: bool = False  # its keys hold something else; looked at again with every check


class KvFollower:
    """Follows the streams of all `targets`, which are asked for anew before each read. `run` by its owner."""

    def __init__(
        self,
        client: redis.asyncio.Redis,
        keys: Keys,
        index: BlockIndex,
        metrics: RouterMetrics,
        targets: Callable[[], Mapping[str, Target]],
        reader: StreamReader | None = None,
    ) -> None:
        """`reader` may have a client of its own, which waits for longer."""
        self._redis = client
        self._line = line_of(client)
        self._reader = reader or StreamReader(client)
        self._keys = keys
        self._index = index
        self._metrics = metrics
        self._targets = targets
        self._followed: dict[str, _Followed] = {}
        self._checked_at_s = time.monotonic()

    def ready(self, worker_id: str) -> bool:
        """Whether the index has what the worker's snapshot said and follows its stream."""
        followed = self._followed.get(worker_id)
        return followed is not None and followed.loaded and not followed.poisoned

    def look(self) -> None:
        """Do not wait for block events any longer if the targets are not those that are followed."""
        targets, followed = self._targets(), self._followed
        if targets.keys() != followed.keys() or any(
            followed[worker_id].target.epoch != target.epoch for worker_id, target in targets.items()
        ):
            self._reader.interrupt()

    async def run(self) -> None:
        """Follow until cancelled. An outage of Redis is logged once and ends with a line too."""
        backoff_s = _MIN_BACKOFF_S
        away = False
        while True:
            try:
                await self.step()
            except (RedisError, OSError) as error:
                if not away:
                    _log.warning("redis does not answer; the block index stays as it is", error=str(error))
                away = True
                await asyncio.sleep(backoff_s)
                backoff_s = min(2 * backoff_s, _MAX_BACKOFF_S)
            else:
                if away:
                    _log.info("redis answers again; following block events")
                away, backoff_s = False, _MIN_BACKOFF_S

    async def step(self) -> None:
        """Reconcile with the targets, load what is not loaded, read and apply once. Raises RedisError."""
        self._reconcile()
        for worker_id, followed in list(self._followed.items()):
            if not followed.loaded and not followed.poisoned:
                await self._load(worker_id, followed)
        if time.monotonic() - self._checked_at_s >= _CHECK_S:
            await self._check()
            self._checked_at_s = time.monotonic()
        await self._read([worker_id for worker_id in self._followed if self.ready(worker_id)])
        self._index.sweep(_BLOCKS_PER_TURN)

    def _reconcile(self) -> None:
        targets = self._targets()
        for worker_id in [known for known in self._followed if known not in targets]:
            del self._followed[worker_id]
            self._index.forget(worker_id)
        for worker_id, target in targets.items():
            followed = self._followed.get(worker_id)
            if followed is None or followed.target.epoch != target.epoch:
                # The old incarnation's blocks are gone with it.
                self._index.forget(worker_id)
                self._followed[worker_id] = _Followed(target)
            else:
                followed.target = target

    async def _load(self, worker_id: str, followed: _Followed) -> None:
        """Take over the snapshot, or start from the beginning of the stream if there is none of this epoch."""
        async with self._redis.pipeline(transaction=False) as pipeline:
            pipeline.get(self._keys.kv_snapshot(worker_id))
            pipeline.xrevrange(self._keys.kv_stream(worker_id), count=1)
            record, last = await pipeline.execute(raise_on_error=False)
        if is_of_wrong_type(record, last):
            self._poison(worker_id, followed)
            return
        epoch = followed.target.epoch
        snapshot = None
        if record is not None:
            try:
                snapshot = parse_snapshot(record, followed.target.num_blocks)
            except MalformedRecord:
                self._skip("malformed")
        if snapshot is not None and snapshot.epoch == epoch:
            self._index.load(worker_id, epoch, snapshot.stored)
            # A stream that ends before the snapshot was begun anew after it: all of it is news. Entries that the
            # snapshot holds already do no harm, since the last one about a block wins.
            begun_anew = not last or StreamId.parse(last[0][0]) < snapshot.stream_id
            followed.cursor = START if begun_anew else snapshot.stream_id
        else:
            # Without a snapshot, what is known of this very incarnation is still the best guess: Redis may have been
            # emptied a moment ago.
            if self._index.epoch(worker_id) != epoch:
                self._index.load(worker_id, epoch, ())
            followed.cursor = START
        followed.loaded, followed.poisoned = True, False
        self._metrics.snapshot_loads.inc()

    async def _read(self, worker_ids: list[str]) -> None:
        """Wait a moment for entries of any of these workers, and apply them."""
        ids_by_key = {self._keys.kv_stream(worker_id).encode(): worker_id for worker_id in worker_ids}
        cursors = {key: self._followed[worker_id].cursor for key, worker_id in ids_by_key.items()}
        try:
            streams = await self._reader.read(cursors)
        except ResponseError:
            # One key of the wrong type fails the whole read; find out whose.
            if not await self._check():
                raise
            return
        if not streams:
            return
        beginnings = await self._line.ask(*(("XRANGE", key, "-", "+", "COUNT", 1) for key, _ in streams))
        num_blocks = 0
        for (key, entries), first in zip(streams, beginnings, strict=True):
            worker_id = ids_by_key[key]
            followed = self._followed[worker_id]
            if is_of_wrong_type(first):
                self._poison(worker_id, followed)
            elif (
                first
                and StreamId.parse(first[0][0]) > followed.cursor
                and await self._snapshot_is_ahead(worker_id, followed)
            ):
                followed.loaded = False
            else:
                num_blocks = await self._apply(worker_id, followed, entries, num_blocks)
        await asyncio.sleep(_GATHER_S)

    async def _snapshot_is_ahead(self, worker_id: str, followed: _Followed) -> bool:
        """Whether the snapshot knows more than the cursor, so that what was trimmed may have been missed."""
        async with self._redis.pipeline(transaction=False) as pipeline:
            pipeline.get(self._keys.kv_snapshot(worker_id))
            (record,) = await pipeline.execute(raise_on_error=False)
        if record is None or is_of_wrong_type(record):
            return False
        try:
            snapshot = parse_snapshot(record, followed.target.num_blocks)
        except MalformedRecord:
            return False
        return snapshot.epoch == followed.target.epoch and snapshot.stream_id > followed.cursor

    async def _apply(
        self,
        worker_id: str,
        followed: _Followed,
        entries: Entries,
        num_blocks: int,
    ) -> int:
        """Apply entries in order and move the cursor; returns the blocks applied since others had their turn."""
        epoch = followed.target.epoch
        for entry_id, fields in entries:
            followed.cursor = StreamId.parse(entry_id)
            try:
                events = parse_events(fields)
            except MalformedRecord:
                self._skip("malformed")
                continue
            if events.epoch != epoch:
                self._skip("stale_epoch")
                continue
            if events.cleared:
                self._index.clear(worker_id, epoch)
            self._index.apply(worker_id, epoch, removed=events.removed, stored=events.stored)
            self._metrics.applied_events.inc()
            num_blocks += len(events.removed) + len(events.stored)
            if num_blocks >= _BLOCKS_PER_TURN:
                num_blocks = 0
                await asyncio.sleep(0)
        if self._index.num_blocks(worker_id) > followed.target.num_blocks:
            self._index.forget(worker_id)
            followed.loaded = False
        return num_blocks

    async def _check(self) -> bool:
        """Look for streams that began anew or are no streams; whether any of the latter was found."""
        worker_ids = list(self._followed)
        answers = await self._line.ask(
            *(
                ("XREVRANGE", self._keys.kv_stream(worker_id), "+", "-", "COUNT", 1)
                for worker_id in worker_ids
            )
        )
        found = False
        for worker_id, last in zip(worker_ids, answers, strict=True):
            followed = self._followed[worker_id]
            if is_of_wrong_type(last):
                found = True
                self._poison(worker_id, followed)
            elif followed.poisoned:
                await self._load(worker_id, followed)
            elif followed.cursor > (StreamId.parse(last[0][0]) if last else START):
                followed.loaded = False
        return found

    def _poison(self, worker_id: str, followed: _Followed) -> None:
        if not followed.poisoned:
            _log.warning("a worker's block records cannot be read", worker_id=worker_id)
            self._skip("malformed")
        followed.poisoned = True

    def _skip(self, reason: str) -> None:
        self._metrics.skipped_records.labels(reason).inc()
