"""The edge around the lease table: the clock, who is told of an expiry, and waiting for chunks in flight."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass

from tandem_worker.lease import Lease, LeaseTable, Verdict

MAX_LEASES = 4096
REAP_INTERVAL_S = 0.25


@dataclass(slots=True)
class _Holder:
    scope: asyncio.Timeout
    settled: asyncio.Event


class LeaseKeeper:
    """All leases of one worker, each held by the coroutine that runs its handoff."""

    def __init__(self, timeout_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        """A lease ends `timeout_s` after the last sign of life."""
        self.table = LeaseTable(MAX_LEASES)
        self._timeout_s = timeout_s
        self._clock = clock
        self._holders: dict[str, _Holder] = {}
        self._any_held = asyncio.Event()

    @property
    def now_s(self) -> float:
        """What deadlines are compared with."""
        return self._clock()

    @contextlib.asynccontextmanager
    async def hold(
        self, *, lease_id: str, request_id: str, peer_worker_id: str, first_block: int, num_blocks: int
    ) -> AsyncIterator[Lease]:
        """Hold a lease for the duration of the block.

        TimeoutError is raised in the block when the lease expires. At its end, however it ends, the lease is released
        and nothing of it is in flight any more: its blocks can be freed.
        """
        lease = Lease(
            lease_id=lease_id,
            request_id=request_id,
            peer_worker_id=peer_worker_id,
            first_block=first_block,
            num_blocks=num_blocks,
            deadline_s=self._clock() + self._timeout_s,
        )
        self.table.reserve(lease)
        holder = _Holder(asyncio.timeout(None), asyncio.Event())
        self._holders[lease_id] = holder
        self._any_held.set()
        try:
            async with holder.scope:
                yield lease
        finally:
            try:
                while not self.table.release(lease):
                    holder.settled.clear()
                    await holder.settled.wait()
            finally:
                del self._holders[lease_id]

    def renew(self, lease: Lease) -> None:
        """There was a sign of life."""
        self.table.renew(lease, self._clock() + self._timeout_s)

    def begin(self, lease_id: str, first_block: int, num_blocks: int) -> tuple[Lease, Verdict]:
        """See `LeaseTable.begin`."""
        return self.table.begin(lease_id, first_block, num_blocks, self._clock())

    def finish(self, lease: Lease, first_block: int, num_blocks: int, *, copied: bool) -> bool:
        """See `LeaseTable.finish`; also a sign of life."""
        counts = self.table.finish(lease, first_block, num_blocks, copied=copied)
        self.renew(lease)
        if lease.settled and (holder := self._holders.get(lease.lease_id)):
            holder.settled.set()
        return counts

    def expire(self, lease_id: str) -> None:
        """End a lease from outside (Release): its holder gets TimeoutError. Unknown leases are fine."""
        if holder := self._holders.get(lease_id):
            self._time_out(holder)

    async def reap(self) -> None:
        """Tell the holders of expired leases, until cancelled."""
        while True:
            if not self._holders:
                self._any_held.clear()
                await self._any_held.wait()
            for lease in self.table.expired(self._clock()):
                if holder := self._holders.get(lease.lease_id):
                    self._time_out(holder)
            await asyncio.sleep(REAP_INTERVAL_S)

    def _time_out(self, holder: _Holder) -> None:
        if not holder.scope.expired():
            with contextlib.suppress(RuntimeError):  # the block has just ended
                holder.scope.reschedule(asyncio.get_running_loop().time())
