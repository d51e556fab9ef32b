"""What a worker's prefix cache holds and what of it is still to be told. Pure.

Changes that wait are merged: however slow Redis is, at most one entry waits, and when that entry would be larger
than the whole truth, the whole truth is told instead.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from tandem.v1 import cluster_pb2 as pb
from tandem_common.hashing import pack_hashes


@dataclass(slots=True)
class KvChange:
    """Removals come first, then what is stored, in order. Both hold hashes as keys."""

    removed: dict[bytes, None] = field(default_factory=dict)
    stored: dict[bytes, None] = field(default_factory=dict)
    cleared: bool = False  # everything before is forgotten

    def __bool__(self) -> bool:
        return bool(self.removed or self.stored or self.cleared)

    def add(self, removed: Iterable[bytes], stored: Iterable[bytes]) -> None:
        """Append a later change; applying the sum equals applying one after the other."""
        for block in removed:
            self.stored.pop(block, None)
            if not self.cleared:
                self.removed[block] = None
        for block in stored:
            self.stored[block] = None

    def to_proto(self, epoch: int) -> pb.KvEvents:
        """The entry for the stream."""
        return pb.KvEvents(
            epoch=epoch,
            removed=pack_hashes(self.removed),
            stored=pack_hashes(self.stored),
            cleared=self.cleared,
        )


class KvJournal:
    """The mirror of a prefix cache, and the change that has not been published yet.

    At the start that change is "forget everything", which also tells followers of an earlier incarnation.
    """

    def __init__(self, max_pending: int) -> None:
        self._max_pending = max_pending
        self._held: dict[bytes, None] = {}
        self._pending = KvChange(cleared=True)

    @property
    def held(self) -> Iterable[bytes]:
        """Hashes of all blocks held, oldest first."""
        return self._held.keys()

    def record(self, removed: Iterable[bytes], stored: Iterable[bytes]) -> None:
        """The cache changed: removals first."""
        for block in removed:
            self._held.pop(block, None)
        for block in stored:
            self._held[block] = None
        self._pending.add(removed, stored)
        if len(self._pending.removed) + len(self._pending.stored) > self._max_pending:
            self.retell()

    def retell(self) -> None:
        """What was published is lost, or too much waits: the next change tells everything."""
        self._pending = KvChange(stored=dict(self._held), cleared=True)

    def take(self) -> KvChange:
        """The change to publish now; empty when there is none."""
        change, self._pending = self._pending, KvChange()
        return change

    def put_back(self, change: KvChange) -> None:
        """Publishing `change` failed, or may have: it goes before what came since. Telling twice does no harm."""
        if self._pending.cleared:
            return
        change.add(self._pending.removed, self._pending.stored)
        self._pending = change

    def snapshot(self, epoch: int, stream_id: str) -> pb.KvSnapshot:
        """Everything held, as of the entry `stream_id`."""
        return pb.KvSnapshot(epoch=epoch, stream_id=stream_id, stored=pack_hashes(self._held))
