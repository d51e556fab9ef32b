"""The sequences that decode, side by side: one that goes on unchanged costs a step no more than appending its token.

What is to be done for a sequence besides that (a block is full, a block is wanted, its length is reached) is known in
advance and entered for the step in which it happens. Only stop tokens come unforeseen, and whether there is one among
the tokens of a step is one question for all.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterable
from typing import NamedTuple

from tandem_common.generation import FinishReason

from tandem_engine.batch import ScheduledSequence
from tandem_engine.integrity import require
from tandem_engine.sequence import Phase, Seniority, Sequence


class Ended(NamedTuple):
    """A sequence that ends with this token."""

    sequence: Sequence
    token_id: int
    reason: FinishReason


class DecodeColumns:
    """All decoding sequences, the most senior first, as long as each of them has a token in every step."""

    def __init__(self, block_size: int, sequences: Iterable[Sequence] = ()) -> None:
        self._block_size = block_size
        self._num_steps = 0
        self._due: dict[int, list[Sequence]] = {}  # by step; who has left meanwhile is skipped
        self._stop_counts: Counter[int] = Counter()
        self._seniorities: list[Seniority] = []
        self._appends: list[Callable[[int], None]] = []
        self.sequences: list[Sequence] = []
        self.rows: list[ScheduledSequence] = []
        self.request_ids: list[str] = []
        self.kv_tokens = 0  # that a step reads: all known ones
        self.in_need: list[Sequence] = []  # of a block, before the next step
        for sequence in sequences:
            self.add(sequence)

    def __len__(self) -> int:
        return len(self.sequences)

    def add(self, sequence: Sequence) -> None:
        """It decodes from now on."""
        at = bisect_left(self._seniorities, sequence.seniority)
        row = sequence.row(1)
        self._seniorities.insert(at, sequence.seniority)
        self._appends.insert(at, sequence.token_ids.append)
        self.sequences.insert(at, sequence)
        self.rows.insert(at, row)
        self.request_ids.insert(at, sequence.request_id)
        self.kv_tokens += len(sequence.token_ids)
        self._stop_counts.update(sequence.stop_token_ids)
        self._look_ahead(sequence)

    def remove(self, sequence: Sequence) -> None:
        """It has ended, perhaps with its first token, or waits again."""
        if not self._holds(sequence):
            return
        at = bisect_left(self._seniorities, sequence.seniority)
        for column in (self._seniorities, self._appends, self.sequences, self.rows, self.request_ids):
            del column[at]
        self.kv_tokens -= len(sequence.token_ids)
        stops = self._stop_counts
        stops.subtract(sequence.stop_token_ids)
        for token_id in sequence.stop_token_ids:
            if not stops[token_id]:
                del stops[token_id]

    def grow(self) -> None:
        """Give a block to those in need; the caller checked that there are so many."""
        in_need, self.in_need = self.in_need, []
        for sequence in in_need:
            covered = len(sequence.table.block_ids) * self._block_size
            if self._holds(sequence) and covered < len(sequence.token_ids):
                sequence.table.grow()

    def advance(self, drawn: list[int]) -> tuple[list[str], list[int], list[Ended]]:
        """Append a token to each; the requests that go on with their tokens, and those that end.

        They are still here, and are for the caller to remove.
        """
        self._num_steps += 1
        self.kv_tokens += len(drawn)
        for row in self.rows:
            row.num_computed_tokens += 1
        special = self._special(drawn)
        if not special:
            for append, token_id in zip(self._appends, drawn, strict=True):
                append(token_id)
            return self.request_ids[:], drawn, []
        ended: list[Ended] = []
        appends, request_ids, token_ids = self._appends[:], self.request_ids[:], drawn[:]
        for at in special:
            sequence, token_id = self.sequences[at], drawn[at]
            num_computed = len(sequence.token_ids)
            if num_computed % self._block_size == 0:
                sequence.table.share_filled(sequence.token_ids, num_computed)
            appends[at] = _ignore
            reason = sequence.append(token_id)
            if reason is not None:
                if reason is FinishReason.STOP:
                    self.kv_tokens -= 1  # it was not appended
                ended.append(Ended(sequence, token_id, reason))
        for append, token_id in zip(appends, drawn, strict=True):
            append(token_id)
        gone = {each.sequence.seniority for each in ended}
        for at in reversed(special):
            if self._seniorities[at] in gone:
                del request_ids[at], token_ids[at]
            else:
                self._look_ahead(self.sequences[at])
        return request_ids, token_ids, ended

    def check_integrity(self, decoding: list[Sequence]) -> None:
        """Raise BrokenInvariant unless the columns are of these sequences, the most senior first."""
        require(self.sequences == decoding, "other sequences decode than the columns hold")
        require([s.seniority for s in decoding] == self._seniorities, "a column is not in its order")
        require([s.request_id for s in decoding] == self.request_ids, "a column has the wrong requests")
        require(self.kv_tokens == sum(len(s.token_ids) for s in decoding), "the tokens are miscounted")
        stops = Counter(token_id for sequence in decoding for token_id in sequence.stop_token_ids)
        require(self._stop_counts == stops, "the stop tokens are miscounted")
        for sequence, row in zip(decoding, self.rows, strict=True):
            require(row.num_computed_tokens == sequence.num_computed_tokens, "a row is not up to date")
            covered = len(sequence.table.block_ids) * self._block_size
            require(
                sequence.num_computed_tokens < covered or sequence in self.in_need,
                f"{sequence.request_id} has no room for its token",
            )

    def _special(self, drawn: list[int]) -> list[int]:
        """Where more is to be done than to append, in order."""
        due = [self._at(s) for s in self._due.pop(self._num_steps, ()) if self._holds(s)]
        if self._stop_counts and not self._stop_counts.keys().isdisjoint(drawn):
            due += [
                at
                for at, (sequence, token_id) in enumerate(zip(self.sequences, drawn, strict=True))
                if token_id in sequence.stop_token_ids
            ]
        return sorted(set(due)) if len(due) > 1 else due

    def _look_ahead(self, sequence: Sequence) -> None:
        """Enter when the sequence is to be looked at again, and whether it needs a block before."""
        num_known = len(sequence.token_ids)
        num_computed = num_known - 1
        into_block = num_computed % self._block_size
        if not into_block and len(sequence.table.block_ids) * self._block_size == num_computed:
            self.in_need.append(sequence)
        steps = min(self._block_size - into_block, sequence.max_length - num_known)
        self._due.setdefault(self._num_steps + max(1, steps), []).append(sequence)

    def _at(self, sequence: Sequence) -> int:
        return bisect_left(self._seniorities, sequence.seniority)

    def _holds(self, sequence: Sequence) -> bool:
        at = self._at(sequence)
        return at < len(self.sequences) and self.sequences[at] is sequence


def is_plain(sequence: Sequence) -> bool:
    """Whether the columns can take it: nothing is reported of its tokens but their ids."""
    return sequence.phase is Phase.DECODING and sequence.sampling.logprobs is None


def _ignore(token_id: int) -> None:
    """In place of an append that was done."""
