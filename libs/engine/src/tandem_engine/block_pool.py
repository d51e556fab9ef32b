"""The blocks of one engine: who holds them, which of them are free, and which hold a prefix worth keeping.

A block is in one of three states:

    free    nobody holds it and nothing in it is worth keeping
    used    at least one sequence holds it (`ref_count` of them)
    cached  nobody holds it, but it is in the prefix cache: handed out again on a hit, evicted when room is needed

The prefix cache is a tree: an entry is a full block, its parent the entry of the block before it. A sequence
holds all ancestors of what it holds and releases the deepest first, so that in the order of release every
cached block comes after all its descendants. Evicting the least recently released therefore always takes a leaf,
and no entry ever loses its parent.

A hash finds an entry, tokens and parent prove it: a collision of hashes can cost a hit, never give wrong blocks.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from tandem_common.hashing import block_hashes

from tandem_engine.integrity import require


@dataclass(slots=True, eq=False)
class CacheEntry:
    """A full block in the prefix cache; compared by identity."""

    block_id: int
    hash: bytes
    parent: CacheEntry | bytes  # bytes: the namespace, for the first block of a sequence
    token_ids: tuple[int, ...]


class CacheChanges(NamedTuple):
    """Hashes that left and entered the prefix cache; no hash is in both."""

    removed: tuple[bytes, ...]
    stored: tuple[bytes, ...]


class BlockPool:
    """Blocks 0 to num_blocks - 1, counted by holder. Not thread-safe.

    `hash_blocks` is replaced in tests that force collisions. With `record_freed`, `take_freed` tells which blocks
    lost their content, for runners that poison them.
    """

    def __init__(
        self,
        num_blocks: int,
        block_size: int,
        *,
        hash_blocks: Callable[[bytes, Sequence[int], int], list[bytes]] = block_hashes,
        record_freed: bool = False,
    ) -> None:
        if num_blocks < 1 or block_size < 1:
            raise ValueError(f"a pool needs blocks and tokens in them, got {num_blocks} of {block_size}")
        self.num_blocks = num_blocks
        self.block_size = block_size
        self.hash_blocks = hash_blocks
        self._ref_counts = [0] * num_blocks
        self._entries: list[CacheEntry | None] = [None] * num_blocks
        self._by_hash: dict[bytes, CacheEntry] = {}
        # A stack: what was used last is warm in the processor's caches.
        self._free = list(range(num_blocks - 1, -1, -1))
        self._cached: OrderedDict[int, None] = OrderedDict()  # least recently released first
        self._removed: dict[bytes, None] = {}
        self._stored: dict[bytes, None] = {}
        self._record_freed = record_freed
        self._freed: list[int] = []

    @property
    def num_free(self) -> int:
        """Blocks that hold nothing."""
        return len(self._free)

    @property
    def num_cached(self) -> int:
        """Blocks held by the prefix cache only."""
        return len(self._cached)

    @property
    def num_used(self) -> int:
        """Blocks held by sequences."""
        return self.num_blocks - len(self._free) - len(self._cached)

    @property
    def num_available(self) -> int:
        """Blocks that `allocate` can hand out, evicting cached ones."""
        return len(self._free) + len(self._cached)

    def ref_count(self, block_id: int) -> int:
        """How many sequences hold the block."""
        return self._ref_counts[block_id]

    def num_blocks_for(self, num_tokens: int) -> int:
        """Blocks that so many tokens fill, the last one perhaps in part."""
        return -(-num_tokens // self.block_size)

    def allocate(self, count: int) -> list[int]:
        """Hand out `count` blocks with arbitrary content; the caller checked `num_available`."""
        if count > self.num_available:
            raise ValueError(f"{count} blocks wanted, {self.num_available} available")
        while len(self._free) < count:
            self._evict()
        block_ids = [self._free.pop() for _ in range(count)]
        for block_id in block_ids:
            self._ref_counts[block_id] = 1
        return block_ids

    def find(self, namespace: bytes, blocks: Iterable[tuple[bytes, tuple[int, ...]]]) -> list[CacheEntry]:
        """The entries of a sequence's first blocks, given by hash and tokens, as far as they are in the cache."""
        found: list[CacheEntry] = []
        parent: CacheEntry | bytes = namespace
        for digest, token_ids in blocks:
            entry = self._by_hash.get(digest)
            if entry is None or entry.parent != parent or entry.token_ids != token_ids:
                break
            found.append(entry)
            parent = entry
        return found

    def acquire(self, entry: CacheEntry) -> int:
        """Hold a block that `find` gave; its ancestors must be held first. Returns its id."""
        block_id = entry.block_id
        if self._ref_counts[block_id] == 0:
            del self._cached[block_id]
        self._ref_counts[block_id] += 1
        return block_id

    def hold(self, block_ids: Sequence[int]) -> None:
        """Hold a whole table once more, of which someone holds every block already."""
        for block_id in block_ids:
            if self._ref_counts[block_id] == 0:
                raise ValueError(f"block {block_id} is not held")
            self._ref_counts[block_id] += 1

    def share(
        self, block_id: int, digest: bytes, parent: CacheEntry | bytes, token_ids: tuple[int, ...]
    ) -> CacheEntry | None:
        """Enter a block that its holder has filled into the cache.

        When another block with the same content is there already, the holder gets that one: `block_id` is
        released, the entry's block acquired. None when the hash collides with other content: the block, and
        all that follow it in the sequence, stay out of the cache.
        """
        entry = self._by_hash.get(digest)
        if entry is None:
            entry = CacheEntry(block_id, digest, parent, token_ids)
            self._by_hash[digest] = entry
            self._entries[block_id] = entry
            _note(digest, into=self._stored, unless_in=self._removed)
            return entry
        if entry.parent != parent or entry.token_ids != token_ids:
            return None
        self.acquire(entry)
        self.release((block_id,))
        return entry

    def release(self, block_ids: Sequence[int]) -> None:
        """Give up blocks in the order of their sequence: a whole table, or one that is in no entry."""
        for block_id in reversed(block_ids):
            ref_count = self._ref_counts[block_id] - 1
            if ref_count < 0:
                raise ValueError(f"block {block_id} is released but not held")
            self._ref_counts[block_id] = ref_count
            if ref_count == 0:
                if self._entries[block_id] is None:
                    self._give_back(block_id)
                else:
                    self._cached[block_id] = None

    def take_changes(self) -> CacheChanges:
        """What entered and left the cache since the last call."""
        changes = CacheChanges(tuple(self._removed), tuple(self._stored))
        self._removed.clear()
        self._stored.clear()
        return changes

    def take_freed(self) -> list[int]:
        """Blocks whose content was given up since the last call; they may be in use again, not yet filled."""
        freed, self._freed = self._freed, []
        return freed

    def check_integrity(self, tables: Iterable[Sequence[int]]) -> None:
        """Raise BrokenInvariant unless the counts are those of these block tables and the cache is a tree."""
        held = Counter(block_id for table in tables for block_id in table)
        for block_id, ref_count in enumerate(self._ref_counts):
            require(
                ref_count == held[block_id], f"block {block_id}: count {ref_count}, {held[block_id]} holders"
            )
        free = set(self._free)
        require(len(free) == len(self._free), "a block is free twice")
        require(free.isdisjoint(self._cached), "a block is free and cached")
        require(self.num_used == sum(1 for count in self._ref_counts if count), "blocks are lost")
        for block_id in free:
            require(self._ref_counts[block_id] == 0, f"free block {block_id} is held")
            require(self._entries[block_id] is None, f"free block {block_id} is in the cache")
        entries = [entry for entry in self._entries if entry is not None]
        require(len(entries) == len(self._by_hash), "entries and hashes differ in number")
        age = {block_id: age for age, block_id in enumerate(self._cached)}
        for entry in entries:
            block_id, parent = entry.block_id, entry.parent
            require(self._entries[block_id] is entry, f"the entry of block {block_id} names another block")
            require(self._by_hash.get(entry.hash) is entry, f"block {block_id} is not found by its hash")
            require(len(entry.token_ids) == self.block_size, f"block {block_id} is not full")
            require(
                (self._ref_counts[block_id] == 0) == (block_id in age), f"block {block_id} in the wrong list"
            )
            if isinstance(parent, CacheEntry):
                require(self._entries[parent.block_id] is parent, f"block {block_id} lost its parent")
                if parent.block_id in age:
                    require(block_id in age, f"block {block_id} is held, its parent is not")
                    require(
                        age[block_id] < age[parent.block_id], f"block {block_id} would outlive its parent"
                    )

    def _evict(self) -> None:
        block_id, _ = self._cached.popitem(last=False)
        entry = self._entries[block_id]
        assert entry is not None, f"cached block {block_id} has no entry"
        self._entries[block_id] = None
        del self._by_hash[entry.hash]
        _note(entry.hash, into=self._removed, unless_in=self._stored)
        self._give_back(block_id)

    def _give_back(self, block_id: int) -> None:
        self._free.append(block_id)
        if self._record_freed:
            self._freed.append(block_id)


def _note(digest: bytes, *, into: dict[bytes, None], unless_in: dict[bytes, None]) -> None:
    """Record a change, or drop the opposite one that nobody has been told yet."""
    if digest in unless_in:
        del unless_in[digest]
    else:
        into[digest] = None
