"""Blocks that decisions will bring into workers' caches, before events say so, and how much they are asked for.

A burst of requests with one prefix is routed within milliseconds; events take an engine step and a stream. A block hash
names everything before it, so of each decision only a few blocks are noted: the 4th, 8th and 16th, then every
32nd, and the last.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from dataclasses import dataclass, field

from tandem_common.hashing import HASH_BYTES

_FIRST_NOTED = (4, 8, 16)
_STRIDE = 32
_MAX_WORKERS = 16  # of one block
_DEMAND_MEMORY_S = 1.0


@dataclass(slots=True)
class _Expected:
    num_blocks: int
    until_s: dict[str, float] = field(default_factory=dict)  # by worker, the one noted longest ago first
    num_asked: float = 0.0  # decisions, those of a second ago and more hardly counted
    asked_s: float = 0.0  # the last of them

    def ask(self, now_s: float) -> None:
        """One more decision."""
        self.num_asked = self.demand(now_s) + 1
        self.asked_s = now_s

    def demand(self, now_s: float) -> float:
        """How many decisions there were in the last second, about."""
        return self.num_asked * math.exp((self.asked_s - now_s) / _DEMAND_MEMORY_S)


class SpeculativeIndex:
    """The latest decisions about each noted block, for `ttl_s`; at most `capacity`. Time never runs backwards."""

    def __init__(self, *, ttl_s: float, capacity: int = 200_000) -> None:
        self._ttl_s = ttl_s
        self._capacity = capacity
        self._expected: OrderedDict[bytes, _Expected] = OrderedDict()  # the one noted longest ago first

    def add(self, packed: bytes, worker_id: str, now_s: float) -> None:
        """A worker will compute these blocks, given as hashes one after another."""
        for number in _noted(packed):
            block_hash = packed[(number - 1) * HASH_BYTES : number * HASH_BYTES]
            expected = self._expected.pop(block_hash, None) or _Expected(number)
            workers = expected.until_s
            workers.pop(worker_id, None)
            workers[worker_id] = now_s + self._ttl_s
            if len(workers) > _MAX_WORKERS:
                del workers[next(iter(workers))]
            expected.ask(now_s)
            self._expected[block_hash] = expected
        while self._expected:
            oldest = next(iter(self._expected.values()))
            if oldest.asked_s + self._ttl_s > now_s and len(self._expected) <= self._capacity:
                break
            self._expected.popitem(last=False)

    def match(self, packed: bytes, now_s: float) -> dict[str, int]:
        """Leading blocks expected on workers: on those that were noted for the longest part."""
        for number in reversed(_noted(packed)):
            expected = self._expected.get(packed[(number - 1) * HASH_BYTES : number * HASH_BYTES])
            if expected is not None:
                blocks = {
                    worker_id: number for worker_id, until_s in expected.until_s.items() if until_s > now_s
                }
                if blocks:
                    return blocks
        return {}

    def demand(self, packed: bytes, num_blocks: int, now_s: float) -> float:
        """How many decisions of the last second were about prompts that begin with so many of these blocks, about."""
        number = next((n for n in reversed(_noted(packed)) if n <= num_blocks), 0)
        expected = (
            self._expected.get(packed[(number - 1) * HASH_BYTES : number * HASH_BYTES]) if number else None
        )
        return expected.demand(now_s) if expected is not None else 0.0

    def check_integrity(self) -> None:
        """Assert the bounds and the orders."""
        assert len(self._expected) <= self._capacity
        times = [expected.asked_s for expected in self._expected.values()]
        assert times == sorted(times)
        for expected in self._expected.values():
            assert 1 <= len(expected.until_s) <= _MAX_WORKERS
            assert list(expected.until_s.values()) == sorted(expected.until_s.values())
            assert max(expected.until_s.values()) == expected.asked_s + self._ttl_s

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
