"""News of many streams at once: one blocking read, or in a Redis Cluster, where one read sees one hash tag, polling."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from typing import Any

import redis.asyncio
from tandem_common.redis_client import is_cluster

from tandem_router.kv_records import StreamId

BLOCK_MS = 200  # well below the time-out of every Redis call
_ENTRIES_PER_READ = 256
# Workers write no faster, see their publisher; and polling takes a sixth of the time at most, however many there are.
_POLL_S = 0.025
_REST = 5.0

# Entries by key, oldest first: id and fields.
News = list[tuple[bytes, list[tuple[bytes, Mapping[bytes, bytes]]]]]


class KvStreams:
    """Reads on from cursors."""

    def __init__(self, client: redis.asyncio.Redis) -> None:
        self._redis = client
        self._polls = is_cluster(client)

    async def read(self, cursors: Mapping[bytes, StreamId]) -> News:
        """What came after each cursor, waiting a moment for it; keys without news are left out.

        Raises RedisError; a ResponseError when one of the keys is no stream.
        """
        if not cursors:
            await asyncio.sleep(BLOCK_MS / 1000)
            return []
        return await (self._poll(cursors) if self._polls else self._wait(cursors))

    async def _wait(self, cursors: Mapping[bytes, StreamId]) -> News:
        after: dict[Any, Any] = {key: str(cursor) for key, cursor in cursors.items()}
        # The client's own annotation covers every protocol version at once.
        streams: Any = await self._redis.xread(after, count=_ENTRIES_PER_READ, block=BLOCK_MS)
        return [(key, entries) for key, entries in streams or ()]

    async def _poll(self, cursors: Mapping[bytes, StreamId]) -> News:
        began_s = time.monotonic()
        async with self._redis.pipeline(transaction=False) as pipeline:
            for key, cursor in cursors.items():
                pipeline.xrange(key, min=f"({cursor}", count=_ENTRIES_PER_READ)
            answers = await pipeline.execute(raise_on_error=False)
        for answer in answers:
            if isinstance(answer, Exception):
                raise answer
        news = [(key, entries) for key, entries in zip(cursors, answers, strict=True) if entries]
        if not news:
            await asyncio.sleep(max(_POLL_S, _REST * (time.monotonic() - began_s)))
        return news
