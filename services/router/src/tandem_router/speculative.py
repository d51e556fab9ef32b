"""Blocks that a decision will bring into a worker's cache, before the worker's events say so.

A burst of requests with one prefix is routed within milliseconds; events take an engine step and a stream. A block hash
names everything before it, so of each decision only a few blocks are noted: the 4th, 8th and 16th, then every
32nd, and the last.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import NamedTuple

from tandem_common.hashing import HASH_BYTES

_FIRST_NOTED = (4, 8, 16)
_STRIDE = 32


class _Expected(NamedTuple):
    worker_id: str
    num_blocks: int
    until_s: float


class SpeculativeIndex:
    """The latest decision about each noted block, for `ttl_s`; at most `capacity`. Time never runs backwards."""

    def __init__(self, *, ttl_s: float, capacity: int = 200_000) -> None:
        self._ttl_s = ttl_s
        self._capacity = capacity
        self._expected: OrderedDict[bytes, _Expected] = OrderedDict()  # the one noted longest ago first

    def add(self, packed: bytes, worker_id: str, now_s: float) -> None:
        """A worker will compute these blocks, given as hashes one after another."""
        until_s = now_s + self._ttl_s
        for number in _noted(packed):
            block_hash = packed[(number - 1) * HASH_BYTES : number * HASH_BYTES]
            self._expected[block_hash] = _Expected(worker_id, number, until_s)
            self._expected.move_to_end(block_hash)
        while self._expected:
            block_hash, oldest = next(iter(self._expected.items()))
            if oldest.until_s > now_s and len(self._expected) <= self._capacity:
                break
            del self._expected[block_hash]

    def match(self, packed: bytes, now_s: float) -> dict[str, int]:
        """Leading blocks expected on each worker; the one noted for the longest part counts only."""
        for number in reversed(_noted(packed)):
            expected = self._expected.get(packed[(number - 1) * HASH_BYTES : number * HASH_BYTES])
            if expected is not None and expected.until_s > now_s:
                return {expected.worker_id: expected.num_blocks}
        return {}

    def check_integrity(self) -> None:
        """Assert the bound and the order."""
        assert len(self._expected) <= self._capacity
        times = [expected.until_s for expected in self._expected.values()]
        assert times == sorted(times)

    def __len__(self) -> int:
        """Blocks noted."""
        return len(self._expected)


def _noted(packed: bytes) -> list[int]:
    """Which blocks of a sequence are noted: their numbers, from 1."""
    num_blocks = len(packed) // HASH_BYTES
    numbers = [number for number in _FIRST_NOTED if number < num_blocks]
    numbers.extend(range(_STRIDE, num_blocks, _STRIDE))
    if num_blocks:
        numbers.append(num_blocks)
    return numbers
