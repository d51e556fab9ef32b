"""Channels to prefill workers: one each, opened when needed, closed when the worker is gone from the registry."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

import grpc
from tandem.v1 import cluster_pb2
from tandem_common.registry import ClusterWatcher
from tandem_common.rpc import open_channel


@dataclass(slots=True)
class _Entry:
    channel: grpc.aio.Channel
    num_calls: int = 0


class PrefillChannels:
    """Keyed by worker and incarnation, with the address from the registry."""

    def __init__(self, watcher: ClusterWatcher) -> None:
        self._watcher = watcher
        self._entries: dict[tuple[str, int], _Entry] = {}
        self._closing: set[asyncio.Task[None]] = set()

    @contextlib.contextmanager
    def channel(self, card: cluster_pb2.WorkerCard) -> Iterator[grpc.aio.Channel]:
        """The channel to a registered worker, kept open at least for the duration of the block."""
        key = (card.worker_id, card.epoch)
        entry = self._entries.get(key)
        if entry is None:
            self._close_unused()
            entry = self._entries[key] = _Entry(open_channel(card.address))
        entry.num_calls += 1
        try:
            yield entry.channel
        finally:
            entry.num_calls -= 1

    async def close(self) -> None:
        """Close all."""
        entries, self._entries = self._entries, {}
        await asyncio.gather(*(entry.channel.close() for entry in entries.values()), *self._closing)

    def _close_unused(self) -> None:
        """Called with each new worker, so that at most the registered ones have channels."""
        alive = {(seen.card.worker_id, seen.card.epoch) for seen in self._watcher.workers.values()}
        for key, entry in list(self._entries.items()):
            if key not in alive and entry.num_calls == 0:
                del self._entries[key]
                task = asyncio.create_task(entry.channel.close(), name="close-channel")
                self._closing.add(task)
                task.add_done_callback(self._closing.discard)
