from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, multiple, rule
from tandem_common.hashing import block_hash, block_hashes, namespace_root
from tandem_engine.block_pool import BlockPool
from tandem_engine.block_table import BlockTable
from tandem_engine.integrity import BrokenInvariant

ROOT = namespace_root("model")
OTHER_ROOT = namespace_root("model", tenant_salt=b"x" * 32)


def filled_table(pool: BlockPool, tokens: Sequence[int], root: bytes = ROOT) -> BlockTable:
    """A table whose tokens are all computed."""
    table = BlockTable(pool, root)
    table.open(table.find_prefix(tokens, len(tokens)), len(tokens))
    table.share_filled(tokens, len(tokens))
    return table


def num_hits(pool: BlockPool, tokens: Sequence[int], root: bytes = ROOT) -> int:
    return len(BlockTable(pool, root).find_prefix(tokens, len(tokens)))


def test_blocks_of_a_released_table_are_found_again() -> None:
    pool = BlockPool(8, 2)
    first = filled_table(pool, [1, 2, 3, 4, 5])
    blocks = list(first.block_ids)
    first.release()
    assert (pool.num_used, pool.num_cached, pool.num_free) == (0, 2, 6)
    second = filled_table(pool, [1, 2, 3, 4, 9, 9])
    assert list(second.block_ids[:2]) == blocks[:2]
    assert pool.num_used == 3


def test_a_prefix_is_found_only_in_its_own_namespace() -> None:
    pool = BlockPool(8, 2)
    filled_table(pool, [1, 2, 3, 4])
    assert num_hits(pool, [1, 2, 3, 4]) == 2
    assert num_hits(pool, [1, 2, 3, 4], OTHER_ROOT) == 0


def test_two_tables_with_one_content_end_up_with_the_same_blocks() -> None:
    pool = BlockPool(8, 2)
    tables = [BlockTable(pool, ROOT), BlockTable(pool, ROOT)]
    for table in tables:
        table.open([], 4)
    assert pool.num_used == 4
    for table in tables:
        table.share_filled([1, 2, 3, 4], 4)
    assert tables[0].block_ids == tables[1].block_ids
    assert (pool.num_used, pool.num_free) == (2, 6)
    pool.check_integrity(table.block_ids for table in tables)


def test_the_least_recently_released_is_evicted_first_and_leaves_before_their_parents() -> None:
    pool = BlockPool(4, 2)
    old, new = filled_table(pool, [1, 2, 3, 4]), filled_table(pool, [5, 6, 7, 8])
    old.release()
    new.release()
    pool.allocate(1)
    assert (num_hits(pool, [1, 2, 3, 4]), num_hits(pool, [5, 6, 7, 8])) == (1, 2)
    pool.allocate(2)
    assert (num_hits(pool, [1, 2, 3, 4]), num_hits(pool, [5, 6, 7, 8])) == (0, 1)


def test_hashes_are_those_of_the_common_module_for_generated_tokens_too() -> None:
    pool = BlockPool(8, 2)
    table, tokens = BlockTable(pool, ROOT), [1, 2, 3]
    table.open([], 3)
    table.share_filled(tokens, 3)
    tokens += [4, 5]
    table.grow()
    table.share_filled(tokens, 5)
    assert list(pool.take_changes().stored) == block_hashes(ROOT, tokens, 2)


def test_a_hash_that_was_stored_and_removed_between_two_reports_is_in_neither_list() -> None:
    pool = BlockPool(2, 2)
    filled_table(pool, [1, 2]).release()
    pool.release(pool.allocate(2))
    assert pool.take_changes() == ((), ())
    filled_table(pool, [3, 4]).release()
    assert pool.take_changes() == ((), (block_hash(ROOT, [3, 4]),))
    pool.release(pool.allocate(2))
    assert pool.take_changes() == ((block_hash(ROOT, [3, 4]),), ())


def test_a_hash_that_was_removed_and_stored_again_is_in_neither_list() -> None:
    pool = BlockPool(1, 2)
    filled_table(pool, [1, 2]).release()
    pool.take_changes()
    pool.release(pool.allocate(1))
    filled_table(pool, [1, 2]).release()
    assert pool.take_changes() == ((), ())


