"""Brings what the registry says into the cluster's view, and tells watchers."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence

from tandem_common.registry import ClusterWatcher, RegisteredWorker

from tandem_router.cluster import Cluster
from tandem_router.index import BlockIndex
from tandem_router.metrics import RouterMetrics
from tandem_router.view import ClusterView


class ClusterFeed:
    """Feeds one cluster from one watcher; `run` by its owner."""

    def __init__(
        self,
        watcher: ClusterWatcher,
        cluster: Cluster,
        index: BlockIndex,
        metrics: RouterMetrics,
        observers: Sequence[Callable[[ClusterView], None]] = (),
    ) -> None:
        """`observers` are called, gauges set and bookings aged after every look at the registry, changed or not."""
        self._observers = list(observers)
        self._watcher = watcher
        self._cluster = cluster
        self._index = index
        self._metrics = metrics
        self._changed = asyncio.Event()
        self._seen: Mapping[str, RegisteredWorker] = {}

    @property
    def stale_ms(self) -> int:
        """Milliseconds since Redis last answered."""
        return self._watcher.stale_ms

    def add_observer(self, observer: Callable[[ClusterView], None]) -> None:
        """Call it with every update too, after those there are."""
        self._observers.append(observer)

    async def run(self) -> None:
        """Feed until cancelled."""
        while True:
            self.update()
            await self._watcher.polled()

    def update(self) -> None:
        """Bring what the watcher saw last into the view."""
        registered = self._watcher.workers
        self._cluster.observe(registered, time.monotonic())
        for observe in self._observers:
            observe(self._cluster.view)
        self._metrics.workers.set(len(self._cluster.registered))
        self._metrics.bookings.set(len(self._cluster.bookings))
        self._metrics.index_blocks.set(self._index.num_hashes)
        self._metrics.view_stale_ms.set(self._watcher.stale_ms)
        if registered is not self._seen:
            self._seen = registered
            self._changed.set()
            self._changed = asyncio.Event()

    async def changed(self) -> None:
        """Wait until a card or beat has changed."""
        await self._changed.wait()
