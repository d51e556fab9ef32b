"""News of many streams at once: one blocking read, or in a Redis Cluster, where one read sees one hash tag, polling."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import redis.asyncio
from tandem_common.redis_client import blocking_ms, is_cluster

from tandem_router.kv_records import StreamId

ENTRIES_PER_READ = 256
# Workers write no faster, see their publisher; and polling takes a sixth of the time at most, however many there are.
_POLL_S = 0.025
_REST = 5.0

# Oldest first: id and fields.
Entries = list[tuple[bytes, Mapping[bytes, bytes]]]
News = list[tuple[bytes, Entries]]


class StreamReader:
    """Reads on from cursors. One task reads; `interrupt` may be called from elsewhere on the event loop."""

    def __init__(self, client: redis.asyncio.Redis) -> None:
        """A read waits for as long as the client allows blocking commands to take."""
        self._redis = client
        self._polls = is_cluster(client)
        self._block_ms = blocking_ms(client)
        self._waiting: asyncio.Task[Any] | None = None
        self._interrupted = False

    def interrupt(self) -> None:
        """Let a read that waits return at once: there is something else to be read."""
        if self._waiting is not None:
            self._interrupted = True
            self._waiting.cancel()

    async def read(self, cursors: Mapping[bytes, StreamId]) -> News:
        """What came after each cursor, waiting a moment for it; keys without news are left out.

        Raises RedisError; a ResponseError when one of the keys is no stream.
        """
        if not cursors:
            await self._wait(lambda: asyncio.sleep(self._block_ms / 1000))
            return []
        if self._polls and len(cursors) > 1:
            return await self._poll(cursors)
        after: dict[Any, Any] = {key: str(cursor) for key, cursor in cursors.items()}
        # The client's own annotation covers every protocol version at once.
        streams: Any = await self._wait(
            lambda: self._redis.xread(after, count=ENTRIES_PER_READ, block=self._block_ms)
        )
        return [(key, entries) for key, entries in streams or ()]

    async def _wait(self, begin: Callable[[], Awaitable[Any]]) -> Any:
        """The result of what is begun; None when it was interrupted."""

        async def wait() -> Any:
            return await begin()

        self._interrupted = False
        self._waiting = asyncio.create_task(wait(), name="stream-reader")
        try:
            return await self._waiting
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if not self._interrupted or (task is not None and task.cancelling()):
                raise
            return None
        finally:
            self._waiting = None

    async def _poll(self, cursors: Mapping[bytes, StreamId]) -> News:
        began_s = time.monotonic()
        async with self._redis.pipeline(transaction=False) as pipeline:
            for key, cursor in cursors.items():
                pipeline.xrange(key, min=f"({cursor}", count=ENTRIES_PER_READ)
            answers = await pipeline.execute(raise_on_error=False)
        for answer in answers:
            if isinstance(answer, Exception):
                raise answer
        news = [(key, entries) for key, entries in zip(cursors, answers, strict=True) if entries]
        if not news:
            await asyncio.sleep(max(_POLL_S, _REST * (time.monotonic() - began_s)))
        return news


def entries_of(answer: Any) -> Entries:
    """Those of an XRANGE, as a client parses it or as Redis gives it. Raises ResponseError when it is one."""
    if isinstance(answer, Exception):
        raise answer
    return [
        (
            entry_id,
            fields if isinstance(fields, Mapping) else dict(zip(fields[::2], fields[1::2], strict=True)),
        )
        for entry_id, fields in answer
    ]
