"""Handoff leases: who may write (or read) which blocks, and until when. Pure: time is an argument, in seconds.

    RESERVED → STAGED → TRANSFERRING → COMMITTED → RELEASED

Both ends of a handoff keep a lease under one id. At the decode worker it covers blocks that are to be written, at
the prefill worker blocks that are to be read. RESERVED: the blocks are promised. STAGED: the other end has
accepted. TRANSFERRING: chunks are on their way. COMMITTED: every block has arrived. RELEASED: nothing is held.
A lease can be released from any phase.

A transfer in flight is never torn: releasing a lease while a chunk is being copied marks it, `finish` then says
that the chunk must be discarded, and the blocks may be freed when the last such chunk has finished.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field

from tandem_common.errors import Conflict, InvalidRequest, Overloaded, PermissionDenied


class LeasePhase(enum.Enum):
    """Where a handoff is; values as in the contracts."""

    RESERVED = 1
    STAGED = 2
    TRANSFERRING = 3
    COMMITTED = 4
    RELEASED = 5


class Verdict(enum.Enum):
    """What to do with a chunk that is offered."""

    COPY = "copy"  # copy it, then call `finish`
    DUPLICATE = "duplicate"  # all of it is there already: acknowledge and ignore


@dataclass(slots=True)
class Lease:
    """One side of one handoff. Blocks [first_block, num_blocks) of the request's sequence are covered."""

    lease_id: str
    request_id: str  # the owner: whatever ends this request releases the lease
    peer_worker_id: str
    first_block: int
    num_blocks: int
    deadline_s: float
    phase: LeasePhase = LeasePhase.RESERVED
    copied: set[int] = field(default_factory=set)
    num_in_flight: int = 0

    @property
    def num_wanted_blocks(self) -> int:
        """Blocks that the lease covers."""
        return self.num_blocks - self.first_block

    @property
    def settled(self) -> bool:
        """Whether nothing is being copied, so that the blocks can be freed."""
        return self.num_in_flight == 0


class LeaseTable:
    """All leases of one worker, at most `max_leases`. Released leases leave the table once they are settled."""

    def __init__(self, max_leases: int) -> None:
        self._max_leases = max_leases
        self._leases: dict[str, Lease] = {}

    def __len__(self) -> int:
        return len(self._leases)

    def find(self, lease_id: str) -> Lease | None:
        """The lease of that id, if there is one."""
        return self._leases.get(lease_id)

    def leases(self) -> list[Lease]:
        """All of them, in order of reservation."""
        return list(self._leases.values())

    def reserve(self, lease: Lease) -> None:
        """Enter a new lease; Overloaded when the table is full, Conflict when the id is taken."""
        if lease.lease_id in self._leases:
            raise Conflict("this lease is in use")
        if len(self._leases) >= self._max_leases:
            raise Overloaded("too many handoffs at once; try again", retry_after_ms=1000)
        if not 0 <= lease.first_block < lease.num_blocks:
            raise InvalidRequest("a handoff needs at least one block")
        self._leases[lease.lease_id] = lease

    def stage(self, lease: Lease) -> None:
        """The other end has accepted; no effect in later phases."""
        if lease.phase is LeasePhase.RESERVED:
            lease.phase = LeasePhase.STAGED

    def renew(self, lease: Lease, deadline_s: float) -> None:
        """There was a sign of life: move the deadline, never backwards."""
        lease.deadline_s = max(lease.deadline_s, deadline_s)

    def check(self, lease_id: str, first_block: int, num_blocks: int, now_s: float) -> Lease:
        """The lease that covers these blocks.

        PermissionDenied for a lease that is unknown, released or past its deadline; InvalidRequest for blocks that it
        does not cover.
        """
        lease = self._leases.get(lease_id)
        if lease is None or lease.phase is LeasePhase.RELEASED or now_s >= lease.deadline_s:
            raise PermissionDenied("no such lease, or it has ended")
        if num_blocks < 1 or first_block < lease.first_block or first_block + num_blocks > lease.num_blocks:
            raise InvalidRequest("blocks outside of the lease")
        return lease

    def begin(self, lease_id: str, first_block: int, num_blocks: int, now_s: float) -> tuple[Lease, Verdict]:
        """A chunk is about to be copied; raises what `check` raises."""
        lease = self.check(lease_id, first_block, num_blocks, now_s)
        blocks = range(first_block, first_block + num_blocks)
        if lease.phase is LeasePhase.COMMITTED or lease.copied.issuperset(blocks):
            return lease, Verdict.DUPLICATE
        lease.phase = LeasePhase.TRANSFERRING
        lease.num_in_flight += 1
        return lease, Verdict.COPY

    def finish(self, lease: Lease, first_block: int, num_blocks: int, *, copied: bool) -> bool:
        """A begun chunk was copied, or failed; returns whether it counts (it does not once released)."""
        lease.num_in_flight -= 1
        if lease.phase is LeasePhase.RELEASED:
            if lease.settled:
                self._leases.pop(lease.lease_id, None)
            return False
        if copied:
            lease.copied.update(range(first_block, first_block + num_blocks))
        if lease.settled and len(lease.copied) == lease.num_wanted_blocks:
            lease.phase = LeasePhase.COMMITTED
        return copied

    def release(self, lease: Lease) -> bool:
        """End a lease from any phase; returns whether its blocks can be freed now. Idempotent."""
        lease.phase = LeasePhase.RELEASED
        if lease.settled and self._leases.get(lease.lease_id) is lease:
            del self._leases[lease.lease_id]
        return lease.settled

    def expired(self, now_s: float) -> list[Lease]:
        """Leases past their deadline that nobody has released yet."""
        return [
            lease
            for lease in self._leases.values()
            if now_s >= lease.deadline_s and lease.phase is not LeasePhase.RELEASED
        ]

    def check_integrity(self) -> None:
        """Raise AssertionError unless what is always true of the table is true."""
        _require(len(self._leases) <= self._max_leases, "more leases than the bound")
        for lease_id, lease in self._leases.items():
            covered = range(lease.first_block, lease.num_blocks)
            complete = len(lease.copied) == lease.num_wanted_blocks
            _require(lease.lease_id == lease_id, "a lease under another's id")
            _require(lease.num_in_flight >= 0, "more chunks finished than begun")
            _require(all(block in covered for block in lease.copied), "copied blocks outside of the lease")
            match lease.phase:
                case LeasePhase.RESERVED | LeasePhase.STAGED:
                    _require(lease.settled and not lease.copied, "copied before the transfer began")
                case LeasePhase.TRANSFERRING:
                    _require(not (complete and lease.settled), "complete but not committed")
                case LeasePhase.COMMITTED:
                    _require(complete and lease.settled, "committed but not complete")
                case LeasePhase.RELEASED:
                    _require(not lease.settled, "released and settled, but still in the table")


def _require(condition: bool, otherwise: str) -> None:
    if not condition:
        raise AssertionError(otherwise)
