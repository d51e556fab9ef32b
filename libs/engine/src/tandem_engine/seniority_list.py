"""Sequences in the order in which they are served."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Callable, Iterator
from typing import overload

from tandem_engine.sequence import Sequence


def by_seniority(sequence: Sequence) -> tuple[int, ...]:
    """Interactive before batch, then by arrival."""
    return sequence.seniority


def by_turn(sequence: Sequence) -> tuple[int, ...]:
    """Interactive before batch, then as prompts are due."""
    return sequence.turn


class SeniorityList:
    """Sequences ordered by a key that no two of them share and that never changes."""

    def __init__(self, key: Callable[[Sequence], tuple[int, ...]] = by_seniority) -> None:
        self.key = key
        self._sequences: list[Sequence] = []

    def __len__(self) -> int:
        return len(self._sequences)

    def __iter__(self) -> Iterator[Sequence]:
        return iter(self._sequences)

    def __reversed__(self) -> Iterator[Sequence]:
        return reversed(self._sequences)

    @overload
    def __getitem__(self, index: int) -> Sequence: ...

    @overload
    def __getitem__(self, index: slice) -> list[Sequence]: ...

    def __getitem__(self, index: int | slice) -> Sequence | list[Sequence]:
        return self._sequences[index]

    @property
    def first(self) -> Sequence | None:
        """Who goes first."""
        return self._sequences[0] if self._sequences else None

    def add(self, sequence: Sequence) -> None:
        """Put it where it belongs."""
        insort(self._sequences, sequence, key=self.key)

    def remove(self, sequence: Sequence) -> None:
        """Take it out; ValueError when it is not there."""
        index = bisect_left(self._sequences, self.key(sequence), key=self.key)
        if index == len(self._sequences) or self._sequences[index] is not sequence:
            raise ValueError(f"{sequence.request_id} is not in this list")
        del self._sequences[index]
