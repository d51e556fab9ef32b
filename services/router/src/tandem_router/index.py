"""Which workers hold which blocks: hash → bitmask of workers.

Data structures:

    masks   one dictionary from block hash to an int; bit s is set when the worker in slot s holds the block. A
            block that one worker holds shares that slot's int object: it costs its key and a dictionary entry.
    slots   one per (worker, epoch). A worker that is forgotten or cleared leaves a dead slot behind: `match` ignores
            its bit at once, and `sweep` takes it out of the dictionary in portions, after which it is used again.

A block hash names everything before the block too, so one worker's blocks are matched from the root until one is
missing.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from struct import Struct

from tandem_common.hashing import HASH_BYTES

_STRIDE = 32  # blocks from one that `match_packed` looks at to the next
_LAST_OF_STRIDE = Struct(f"{(_STRIDE - 1) * HASH_BYTES}x{HASH_BYTES}s")


@dataclass(slots=True)
class _Slot:
    number: int
    epoch: int
    bit: int
    num_blocks: int = 0


class BlockIndex:
    """The blocks of all workers. Not thread-safe; every method but `sweep` takes time in what it is given only."""

    def __init__(self) -> None:
        self._masks: dict[bytes, int] = {}
        self._slots: dict[str, _Slot] = {}
        self._by_number: list[str | None] = []  # worker id of each living slot
        self._free: list[int] = []
        self._live = 0  # mask of all living slots
        self._dead = 0  # mask of the slots to be swept
        # What the running sweep has still to look at, and the bits that it clears.
        self._sweep_keys: list[bytes] = []
        self._sweep_mask = 0

    def load(self, worker_id: str, epoch: int, hashes: Iterable[bytes]) -> None:
        """Replace everything known of a worker by what a snapshot of this epoch says."""
        self.forget(worker_id)
        self._slots[worker_id] = self._new_slot(worker_id, epoch)
        self.apply(worker_id, epoch, removed=(), stored=hashes)

    def apply(self, worker_id: str, epoch: int, *, removed: Iterable[bytes], stored: Iterable[bytes]) -> bool:
        """Apply a worker's changes, removals first; False, and nothing done, for another epoch than was loaded."""
        slot = self._slots.get(worker_id)
        if slot is None or slot.epoch != epoch:
            return False
        masks, bit = self._masks, slot.bit
        num_blocks = slot.num_blocks
        for block_hash in removed:
            mask = masks.get(block_hash, 0)
            if mask & bit:
                num_blocks -= 1
                if mask == bit:
                    del masks[block_hash]
                else:
                    masks[block_hash] = mask ^ bit
        # Neighbours in a chain have the same holders: they share one object, which saves its memory and `match` time.
        last: int | None = None
        joined = bit
        for block_hash in stored:
            mask = masks.get(block_hash, 0)
            if not mask:
                num_blocks += 1
                masks[block_hash] = bit
            elif not mask & bit:
                num_blocks += 1
                if mask is not last:
                    last, joined = mask, mask | bit
                masks[block_hash] = joined
        slot.num_blocks = num_blocks
        return True

    def clear(self, worker_id: str, epoch: int) -> bool:
        """The worker dropped its whole cache; False for another epoch than was loaded."""
        slot = self._slots.get(worker_id)
        if slot is None or slot.epoch != epoch:
            return False
        if slot.num_blocks:
            self.load(worker_id, epoch, ())
        return True

    def forget(self, worker_id: str) -> None:
        """The worker is gone. Unknown ones are fine."""
        slot = self._slots.pop(worker_id, None)
        if slot is None:
            return
        self._live ^= slot.bit
        self._by_number[slot.number] = None
        if slot.num_blocks:
            self._dead |= slot.bit
        else:
            self._free.append(slot.number)

    def match(self, hashes: Sequence[bytes]) -> dict[str, int]:
        """How many leading blocks of a sequence each worker holds; workers without the first are left out."""
        holders = self._live
        matched: dict[str, int] = {}
        num_blocks = 0
        for mask in map(self._masks.get, hashes):
            still = holders & mask if mask else 0
            if still != holders:
                if num_blocks:
                    self._note(holders ^ still, num_blocks, matched)
                holders = still
                if not holders:
                    return matched
            num_blocks += 1
        if num_blocks:
            self._note(holders, num_blocks, matched)
        return matched

    def match_packed(self, packed: bytes) -> dict[str, int]:
        """`match` of hashes one after another, with few look-ups: each misses the processor's caches.

        Every 32nd block is looked at, and where its holders are not those of the one before, the place of the change is
        found by bisection. Who holds a block holds what is before it too, unless it dropped blocks out of the middle: a
        hole between two probes is overlooked, so never less is reported than `match` does, and the same for workers
        without holes.
        """
        lookup = self._masks.get
        holders = self._live
        matched: dict[str, int] = {}
        good = -1  # the last block that all of `holders` are known to hold
        last: int | None = None  # its mask: blocks of one chain share the object
        for at, probe in _probes(packed):
            mask = lookup(probe)
            if mask is not last or mask is None:
                while (holders & mask if mask else 0) != holders:
                    low, high, left = good, at, holders & mask if mask else 0
                    while high - low > 1:
                        middle = (low + high) // 2
                        between = lookup(packed[middle * HASH_BYTES : (middle + 1) * HASH_BYTES])
                        still = holders & between if between else 0
                        if still == holders:
                            low = middle
                        else:
                            high, left = middle, still
                    if low >= 0:
                        self._note(holders ^ left, low + 1, matched)
                    holders, good = left, low
                    if not holders:
                        return matched
                last = mask
            good = at
        if good >= 0:
            self._note(holders, good + 1, matched)
        return matched

    def sweep(self, max_blocks: int) -> bool:
        """Take the bits of dead slots out of at most `max_blocks` blocks; whether more is left to do."""
        if not self._sweep_keys:
            if not self._dead:
                return False
            # Blocks stored from now on never carry a dead bit, so today's keys are all there is to look at.
            self._sweep_keys, self._sweep_mask = list(self._masks), self._dead
        masks, keep = self._masks, ~self._sweep_mask
        for block_hash in self._sweep_keys[-max_blocks:]:
            mask = masks.get(block_hash)
            if mask is not None and mask & self._sweep_mask:
                if left := mask & keep:
                    masks[block_hash] = self._shared(left)
                else:
                    del masks[block_hash]
        del self._sweep_keys[-max_blocks:]
        if not self._sweep_keys:
            self._free.extend(_bits(self._sweep_mask))
            self._dead &= keep
            self._sweep_mask = 0
        return bool(self._dead)

    def num_blocks(self, worker_id: str) -> int:
        """Blocks known on one worker; 0 for unknown ones."""
        slot = self._slots.get(worker_id)
        return slot.num_blocks if slot else 0

    def epoch(self, worker_id: str) -> int | None:
        """The incarnation whose blocks are known; None when none are."""
        slot = self._slots.get(worker_id)
        return slot.epoch if slot else None

    @property
    def num_hashes(self) -> int:
        """Different blocks held by living or not yet swept workers: the size of the index."""
        return len(self._masks)

    def check_integrity(self) -> None:
        """Assert that counts, masks and slots agree. Takes time in the size of the index."""
        counts = dict.fromkeys(range(len(self._by_number)), 0)
        known = self._live | self._dead
        for mask in self._masks.values():
            assert mask
            assert not mask & ~known, "a block is held by a slot that is free"
            for number in _bits(mask):
                counts[number] += 1
        assert self._live & self._dead == 0
        assert sum(slot.bit for slot in self._slots.values()) == self._live
        for worker_id, slot in self._slots.items():
            assert self._by_number[slot.number] == worker_id
            assert slot.bit == 1 << slot.number
            assert counts[slot.number] == slot.num_blocks
        used = {slot.number for slot in self._slots.values()} | set(_bits(self._dead))
        assert used.isdisjoint(self._free)
        assert len(self._free) == len(set(self._free))
        assert used | set(self._free) == set(range(len(self._by_number)))

    def _new_slot(self, worker_id: str, epoch: int) -> _Slot:
        if self._free:
            number = self._free.pop()
            self._by_number[number] = worker_id
        else:
            number = len(self._by_number)
            self._by_number.append(worker_id)
        bit = 1 << number
        self._live |= bit
        return _Slot(number, epoch, bit)

    def _note(self, holders: int, num_blocks: int, matched: dict[str, int]) -> None:
        for number in _bits(holders):
            worker_id = self._by_number[number]
            if worker_id is not None:
                matched[worker_id] = num_blocks

    def _shared(self, mask: int) -> int:
        """The slot's own int for a mask of one worker, so that the copy can be freed."""
        if mask & (mask - 1):
            return mask
        worker_id = self._by_number[mask.bit_length() - 1]
        return self._slots[worker_id].bit if worker_id is not None else mask


def _probes(packed: bytes) -> list[tuple[int, bytes]]:
    """The last hash of every stride and the very last one, with their positions."""
    whole = len(packed) - len(packed) % _LAST_OF_STRIDE.size
    last_ones = _LAST_OF_STRIDE.iter_unpack(memoryview(packed)[:whole])
    probes = [(_STRIDE * (number + 1) - 1, probe) for number, (probe,) in enumerate(last_ones)]
    if whole < len(packed):
        probes.append((len(packed) // HASH_BYTES - 1, packed[-HASH_BYTES:]))
    return probes


def _bits(mask: int) -> list[int]:
    """Numbers of the bits that are set."""
    numbers = []
    while mask:
        low = mask & -mask
        numbers.append(low.bit_length() - 1)
        mask ^= low
    return numbers
