"""The block table of one sequence: which blocks hold its tokens, and how far they are in the prefix cache."""

from __future__ import annotations

from array import array
from collections.abc import Sequence

from tandem_engine.block_pool import BlockPool, CacheEntry


class BlockTable:
    """Blocks of one sequence, in order. The first `num_shared_blocks` of them are in the prefix cache.

    Hashes are chained as blocks fill, generated tokens included, and kept over a preemption. Tokens of a
    sequence are only ever appended.
    """

    __slots__ = (
        "_hashes",
        "_last_entry",
        "_may_share",
        "_namespace",
        "_pool",
        "block_ids",
        "num_shared_blocks",
    )

    def __init__(self, pool: BlockPool, namespace: bytes) -> None:
        self._pool = pool
        self._namespace = namespace
        self._hashes: list[bytes] = []
        # Runners copy it in every step: integers side by side, not objects.
        self.block_ids = array("q")
        self.num_shared_blocks = 0
        self._last_entry: CacheEntry | bytes = namespace  # of the last shared block
        self._may_share = True

    @property
    def num_shared_tokens(self) -> int:
        """Tokens in the blocks that are in the prefix cache."""
        return self.num_shared_blocks * self._pool.block_size

    def find_prefix(self, token_ids: Sequence[int], max_tokens: int) -> list[CacheEntry]:
        """Entries of the longest cached prefix of at most `max_tokens` tokens; nothing changes in the pool."""
        size = self._pool.block_size
        num_blocks = max_tokens // size
        blocks = (tuple(token_ids[start : start + size]) for start in range(0, num_blocks * size, size))
        return self._pool.find(
            self._namespace, zip(self._hashed(num_blocks, token_ids), blocks, strict=False)
        )

    def num_missing_blocks(self, prefix: Sequence[CacheEntry], num_tokens: int) -> int:
        """How many of the pool's available blocks `open` would take."""
        num_idle = sum(1 for entry in prefix if self._pool.ref_count(entry.block_id) == 0)
        return self._pool.num_blocks_for(num_tokens) - len(prefix) + num_idle

    def open(self, prefix: Sequence[CacheEntry], num_tokens: int) -> None:
        """Take hold of a cached prefix, and of empty blocks for the other of `num_tokens` tokens."""
        for entry in prefix:
            self.block_ids.append(self._pool.acquire(entry))
            self._last_entry = entry
        self.num_shared_blocks = len(prefix)
        self.block_ids.extend(self._pool.allocate(self._pool.num_blocks_for(num_tokens) - len(prefix)))

    def grow(self) -> None:
        """Add one empty block."""
        self.block_ids.extend(self._pool.allocate(1))

    def share_filled(self, token_ids: Sequence[int], num_computed_tokens: int) -> None:
        """Enter every block that is full by now into the prefix cache.

        A block may be replaced by one of equal content that another sequence shared first.
        """
        num_full = num_computed_tokens // self._pool.block_size
        while self._may_share and self.num_shared_blocks < num_full:
            index = self.num_shared_blocks
            tokens = self._tokens_of(index, token_ids)
            entry = self._pool.share(
                self.block_ids[index], self._hashed(index + 1, token_ids)[index], self._last_entry, tokens
            )
            if entry is None:
                self._may_share = False
                return
            self.block_ids[index] = entry.block_id
            self._last_entry = entry
            self.num_shared_blocks += 1

    def release(self) -> None:
        """Give up all blocks; what is in the prefix cache can be found again."""
        self._pool.release(self.block_ids)
        self.block_ids = array("q")
        self.num_shared_blocks = 0
        self._last_entry = self._namespace
        self._may_share = True

    def num_exclusive_blocks(self) -> int:
        """Blocks that become available when the table is released."""
        return sum(1 for block_id in self.block_ids if self._pool.ref_count(block_id) == 1)

    def _tokens_of(self, index: int, token_ids: Sequence[int]) -> tuple[int, ...]:
        size = self._pool.block_size
        return tuple(token_ids[index * size : (index + 1) * size])

    def _hashed(self, num_blocks: int, token_ids: Sequence[int]) -> list[bytes]:
        """Hashes of at least the first `num_blocks`. What is known of the sequence by then is hashed at once."""
        hashes, size = self._hashes, self._pool.block_size
        if len(hashes) < num_blocks:
            parent = hashes[-1] if hashes else self._namespace
            hashes += self._pool.hash_blocks(parent, token_ids[len(hashes) * size :], size)
        return hashes