def test_equal_hashes_of_different_blocks_never_share() -> None:
    pool = BlockPool(8, 2, hash_blocks=lambda parent, tokens, size: [b"same" * 4] * (len(tokens) // size))
    first = filled_table(pool, [1, 2, 3, 4])
    assert first.num_shared_blocks == 1  # its second block collides with its first
    second = filled_table(pool, [5, 6])
    assert num_hits(pool, [5, 6]) == 0
    assert set(first.block_ids).isdisjoint(second.block_ids)
    pool.check_integrity([first.block_ids, second.block_ids])


def test_freed_blocks_are_recorded_when_their_content_is_given_up() -> None:
    pool = BlockPool(2, 2, record_freed=True)
    table = filled_table(pool, [1, 2, 3])
    full, partial = table.block_ids
    table.release()
    assert pool.take_freed() == [partial]
    pool.allocate(2)
    assert pool.take_freed() == [full]


def test_wrong_use_is_refused() -> None:
    pool = BlockPool(2, 2)
    with pytest.raises(ValueError, match="3 blocks wanted, 2 available"):
        pool.allocate(3)
    with pytest.raises(ValueError, match="not held"):
        pool.release([0])
    with pytest.raises(ValueError, match="needs blocks"):
        BlockPool(0, 2)


def test_a_leaked_block_breaks_integrity() -> None:
    pool = BlockPool(2, 2)
    pool.allocate(1)
    with pytest.raises(BrokenInvariant, match="count 1, 0 holders"):
        pool.check_integrity([])


def few_hashes(parent: bytes, tokens: Sequence[int], block_size: int) -> list[bytes]:
    """Hashes of two bits, chained."""
    hashes: list[bytes] = []
    for start in range(0, len(tokens) - block_size + 1, block_size):
        parent = bytes([(parent[0] * 5 + sum(tokens[start : start + block_size]) * 3 + 1) % 4]) * 16
        hashes.append(parent)
    return hashes


class Holder:
    """A sequence of the state machine."""

    def __init__(self, table: BlockTable, root: bytes, tokens: list[int], num_computed: int) -> None:
        self.table, self.root, self.tokens, self.num_computed = table, root, tokens, num_computed


class PoolMachine(RuleBasedStateMachine):
    """Random tables over a small pool. The model is what was written into each block: its whole prefix."""

    holders = Bundle("holders")
    hash_blocks = staticmethod(block_hashes)

    def __init__(self) -> None:
        super().__init__()
        self.pool = BlockPool(6, 2, hash_blocks=self.hash_blocks, record_freed=True)
        self.alive: list[Holder] = []
        self.content: dict[int, tuple[bytes, tuple[int, ...]]] = {}
        self.announced: set[bytes] = set()

    @rule(
        target=holders,
        tokens=st.lists(st.integers(0, 1), min_size=1, max_size=9),
        root=st.sampled_from([ROOT, OTHER_ROOT]),
    )
    def open(self, tokens: list[int], root: bytes) -> object:
        table = BlockTable(self.pool, root)
        prefix = table.find_prefix(tokens, len(tokens) - 1)
        if table.num_missing_blocks(prefix, len(tokens)) > self.pool.num_available:
            return multiple()
        table.open(prefix, len(tokens))
        self._poison()
        holder = Holder(table, root, tokens, len(prefix) * 2)
        self.alive.append(holder)
        return holder

    @rule(holder=holders, count=st.integers(1, 4))
    def compute(self, holder: Holder, count: int) -> None:
        end = min(holder.num_computed + count, len(holder.tokens))
        for position in range(holder.num_computed, end):
            written = (holder.root, tuple(holder.tokens[: position + 1]))
            self.content[holder.table.block_ids[position // 2]] = written
        holder.num_computed = end
        holder.table.share_filled(holder.tokens, end)
        self._poison()

    @rule(holder=holders, token=st.integers(0, 1))
    def append(self, holder: Holder, token: int) -> None:
        if len(holder.tokens) % 2 == 0:
            if self.pool.num_available == 0:
                return
            holder.table.grow()
            self._poison()
        holder.tokens.append(token)

    @rule(holder=consumes(holders))
    def release(self, holder: Holder) -> None:
        holder.table.release()
        self.alive.remove(holder)
        self._poison()

    @invariant()
    def everything_agrees(self) -> None:
        self.pool.check_integrity(holder.table.block_ids for holder in self.alive)
        for holder in self.alive:
            for index in range(holder.num_computed // 2):
                expected = (holder.root, tuple(holder.tokens[: index * 2 + 2]))
                assert self.content[holder.table.block_ids[index]] == expected

    @invariant()
    def changes_replay_to_what_is_cached(self) -> None:
        removed, stored = self.pool.take_changes()
        assert self.announced.issuperset(removed)
        assert self.announced.isdisjoint(stored)
        self.announced = (self.announced - set(removed)) | set(stored)
        assert self.announced == set(self.pool._by_hash)

    def teardown(self) -> None:
        for holder in self.alive:
            holder.table.release()
        self.pool.check_integrity([])
        assert self.pool.num_used == 0

    def _poison(self) -> None:
        for block_id in self.pool.take_freed():
            self.content[block_id] = (b"poison", ())


class CollidingPoolMachine(PoolMachine):
    """The same, with hashes of two bits."""

    hash_blocks = staticmethod(few_hashes)


TestPool = PoolMachine.TestCase
TestPool.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestCollidingPool = CollidingPoolMachine.TestCase
TestCollidingPool.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
