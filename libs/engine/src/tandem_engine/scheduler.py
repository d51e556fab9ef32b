"""What runs next: continuous batching with chunked prefill over a pool of blocks. Pure: no clock, no threads.

The loop of an engine is `schedule` → execute → `postprocess`; in between, nothing else may be called. Who goes
first is decided by seniority (class, then arrival), for prompts by their turns:

1. Each decoding sequence computes one token. When blocks run out, the most junior running sequence gives its
   blocks back and waits again; it will recompute what it knew (its prompt and the tokens that it already
   reported), so nothing is drawn twice. No sequence displaces a more senior one, so one always advances.
2. Those that wait get the blocks for all their known tokens at once, or wait on and hold up all that come after
   them. A waiting interactive sequence takes blocks and places from running batch sequences.
3. What is left of the step's tokens goes to chunks of prompts.

Prompts take turns by when they are due: when three times their own length has arrived, counted in tokens from before
themselves. So a short prompt need not wait for a long one that is being computed, between whose chunks it fits, and a
long one is overtaken by at most twice its own length.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import cast

from tandem_common.errors import Conflict, InvalidRequest, NotFound, Overloaded
from tandem_common.generation import FinishReason, Generation

from tandem_engine.admission import Admission
from tandem_engine.api import (
    EngineInfo,
    FirstToken,
    PrefillMode,
    PrefillProgress,
    StepCost,
    StepOutput,
    TokenLogprobs,
    TokenOutput,
)
from tandem_engine.batch import Batch, Draw, ScheduledSequence
from tandem_engine.block_pool import BlockPool
from tandem_engine.block_table import BlockTable
from tandem_engine.decode_columns import DecodeColumns, is_plain
from tandem_engine.integrity import require
from tandem_engine.loans import Loans
from tandem_engine.seniority_list import SeniorityList, by_turn
from tandem_engine.sequence import Phase, Sequence, make_sequence

_RETRY_AFTER_MS = 1000
# Prompts are due when this many times their own length has arrived after them, counted in tokens.
_PATIENCE = 3
# A step of so many tokens keeps any processor busy: more of a long prompt only delays those that end with the step.
_FULL_STEP_TOKENS = 512


class Scheduler:
    """All sequences of one engine, from submission to their end. Not thread-safe."""

    def __init__(self, info: EngineInfo, pool: BlockPool, *, max_waiting: int = 4096) -> None:
        if info.max_context_tokens > pool.num_blocks * pool.block_size:
            raise ValueError(
                f"a context of {info.max_context_tokens} tokens does not fit into {pool.num_blocks} blocks of "
                f"{pool.block_size}"
            )
        self.pool = pool
        self.loans = Loans(pool)
        self.num_preemptions = 0
        self._info = info
        self._max_waiting = max_waiting
        # Each has a token in every step, so that junior decodes cannot starve a senior prompt.
        self._num_places = min(info.max_sequences, info.max_step_tokens)
        self._num_arrivals = 0
        self._num_known_tokens = 0  # of all that ever arrived
        self._sequences: dict[str, Sequence] = {}
        # Prefilling or decoding. Activated ones may exceed the places: the most junior then pause.
        self._running = SeniorityList()
        self._admission = Admission(pool, self._running, self._num_places)
        self._granted: list[Sequence] = []
        self._is_open = False  # a batch is being executed
        self._scheduled: list[Sequence] = []  # its rows after those of the columns
        # None when not every running sequence is in each step with one token: rows are chosen one by one then.
        self._columns: DecodeColumns | None = None

    @property
    def max_step_tokens(self) -> int:
        """Tokens that one step computes at most."""
        return self._info.max_step_tokens

    def passed_below_tokens(self, sequence: Sequence) -> int:
        """Prompts that come now are computed before this one's if they have fewer tokens."""
        return (sequence.turn[1] - self._num_known_tokens) // _PATIENCE

    def submit(self, generation: Generation, prefill: PrefillMode = PrefillMode.LOCAL) -> None:
        """Queue a request to be computed here; InvalidRequest, Conflict or Overloaded when it cannot be."""
        self._accept(generation, prefill)

    def reserve(self, generation: Generation) -> None:
        """Queue a request for blocks that another worker fills; `take_granted` tells when it has them."""
        self._accept(generation, None)

    def cancel(self, request_id: str) -> None:
        """Forget a request and give up its blocks; unknown ones are fine."""
        sequence = self._sequences.get(request_id)
        if sequence is not None:
            self._end(sequence)

    def activate(self, request_id: str, first_token: FirstToken) -> TokenOutput:
        """Start decoding a reserved sequence whose blocks are all written; the report of its first token.

        NotFound or Conflict when there is no such reservation, Conflict when blocks are missing: nothing is ever
        computed upon what is not there.
        """
        sequence = self.find(request_id)
        if sequence.phase is not Phase.RESERVED or sequence.unwritten_blocks:
            raise Conflict(
                f"the request is {sequence.phase.value} with {len(sequence.unwritten_blocks)} blocks unwritten; "
                "it can be activated when it is reserved and has none"
            )
        if not 0 <= first_token.token_id < self._info.vocab_size:
            raise InvalidRequest(f"first token {first_token.token_id} is not in the vocabulary")
        sequence.is_remote = False
        sequence.num_cached_tokens = first_token.num_cached_tokens
        sequence.num_prefilled_tokens = len(sequence.token_ids)
        sequence.table.share_filled(sequence.token_ids, sequence.num_prefilled_tokens)
        self._running.add(sequence)
        return self._take(sequence, first_token.token_id, first_token.logprobs)

    def find(self, request_id: str) -> Sequence:
        """The sequence of a request; NotFound when it is unknown, ended or cancelled."""
        try:
            return self._sequences[request_id]
        except KeyError:
            raise NotFound("the engine does not have this request (any more)") from None

    def sequences(self) -> Iterator[Sequence]:
        """All sequences, in the order of their arrival."""
        return iter(self._sequences.values())

    def schedule(self) -> Batch:
        """Choose the rows of the next step; an empty batch means that only a command can change anything."""
        require(not self._is_open, "schedule was called twice without postprocess")
        if len(self._admission):
            for sequence in self._admission.displaced():
                self._preempt(sequence)
        columns = self._columns = self._usable_columns()
        num_counted, counted_tokens = (len(columns), columns.kv_tokens) if columns is not None else (0, 0)
        if columns is not None:
            columns.grow()
            rows = columns.rows[:]
        else:
            rows = self._decode_rows()
        num_step_tokens = self._info.max_step_tokens - len(rows)
        if len(self._admission):
            self._granted += self._admission.start(num_step_tokens)
        if len(rows) < len(self._running):
            rows = rows + self._chunk_rows(num_step_tokens)
        self._is_open = bool(rows)
        return Batch(rows, num_counted, counted_tokens)

    @property
    def has_granted(self) -> bool:
        """Whether `take_granted` would give anything."""
        return bool(self._granted)

    def take_granted(self) -> list[Sequence]:
        """Reservations that got their blocks in the last `schedule`."""
        granted, self._granted = self._granted, []
        return [sequence for sequence in granted if sequence.phase is Phase.RESERVED]

    def postprocess(self, batch: Batch, drawn: list[Draw], cost: StepCost | None = None) -> StepOutput:
        """Take in what a runner computed for the last batch, and say what it made known."""
        plain_request_ids: list[str] = []
        plain_token_ids: list[int] = []
        tokens: list[TokenOutput] = []
        progress: list[PrefillProgress] = []
        scheduled, self._scheduled = self._scheduled, []
        self._is_open = False
        rows = batch.sequences
        if batch.num_counted:
            plain_request_ids, plain_token_ids, tokens = self._advance_columns(drawn[: batch.num_counted])
            rows, drawn = rows[batch.num_counted :], drawn[batch.num_counted :]
        block_size, decoding = self.pool.block_size, Phase.DECODING
        for sequence, row, draw in zip(scheduled, rows, drawn, strict=True):
            if sequence.phase is decoding and type(draw) is int:
                # Nearly all rows, one token each.
                token_ids = sequence.token_ids
                computed = len(token_ids)
                if computed % block_size == 0:
                    sequence.table.share_filled(token_ids, computed)
                if draw in sequence.stop_token_ids or computed + 1 >= sequence.max_length:
                    reason = sequence.append(draw)
                    if reason is not None:
                        tokens.append(self._report(sequence, draw, None, reason))
                        continue
                else:
                    token_ids.append(draw)
                plain_request_ids.append(sequence.request_id)
                plain_token_ids.append(draw)
                continue
            before = sequence.num_computed_tokens
            computed = sequence.num_prefilled_tokens = before + row.num_new_tokens
            if computed // block_size > before // block_size:
                sequence.table.share_filled(sequence.token_ids, computed)
            if sequence.prefill is PrefillMode.HOLD and computed > sequence.num_reported_tokens:
                # A preempted one says nothing until it is further than before: what was said stays true.
                sequence.num_reported_tokens = computed
                progress.append(
                    PrefillProgress(
                        request_id=sequence.request_id,
                        num_computed_tokens=computed,
                        num_cached_tokens=sequence.num_cached_tokens or 0,
                    )
                )
            if isinstance(draw, int):
                tokens.append(self._take(sequence, draw, None))
            elif draw is not None:
                tokens.append(self._take(sequence, draw.token_id, draw.logprobs))
            require(
                (draw is not None) == row.draws_token, "the runner drew other tokens than it was asked for"
            )
        removed, stored = self.pool.take_changes()
        return StepOutput(
            plain_request_ids=plain_request_ids,
            plain_token_ids=plain_token_ids,
            tokens=tokens,
            progress=progress,
            removed_hashes=removed,
            stored_hashes=stored,
            cost=cost,
        )

    def check_integrity(self) -> None:
        """Raise BrokenInvariant unless every sequence is where its phase says and the blocks are theirs."""
        waiting, running = (*self._admission.waiting, *self._admission.reserving), (*self._running,)
        for sequences, phases in (
            (waiting, {Phase.WAITING}),
            (running, {Phase.PREFILLING, Phase.DECODING}),
            (set(self._sequences.values()) - {*waiting, *running}, {Phase.RESERVED, Phase.HELD}),
        ):
            for sequence in sequences:
                name, phase = sequence.request_id, sequence.phase
                require(self._sequences.get(name) is sequence, f"{name} was forgotten, but is in a list")
                require(phase in phases, f"{name} is {phase.value}, which is not where it is listed")
                sequence.check_integrity(self.pool.block_size)
        for line in (self._admission.waiting, self._admission.reserving, self._running):
            keys = [line.key(sequence) for sequence in line]
            require(keys == sorted(set(keys)), "a list is not in its order")
        if self._columns is not None:
            self._columns.check_integrity([s for s in running if s.phase is Phase.DECODING])
        tables = [sequence.table.block_ids for sequence in self._sequences.values()]
        self.pool.check_integrity([*tables, *self.loans.tables()])

    def _accept(self, generation: Generation, prefill: PrefillMode | None) -> None:
        if generation.request_id in self._sequences:
            raise Conflict("the engine has a request with this id already")
        if len(self._admission) >= self._max_waiting:
            raise Overloaded(f"{len(self._admission)} requests wait already", retry_after_ms=_RETRY_AFTER_MS)
        # The context fits into the pool, so that what passes this fits too.
        generation.check_limits(
            vocab_size=self._info.vocab_size, max_context_tokens=self._info.max_context_tokens
        )
        self._num_arrivals += 1
        num_tokens = len(generation.token_ids)
        order = (self._num_arrivals, self._num_known_tokens + _PATIENCE * num_tokens)
        self._num_known_tokens += num_tokens
        table = BlockTable(self.pool, generation.namespace)
        sequence = make_sequence(generation, prefill, table, order, self._info.max_context_tokens)
        self._sequences[sequence.request_id] = sequence
        self._admission.add(sequence)

    def _usable_columns(self) -> DecodeColumns | None:
        """The columns of all that decode, if each of them has a place and the block that it needs."""
        running, columns = self._running, self._columns
        if len(running) > self._num_places:
            return None
        if columns is None and self.pool.num_available >= len(running):
            decoding = [sequence for sequence in running if sequence.phase is Phase.DECODING]
            if all(map(is_plain, decoding)):
                columns = DecodeColumns(self.pool.block_size, decoding)
        if columns is None or self.pool.num_available < len(columns.in_need):
            return None
        return columns

    def _advance_columns(self, drawn: list[Draw]) -> tuple[list[str], list[int], list[TokenOutput]]:
        """A token for each of those that decode: the plain requests and tokens, and the others' reports."""
        columns = self._columns
        require(
            columns is not None and set(map(type, drawn)) == {int},
            "the runner drew other tokens than it was asked for",
        )
        assert columns is not None
        request_ids, token_ids, ended = columns.advance(cast("list[int]", drawn))
        reports = [self._report(sequence, token_id, None, reason) for sequence, token_id, reason in ended]
        return request_ids, token_ids, reports

    def _decode_rows(self) -> list[ScheduledSequence]:
        rows: list[ScheduledSequence] = []
        running, block_size, scheduled = self._running, self.pool.block_size, self._scheduled
        decoding = Phase.DECODING
        for sequence in running[: self._num_places]:
            if sequence.phase is not decoding:
                continue  # prefilling, or preempted just now
            computed = sequence.num_computed_tokens
            row = sequence.decode_row
            if computed % block_size == 0 and len(sequence.table.block_ids) * block_size == computed:
                while self.pool.num_available == 0:
                    # Never one that has a row already: those are senior to this one.
                    victim = running[-1]
                    self._preempt(victim)
                    if victim is sequence:
                        return rows
                sequence.table.grow()
            if row is None:
                row = sequence.decode_row = sequence.row(1)
            else:
                row.num_computed_tokens = computed
            rows.append(row)
            scheduled.append(sequence)
        return rows

    def _chunk_rows(self, num_step_tokens: int) -> list[ScheduledSequence]:
        rows: list[ScheduledSequence] = []
        placed = self._running[: self._num_places]
        num_left = num_step_tokens
        for sequence in sorted((s for s in placed if s.phase is Phase.PREFILLING), key=by_turn):
            num_new_tokens = min(sequence.num_uncomputed_tokens, num_left)
            if rows and num_new_tokens < sequence.num_uncomputed_tokens:
                # Those before it end with this step, which is to be no longer than it must.
                num_new_tokens = min(num_new_tokens, max(0, _FULL_STEP_TOKENS - (num_step_tokens - num_left)))
            if num_new_tokens > 0:
                num_left -= num_new_tokens
                rows.append(sequence.row(num_new_tokens))
                self._scheduled.append(sequence)
        return rows

    def _take(self, sequence: Sequence, token_id: int, logprobs: TokenLogprobs | None) -> TokenOutput:
        """Append a drawn token, end or go on, and report it."""
        num_cached_tokens = None if sequence.has_output else sequence.num_cached_tokens
        sequence.has_output = True
        if sequence.prefill is not PrefillMode.HOLD:
            is_new, sequence.phase = sequence.phase is not Phase.DECODING, Phase.DECODING
            reason = sequence.append(token_id)
            if is_new and reason is None and self._columns is not None:
                if is_plain(sequence):
                    self._columns.add(sequence)
                else:
                    self._columns = None
            return self._report(sequence, token_id, logprobs, reason, num_cached_tokens)
        # Whether the token ends the sequence is for the worker to say that goes on from it.
        sequence.token_ids.append(token_id)
        sequence.phase = Phase.HELD
        self._running.remove(sequence)
        return self._report(sequence, token_id, logprobs, None, num_cached_tokens)

    def _report(
        self,
        sequence: Sequence,
        token_id: int,
        logprobs: TokenLogprobs | None,
        reason: FinishReason | None,
        num_cached_tokens: int | None = None,
    ) -> TokenOutput:
        """The report of a token that was drawn; ends the sequence if there is a reason."""
        if reason is not None:
            self._end(sequence)
        stopped = reason is FinishReason.STOP
        return TokenOutput(
            request_id=sequence.request_id,
            token_ids=() if stopped else (token_id,),
            logprobs=None if stopped or logprobs is None else (logprobs,),
            finish_reason=reason,
            stop_token_id=token_id if stopped else None,
            num_cached_tokens=num_cached_tokens,
        )

    def _preempt(self, sequence: Sequence) -> None:
        self.num_preemptions += 1
        self._stop_running(sequence)
        sequence.close()
        self._admission.add(sequence)

    def _end(self, sequence: Sequence) -> None:
        if sequence.phase is Phase.WAITING:
            self._admission.remove(sequence)
        elif sequence.phase in (Phase.PREFILLING, Phase.DECODING):
            self._stop_running(sequence)
        del self._sequences[sequence.request_id]
        sequence.close()

    def _stop_running(self, sequence: Sequence) -> None:
        self._running.remove(sequence)
        if self._columns is not None and sequence.phase is Phase.DECODING:
            self._columns.remove(sequence)
