from __future__ import annotations

from hashlib import blake2b

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from tandem_router.index import BlockIndex


def block(number: int) -> bytes:
    return blake2b(number.to_bytes(4), digest_size=16).digest()


BLOCKS = [block(i) for i in range(12)]


@pytest.fixture
def index() -> BlockIndex:
    return BlockIndex()


def test_packed_hashes_match_as_loose_ones_do(index: BlockIndex) -> None:
    chain = [block(i) for i in range(200)]
    index.load("a", 1, chain)
    index.load("b", 1, chain[:130])
    index.load("hole", 1, chain[:70] + chain[110:])
    for length in (0, 1, 63, 64, 65, 130, 200):
        asked = [*chain[:length], *BLOCKS[-1:]]
        assert index.match_packed(b"".join(asked)) == index.match(asked)
    assert index.match_packed(b"".join(chain)) == {"a": 200, "b": 130, "hole": 70}


def test_a_worker_is_matched_as_far_as_it_holds_every_block_from_the_root(index: BlockIndex) -> None:
    index.load("a", 1, BLOCKS[:6])
    index.load("b", 1, BLOCKS[:2])
    index.load("gap", 1, [BLOCKS[0], BLOCKS[2]])
    index.load("tail", 1, BLOCKS[1:])

    assert index.match(BLOCKS) == {"a": 6, "b": 2, "gap": 1}
    assert index.match(BLOCKS[:1]) == {"a": 1, "b": 1, "gap": 1}
    assert index.match([]) == {}


def test_events_of_another_epoch_change_nothing(index: BlockIndex) -> None:
    index.load("a", 2, BLOCKS[:1])

    assert not index.apply("a", 1, removed=BLOCKS[:1], stored=BLOCKS[1:])
    assert not index.apply("a", 3, removed=BLOCKS[:1], stored=BLOCKS[1:])
    assert not index.clear("a", 1)
    assert not index.apply("unknown", 1, removed=(), stored=BLOCKS)
    assert index.match(BLOCKS) == {"a": 1}


def test_a_loaded_snapshot_replaces_what_was_known(index: BlockIndex) -> None:
    index.load("a", 1, BLOCKS[:4])
    index.load("a", 2, BLOCKS[:1])

    assert index.match(BLOCKS) == {"a": 1}
    assert index.epoch("a") == 2
    assert index.num_blocks("a") == 1


def test_a_forgotten_worker_is_matched_no_more_even_before_the_sweep(index: BlockIndex) -> None:
    index.load("a", 1, BLOCKS)
    index.load("b", 1, BLOCKS[:3])
    index.forget("a")

    assert index.match(BLOCKS) == {"b": 3}
    assert index.num_blocks("a") == 0
    assert index.epoch("a") is None


def test_sweeping_in_portions_frees_the_blocks_and_slots_of_the_gone(index: BlockIndex) -> None:
    for epoch in range(5):
        index.load("a", epoch, BLOCKS)
        while index.sweep(max_blocks=5):
            index.check_integrity()
    index.forget("a")
    assert index.num_hashes == len(BLOCKS)
    while index.sweep(max_blocks=1):
        pass

    assert index.num_hashes == 0
    index.load("b", 1, BLOCKS[:1])
    index.check_integrity()
    assert index.match(BLOCKS) == {"b": 1}


def test_a_worker_without_blocks_gives_its_slot_back_at_once(index: BlockIndex) -> None:
    for epoch in range(100):
        index.load("a", epoch, ())
    assert not index.sweep(1)
    index.load("b", 1, BLOCKS)
    index.check_integrity()
    assert index.match(BLOCKS) == {"b": len(BLOCKS)}


def test_one_removal_in_the_same_entry_comes_before_storing(index: BlockIndex) -> None:
    index.load("a", 1, BLOCKS[:1])
    index.apply("a", 1, removed=BLOCKS[:1], stored=BLOCKS[:1])
    assert index.match(BLOCKS) == {"a": 1}


WORKERS = st.sampled_from(["a", "b", "c", "d"])
EPOCHS = st.integers(1, 2)
CHOSEN = st.lists(st.sampled_from(BLOCKS), max_size=8)


