"""Publishes the changes of a worker's prefix cache to its Redis stream, with a snapshot beside it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence

import redis.asyncio
from redis.exceptions import RedisError
from tandem_common.keys import KV_ENTRY_FIELD, Keys
from tandem_common.logs import get_logger
from tandem_common.redis_line import line_of

from tandem_worker.kv_journal import KvChange, KvJournal
from tandem_worker.metrics import KV_ENTRIES, REDIS_OUTAGES

_log = get_logger("kv_publisher")

# Entries kept, and entries between two snapshots: no entry is trimmed before a snapshot holds it.
STREAM_ENTRIES = 4096
SNAPSHOT_EVERY = 1024
# More hashes waiting than this (1 MiB of them), and everything is told anew.
MAX_PENDING_HASHES = 65_536
# Records of a worker that is gone disappear after this; a living one renews them.
TIME_TO_LIVE_S = 3600
RETRY_S = 0.25
# Between two entries, so that a step's few blocks do not cost a round trip each here and in every router; a change
# after a quiet time is told at once. What a router sent to a worker it expects there before it is told.
MIN_INTERVAL_S = 0.1


class KvPublisher:
    """One worker's KV events. `record` is called with each engine step, `run` by the worker's task group."""

    def __init__(
        self,
        client: redis.asyncio.Redis,
        keys: Keys,
        worker_id: str,
        epoch: int,
        *,
        check_interval_s: float,
        snapshot_every: int = SNAPSHOT_EVERY,
    ) -> None:
        """`check_interval_s`: how often an idle worker looks whether Redis still has its records."""
        self._redis = client
        self._line = line_of(client)
        self._stream = keys.kv_stream(worker_id)
        self._snapshot = keys.kv_snapshot(worker_id)
        self._epoch = epoch
        self._check_interval_s = check_interval_s
        self._snapshot_every = snapshot_every
        self._journal = KvJournal(MAX_PENDING_HASHES)
        self._num_since_snapshot = 0
        self._changed = asyncio.Event()

    def record(self, removed: Sequence[bytes], stored: Sequence[bytes]) -> None:
        """The cache changed in one step; never blocks."""
        self._journal.record(removed, stored)
        self._changed.set()

    def renew(self, epoch: int) -> None:
        """Tell everything anew, as a later incarnation."""
        self._epoch = epoch
        self._journal.retell()
        self._changed.set()

    async def run(self) -> None:
        """Publish until cancelled. While Redis is away changes gather, and are told when it is back."""
        away = False
        while True:
            published_s = time.monotonic()
            try:
                await self._publish()
                if away:
                    _log.info("redis answers again; publishing KV events")
                away = False
            except (RedisError, OSError) as error:
                if not away:
                    REDIS_OUTAGES.inc()
                    _log.warning("redis does not answer; KV events wait", error=type(error).__name__)
                away = True
                await asyncio.sleep(RETRY_S)
                continue
            self._line.ticks.call(self._check_interval_s, self._changed.set)
            await self._changed.wait()
            if (early_s := published_s + MIN_INTERVAL_S - time.monotonic()) > 0:
                await asyncio.sleep(early_s)

    async def remove(self) -> None:
        """Take stream and snapshot away: this worker holds nothing any more. Raises RedisError."""
        await self._redis.delete(self._stream, self._snapshot)

    async def _publish(self) -> None:
        self._changed.clear()
        change = self._journal.take()
        if not change and not await self._records_are_there():
            self._journal.retell()
            change = self._journal.take()
        if not change:
            return
        try:
            if not await self._append(change):
                self._journal.retell()
                change = self._journal.take()
                await self._append(change)
        except BaseException:
            self._journal.put_back(change)
            raise

    async def _append(self, change: KvChange) -> bool:
        """Write one entry, and the snapshot when it is due; False when the stream was gone."""
        entry_id = await self._redis.xadd(
            self._stream,
            {KV_ENTRY_FIELD: change.to_proto(self._epoch).SerializeToString()},
            maxlen=STREAM_ENTRIES,
            approximate=True,
            nomkstream=not change.cleared,
        )
        if entry_id is None:
            return False
        KV_ENTRIES.inc()
        self._num_since_snapshot += 1
        if change.cleared or self._num_since_snapshot >= self._snapshot_every:
            # Holds changes that wait as well: their entries, applied again, change nothing.
            stream_id = entry_id.decode() if isinstance(entry_id, bytes) else entry_id
            snapshot = self._journal.snapshot(self._epoch, stream_id)
            async with self._redis.pipeline(transaction=True) as pipeline:
                pipeline.set(self._snapshot, snapshot.SerializeToString(), ex=TIME_TO_LIVE_S)
                pipeline.expire(self._stream, TIME_TO_LIVE_S)
                await pipeline.execute()
            self._num_since_snapshot = 0
        return True

    async def _records_are_there(self) -> bool:
        answers = await self._line.ask(
            ("EXPIRE", self._stream, TIME_TO_LIVE_S), ("EXPIRE", self._snapshot, TIME_TO_LIVE_S)
        )
        return all(answer is True or answer == 1 for answer in answers)
