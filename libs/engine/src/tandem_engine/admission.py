"""Who waits, and who may start: blocks for all known tokens of a sequence at once, the most senior first."""

from __future__ import annotations

from tandem_common.generation import RequestClass

from tandem_engine.block_pool import BlockPool, CacheEntry
from tandem_engine.seniority_list import SeniorityList, by_turn
from tandem_engine.sequence import Phase, Sequence, Turn


class Admission:
    """The waiting sequences of one engine. `running` is the scheduler's list, read and added to here.

    Two lines, each in the order of turns: `waiting` needs blocks, a place in the batch and tokens of the step;
    `reserving` needs blocks only, since another worker computes them. Who is refused blocks holds up all that come
    after it, in both lines, so that a large request is not overtaken for ever by small ones.
    """

    def __init__(self, pool: BlockPool, running: SeniorityList, num_places: int) -> None:
        self.waiting = SeniorityList(by_turn)
        self.reserving = SeniorityList(by_turn)
        self._pool = pool
        self._running = running
        self._num_places = num_places
        # Who was refused blocks, when so many were available and so many sequences ran: asking again is dear
        # (the prompt is looked up in the prefix cache) and pointless before one of the two has changed.
        self._refusal: tuple[Sequence, int, int] | None = None

    def __len__(self) -> int:
        return len(self.waiting) + len(self.reserving)

    def add(self, sequence: Sequence) -> None:
        """Let it wait; a preempted one keeps its seniority."""
        (self.reserving if sequence.is_remote else self.waiting).add(sequence)

    def remove(self, sequence: Sequence) -> None:
        """Let it wait no longer."""
        (self.reserving if sequence.is_remote else self.waiting).remove(sequence)

    def start(self, num_step_tokens: int) -> list[Sequence]:
        """Give blocks to all that can start; returns those that are now reserved, the others are running.

        `num_step_tokens` is what the step has for prompts.
        """
        reserved: list[Sequence] = []
        prefilling = [
            (sequence.turn, sequence.num_uncomputed_tokens)
            for sequence in self._running
            if sequence.phase is Phase.PREFILLING
        ]
        num_started = 0  # tokens of prompts that start now: those that wait come in the order of turns
        while True:
            local, remote = self.waiting.first, self.reserving.first
            if local is not None and not self._can_compute(local, prefilling, num_step_tokens - num_started):
                local = None  # it lacks a place or tokens, not blocks: reservations may pass
            if remote is not None and (local is None or remote.turn < local.turn):
                if not self._open(remote):
                    return reserved
                self.reserving.remove(remote)
                remote.phase = Phase.RESERVED
                reserved.append(remote)
            elif local is not None:
                if not self._open(local):
                    return reserved
                self.waiting.remove(local)
                local.phase = Phase.PREFILLING
                self._running.add(local)
                num_started += local.num_uncomputed_tokens
            else:
                return reserved

    def displaced(self) -> list[Sequence]:
        """Running batch sequences that must make room for the first waiting interactive one.

        Empty when it has room, or when even all of them would not be enough.
        """
        heads = [line.first for line in (self.waiting, self.reserving) if line.first is not None]
        head = min(heads, key=by_turn, default=None)
        if head is None or _is_batch(head) or not self._running or not _is_batch(self._running[-1]):
            return []
        num_victims = 0
        if not head.is_remote and len(self._running) >= self._num_places:
            num_victims = 1
        if num_victims or self._was_refused(head):
            missing = self._num_missing(head, head.find_prefix()) - self._pool.num_available
            victims: list[Sequence] = []
            for sequence in reversed(self._running):
                if not _is_batch(sequence) or (missing <= 0 and len(victims) >= num_victims):
                    break
                victims.append(sequence)
                # Its blocks, and the one that need not be kept available for it.
                missing -= sequence.table.num_exclusive_blocks() + 1
            if missing <= 0:
                return victims
        return []

    def _can_compute(
        self, sequence: Sequence, prefilling: list[tuple[Turn, int]], num_step_tokens: int
    ) -> bool:
        if len(self._running) >= self._num_places:
            return False
        return sum(tokens for turn, tokens in prefilling if turn < sequence.turn) < num_step_tokens

    def _open(self, sequence: Sequence) -> bool:
        """Give it its blocks; False, and nothing changed, when there are too few."""
        if self._was_refused(sequence):
            return False
        prefix = sequence.find_prefix()
        if self._num_missing(sequence, prefix) > self._pool.num_available:
            self._refusal = (sequence, self._pool.num_available, len(self._running))
            return False
        sequence.open(prefix)
        return True

    def _num_missing(self, sequence: Sequence, prefix: list[CacheEntry]) -> int:
        """Available blocks that it needs to start, with one for the growth of each running sequence.

        Without those, it would be preempted again before it had done much.
        """
        return sequence.table.num_missing_blocks(prefix, len(sequence.token_ids)) + len(self._running)

    def _was_refused(self, sequence: Sequence) -> bool:
        if self._refusal is None:
            return False
        refused, num_available, num_running = self._refusal
        return (
            sequence is refused
            and self._pool.num_available <= num_available
            and len(self._running) >= num_running
        )


def _is_batch(sequence: Sequence) -> bool:
    return sequence.request_class is RequestClass.BATCH