class IndexAgainstSets(RuleBasedStateMachine):
    """The index does what a set of blocks per worker would do."""

    def __init__(self) -> None:
        super().__init__()
        self.index = BlockIndex()
        self.model: dict[str, tuple[int, set[bytes]]] = {}

    @rule(worker=WORKERS, epoch=EPOCHS, hashes=CHOSEN)
    def load(self, worker: str, epoch: int, hashes: list[bytes]) -> None:
        self.index.load(worker, epoch, hashes)
        self.model[worker] = (epoch, set(hashes))

    @rule(worker=WORKERS, epoch=EPOCHS, removed=CHOSEN, stored=CHOSEN)
    def apply(self, worker: str, epoch: int, removed: list[bytes], stored: list[bytes]) -> None:
        known = worker in self.model and self.model[worker][0] == epoch
        assert self.index.apply(worker, epoch, removed=removed, stored=stored) is known
        if known:
            held = self.model[worker][1]
            held.difference_update(removed)
            held.update(stored)

    @rule(worker=WORKERS, epoch=EPOCHS)
    def clear(self, worker: str, epoch: int) -> None:
        known = worker in self.model and self.model[worker][0] == epoch
        assert self.index.clear(worker, epoch) is known
        if known:
            self.model[worker][1].clear()

    @rule(worker=WORKERS)
    def forget(self, worker: str) -> None:
        self.index.forget(worker)
        self.model.pop(worker, None)

    @rule(max_blocks=st.integers(1, 6))
    def sweep(self, max_blocks: int) -> None:
        self.index.sweep(max_blocks)

    @rule(hashes=st.one_of(st.just(BLOCKS), CHOSEN))
    def match(self, hashes: list[bytes]) -> None:
        expected = {}
        for worker, (_, held) in self.model.items():
            leading = next((i for i, h in enumerate(hashes) if h not in held), len(hashes))
            if leading:
                expected[worker] = leading
        assert self.index.match(hashes) == expected

    @invariant()
    def counts_agree(self) -> None:
        self.index.check_integrity()
        for worker, (epoch, held) in self.model.items():
            assert self.index.num_blocks(worker) == len(held)
            assert self.index.epoch(worker) == epoch

    def teardown(self) -> None:
        for worker in list(self.model):
            self.index.forget(worker)
        while self.index.sweep(100):
            pass
        assert self.index.num_hashes == 0


TestIndexAgainstSets = IndexAgainstSets.TestCase
TestIndexAgainstSets.settings = settings(max_examples=60, stateful_step_count=25, deadline=None)


def test_a_hole_between_two_probes_is_overlooked_but_never_is_less_found(index: BlockIndex) -> None:
    chain = [block(i) for i in range(100)]
    index.load("a", 1, chain[:50] + chain[51:])
    assert index.match(chain) == {"a": 50}
    assert index.match_packed(b"".join(chain)) == {"a": 100}


@settings(max_examples=200, deadline=None)
@given(
    length=st.integers(0, 150),
    held=st.dictionaries(st.sampled_from("abcde"), st.integers(0, 150), max_size=5),
    gone=st.sampled_from(["", "a", "b"]),
)
def test_packed_hashes_match_as_single_ones_do_for_workers_without_holes(
    length: int, held: dict[str, int], gone: str
) -> None:
    chain = [block(i) for i in range(length)]
    index = BlockIndex()
    for worker, count in held.items():
        index.load(worker, 1, chain[:count])
    index.forget(gone)  # its bits stay until they are swept
    assert index.match_packed(b"".join(chain)) == index.match(chain)


@settings(max_examples=200, deadline=None)
@given(held=st.lists(st.sets(st.integers(0, 59)), min_size=1, max_size=3))
def test_packed_hashes_never_match_less_whatever_the_holes(held: list[set[int]]) -> None:
    chain = [block(i) for i in range(60)]
    index = BlockIndex()
    for number, blocks in enumerate(held):
        index.load(f"w{number}", 1, [chain[i] for i in sorted(blocks)])
    least, found = index.match(chain), index.match_packed(b"".join(chain))
    for worker, count in least.items():
        assert found[worker] >= count
    assert index.match_packed(b"") == {}
