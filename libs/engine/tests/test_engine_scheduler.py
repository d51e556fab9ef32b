from __future__ import annotations

from collections.abc import Iterable, Sequence

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from tandem_common.errors import Conflict, InvalidRequest, NotFound, Overloaded
from tandem_common.generation import FinishReason, Generation, RequestClass, StoppingParams
from tandem_common.hashing import namespace_root
from tandem_engine.api import EngineInfo, FirstToken, PrefillMode, StepOutput, TokenOutput
from tandem_engine.batch import Batch
from tandem_engine.block_pool import BlockPool
from tandem_engine.config import EngineConfig
from tandem_engine.loans import Loan
from tandem_engine.scheduler import Scheduler
from tandem_engine.sequence import Phase
from tandem_engine.simulated import SimulatedRunner
from tandem_engine.simulated.running_state import FIRST_STATE, checksum, draw_token, next_states
from tandem_engine.snapshot import take_snapshot

ROOT = namespace_root("model")
BATCH = RequestClass.BATCH


def generation(
    name: str,
    tokens: Sequence[int],
    max_tokens: int = 4,
    *,
    num_resumed: int = 0,
    min_tokens: int = 0,
    stops: Iterable[int] = (),
    request_class: RequestClass = RequestClass.INTERACTIVE,
) -> Generation:
    return Generation(
        request_id=name,
        token_ids=list(tokens),
        num_prompt_tokens=len(tokens) - num_resumed,
        namespace=ROOT,
        stopping=StoppingParams(
            max_tokens=max_tokens, min_tokens=min_tokens, stop_token_ids=frozenset(stops)
        ),
        request_class=request_class,
    )


def reference(prompt: Sequence[int], count: int, vocab_size: int = 32_000) -> list[int]:
    """What the simulated model generates, computed without blocks, batches or chunks."""
    tokens = list(prompt)
    for _ in range(count):
        states = b"".join(state.to_bytes(8, "little") for state in next_states(FIRST_STATE, tokens))
        tokens.append(draw_token(checksum(states), vocab_size, frozenset()))
    return tokens[len(prompt) :]


class Rig:
    """A scheduler and a simulated runner, stepped by hand, with everything checked at each step."""

    def __init__(
        self,
        *,
        num_blocks: int = 64,
        block_size: int = 4,
        max_step_tokens: int = 16,
        max_sequences: int = 4,
        max_context_tokens: int = 0,
        max_waiting: int = 100,
    ) -> None:
        self.runner = SimulatedRunner(
            EngineConfig(
                engine="simulated",
                num_blocks=num_blocks,
                block_size=block_size,
                max_step_tokens=max_step_tokens,
                max_sequences=max_sequences,
                max_context_tokens=max_context_tokens,
            )
        )
        self.info: EngineInfo = self.runner.load()
        self.pool = BlockPool(num_blocks, block_size, record_freed=True)
        self.scheduler = Scheduler(self.info, self.pool, max_waiting=max_waiting)
        self.tokens: dict[str, list[int]] = {}
        self.ends: dict[str, TokenOutput] = {}
        self.firsts: dict[str, TokenOutput] = {}
        self.scripted: dict[str, list[int]] = {}  # tokens to draw instead of the model's

    def step(self) -> tuple[Batch, StepOutput]:
        batch = self.scheduler.schedule()
        self.runner.poison_blocks(self.pool.take_freed())
        self.check_batch(batch)
        drawn = self.runner.execute(batch)
        for index, row in enumerate(batch.sequences):
            if row.draws_token and self.scripted.get(row.request_id):
                drawn[index] = self.scripted[row.request_id].pop(0)
        output = self.scheduler.postprocess(batch, drawn)
        self.scheduler.check_integrity()
        for report in output.reports():
            self.take(report)
        return batch, output

    def take(self, report: TokenOutput) -> None:
        name = report.request_id
        assert name not in self.ends
        if name not in self.firsts:
            self.firsts[name] = report
            assert report.num_cached_tokens is not None
        else:
            assert report.num_cached_tokens is None
        self.tokens.setdefault(name, []).extend(report.token_ids)
        if report.finish_reason is not None:
            self.ends[name] = report

    def check_batch(self, batch: Batch) -> None:
        rows = batch.sequences
        assert len(rows) <= self.info.max_sequences
        assert sum(row.num_new_tokens for row in rows) <= self.info.max_step_tokens
        decodes = [self.scheduler.find(row.request_id).phase is Phase.DECODING for row in rows]
        assert decodes == sorted(decodes, reverse=True)
        for row in rows:
            assert 1 <= row.num_new_tokens
            assert row.position <= len(row.block_ids) * self.info.block_size
            assert row.draws_token == (row.position == len(row.token_ids))

    def run(self, *, limit: int = 2000) -> None:
        """Step until nothing is left to compute."""
        for _ in range(limit):
            if not self.step()[0].sequences:
                return
        pytest.fail("the scheduler makes no progress")

    def phases(self) -> dict[str, str]:
        return {s.request_id: s.phase.value for s in self.scheduler.sequences()}

    def hand_over(self, name: str, prompt: Sequence[int]) -> None:
        """Write the blocks of a reserved sequence as another worker would, and start it with its first token."""
        sequence = self.scheduler.find(name)
        size, first = self.info.block_size, sequence.table.num_shared_blocks
        states = b"".join(state.to_bytes(8, "little") for state in next_states(FIRST_STATE, prompt))
        states = states.ljust(len(sequence.table.block_ids) * size * 8, b"\xee")
        self.runner.write_blocks(
            sequence.table.block_ids[first:], memoryview(bytearray(states[first * size * 8 :]))
        )
        sequence.unwritten_blocks.clear()
        first_token = FirstToken(token_id=reference(prompt, 1)[0], num_cached_tokens=7)
        self.take(self.scheduler.activate(name, first_token))
        self.scheduler.check_integrity()


def test_a_prompt_is_computed_in_chunks_and_then_continued_token_by_token() -> None:
    rig = Rig(max_step_tokens=16)
    rig.scheduler.submit(generation("a", range(40), 3))
    sizes = [[row.num_new_tokens for row in rig.step()[0].sequences] for _ in range(5)]
    assert sizes == [[16], [16], [8], [1], [1]]
    assert rig.tokens["a"] == reference(range(40), 3)
    assert rig.ends["a"].finish_reason is FinishReason.LENGTH
    assert rig.pool.num_used == 0


def test_decodes_come_first_and_prompts_get_what_is_left() -> None:
    rig = Rig(max_step_tokens=16)
    rig.scheduler.submit(generation("a", range(4), 10))
    rig.step()
    rig.scheduler.submit(generation("b", range(100, 130), 2))
    batch, _ = rig.step()
    assert [(row.request_id, row.num_new_tokens) for row in batch.sequences] == [("a", 1), ("b", 15)]


def test_interactive_requests_start_before_batch_ones_and_both_in_the_order_of_arrival() -> None:
    rig = Rig(max_sequences=1)
    for name, request_class in (("b1", BATCH), ("b2", BATCH)):
        rig.scheduler.submit(generation(name, range(5), 2, request_class=request_class))
    for name in ("i1", "i2"):
        rig.scheduler.submit(generation(name, range(5), 2))
    rig.run()
    assert list(rig.ends) == ["i1", "i2", "b1", "b2"]


def test_a_prompt_takes_no_blocks_before_a_step_has_tokens_for_it() -> None:
    rig = Rig(max_step_tokens=16)
    rig.scheduler.submit(generation("first", range(40), 2))
    rig.scheduler.submit(generation("second", range(50, 90), 2))
    rig.step()
    rig.step()
    assert rig.phases() == {"first": "prefilling", "second": "waiting"}
    batch, _ = rig.step()
    assert [(row.request_id, row.num_new_tokens) for row in batch.sequences] == [("first", 8), ("second", 8)]


def test_an_interactive_prompt_goes_before_the_rest_of_a_batch_prompt() -> None:
    rig = Rig(max_step_tokens=16)
    rig.scheduler.submit(generation("batch", range(60), 2, request_class=BATCH))
    rig.step()
    rig.scheduler.submit(generation("now", range(100, 112), 2))
    batch, _ = rig.step()
    assert [(row.request_id, row.num_new_tokens) for row in batch.sequences] == [("now", 12), ("batch", 4)]


def test_a_batch_prompt_pauses_when_activated_interactive_sequences_have_all_places() -> None:
    rig = Rig(max_sequences=2)
    for name in ("r0", "r1"):
        rig.scheduler.reserve(generation(name, range(6), 5))
    rig.scheduler.submit(generation("batch", range(100, 140), 2, request_class=BATCH))
    rig.step()
    for name in ("r0", "r1"):
        rig.hand_over(name, range(6))
    batch, _ = rig.step()
    assert [row.request_id for row in batch.sequences] == ["r0", "r1"]
    rig.run()
    assert rig.tokens["batch"] == reference(range(100, 140), 2)


def test_a_preempted_prompt_reports_no_progress_twice() -> None:
    rig = Rig(num_blocks=30, max_step_tokens=6, max_sequences=1)
    rig.scheduler.submit(generation("held", range(20), request_class=BATCH), PrefillMode.HOLD)
    outputs = [rig.step()[1], rig.step()[1]]
    rig.scheduler.submit(generation("now", range(100, 106), 2))
    rig.scheduler.submit(generation("flush", range(200, 440, 2), 1))  # evicts what "held" had computed
    while "held" not in rig.tokens:
        outputs.append(rig.step()[1])
    assert rig.scheduler.num_preemptions == 1
    progress = [p.num_computed_tokens for output in outputs for p in output.progress]
    assert progress == sorted(set(progress))
    assert progress[-1] == 20


def test_an_interactive_request_takes_the_place_of_a_batch_one_which_resumes_unharmed() -> None:
    rig = Rig(max_sequences=1)
    rig.scheduler.submit(generation("batch", range(9), 8, request_class=BATCH))
    rig.step()
    rig.step()
    rig.scheduler.submit(generation("now", range(50, 60), 3))
    rig.run()
    assert list(rig.ends) == ["now", "batch"]
    assert rig.tokens["batch"] == reference(range(9), 8)
    assert rig.scheduler.num_preemptions == 1


def test_an_interactive_request_takes_blocks_from_batch_ones_only_if_that_is_enough() -> None:
    rig = Rig(num_blocks=10, max_sequences=8)
    rig.scheduler.submit(generation("held", range(16)), PrefillMode.HOLD)  # 4 blocks that nobody can take
    rig.scheduler.submit(generation("batch", range(100, 112), 9, request_class=BATCH))  # 3 blocks, later 5
    for _ in range(3):
        rig.step()
    rig.scheduler.submit(generation("large", range(200, 232), 2))  # 8 blocks: never while "held" is there
    rig.step()
    rig.step()
    assert rig.phases() == {"held": "held", "batch": "decoding", "large": "waiting"}
    rig.scheduler.cancel("large")
    rig.scheduler.submit(generation("fits", range(200, 220), 2))  # 5 blocks: with those of "batch"
    rig.step()
    rig.step()
    assert rig.phases() == {"held": "held", "batch": "waiting", "fits": "prefilling"}
    rig.run()
    assert rig.tokens["batch"] == reference(range(100, 112), 9)
    assert rig.tokens["fits"] == reference(range(200, 220), 2)


def test_when_blocks_run_out_the_youngest_is_preempted_and_repeats_no_token() -> None:
    rig = Rig(num_blocks=8, max_sequences=4)
    for name, start in (("old", 0), ("young", 100)):
        rig.scheduler.submit(generation(name, range(start, start + 8), 20))
    rig.run()
    assert rig.scheduler.num_preemptions > 0
    assert list(rig.ends) == ["old", "young"]
    assert rig.tokens == {"old": reference(range(8), 20), "young": reference(range(100, 108), 20)}


def test_a_stop_token_ends_the_sequence_and_is_not_emitted() -> None:
    rig = Rig()
    rig.scripted["a"] = [5, 6, 99, 7]
    rig.scheduler.submit(generation("a", range(5), 10, stops=[99]))
    rig.run()
    assert rig.tokens["a"] == [5, 6]
    assert (rig.ends["a"].finish_reason, rig.ends["a"].stop_token_id) == (FinishReason.STOP, 99)


def test_a_stop_token_before_min_tokens_is_a_token_like_any_other() -> None:
    rig = Rig()
    rig.scripted["a"] = [99, 99, 99]
    rig.scheduler.submit(generation("a", range(5), 10, min_tokens=2, stops=[99]))
    rig.run()
    assert rig.tokens["a"] == [99, 99]
    assert rig.ends["a"].finish_reason is FinishReason.STOP


def test_a_prompt_that_fills_the_context_gets_one_token() -> None:
    rig = Rig(max_context_tokens=16)
    rig.scheduler.submit(generation("full", range(16), 1))
    rig.run()
    assert rig.tokens["full"] == reference(range(16), 1)
    with pytest.raises(InvalidRequest, match=r"17 tokens.*holds 16"):
        rig.scheduler.submit(generation("more", range(17), 1))
    with pytest.raises(InvalidRequest, match="Lower max_tokens to 1"):
        rig.scheduler.submit(generation("longer", range(16), 2))


def test_a_cached_prefix_is_not_computed_again_but_the_last_token_always_is() -> None:
    rig = Rig(max_step_tokens=64)
    rig.scheduler.submit(generation("a", range(16), 1))
    rig.run()
    rig.scheduler.submit(generation("same", range(16), 2))
    batch, _ = rig.step()
    assert [(row.num_computed_tokens, row.num_new_tokens) for row in batch.sequences] == [(12, 4)]
    assert rig.firsts["same"].num_cached_tokens == 12
    rig.run()
    assert rig.tokens["same"] == reference(range(16), 2)


def test_generated_tokens_are_cached_for_the_next_turn() -> None:
    rig = Rig(max_step_tokens=64)
    rig.scheduler.submit(generation("turn", range(8), 9))
    rig.run()
    prompt = [*range(8), *rig.tokens["turn"], 1, 2, 3]
    rig.scheduler.submit(generation("next", prompt, 2))
    rig.run()
    assert rig.firsts["next"].num_cached_tokens == 16
    assert rig.tokens["next"] == reference(prompt, 2)


def test_a_resumed_sequence_goes_on_where_it_was() -> None:
    rig = Rig()
    whole = reference(range(10), 8)
    rig.scheduler.submit(generation("a", [*range(10), *whole[:5]], 8, num_resumed=5))
    rig.run()
    assert rig.tokens["a"] == whole[5:]
    assert rig.firsts["a"].num_cached_tokens == 0


def test_a_held_sequence_gives_one_token_and_keeps_its_blocks_until_it_is_cancelled() -> None:
    rig = Rig(max_step_tokens=8)
    rig.scripted["a"] = [99]
    rig.scheduler.submit(generation("a", range(10), 5, stops=[99]), PrefillMode.HOLD)
    progress = [
        (p.num_computed_tokens, p.num_cached_tokens) for _ in range(2) for p in rig.step()[1].progress
    ]
    assert progress == [(8, 0), (10, 0)]
    rig.run()
    # The worker that goes on from the token decides what it means.
    assert rig.tokens["a"] == [99]
    assert rig.ends == {}
    assert rig.phases() == {"a": "held"}
    assert rig.pool.num_used == 3
    rig.scheduler.cancel("a")
    assert rig.pool.num_used == 0


def test_a_reserved_sequence_is_written_activated_and_decoded_like_a_local_one() -> None:
    rig = Rig()
    rig.scheduler.reserve(generation("a", range(10), 6))
    rig.step()
    (granted,) = rig.scheduler.take_granted()
    assert (granted.request_id, len(granted.table.block_ids)) == ("a", 3)
    rig.hand_over("a", range(10))
    assert rig.firsts["a"].num_cached_tokens == 7
    rig.run()
    assert rig.tokens["a"] == reference(range(10), 6)
    rig.scheduler.submit(generation("b", range(10), 6))
    rig.run()
    assert rig.firsts["b"].num_cached_tokens == 8


def test_a_reservation_takes_from_the_cache_all_full_blocks_that_are_there() -> None:
    rig = Rig()
    rig.scheduler.submit(generation("a", range(8), 1))
    rig.run()
    rig.scheduler.reserve(generation("b", range(8), 3))
    rig.step()
    (granted,) = rig.scheduler.take_granted()
    assert granted.unwritten_blocks == set()
    rig.hand_over("b", range(8))
    rig.run()
    assert rig.tokens["b"] == reference(range(8), 3)


def test_a_sequence_with_unwritten_blocks_is_not_activated() -> None:
    rig = Rig()
    rig.scheduler.reserve(generation("a", range(10), 6))
    rig.step()
    first = FirstToken(token_id=1, num_cached_tokens=0)
    with pytest.raises(Conflict, match="3 blocks unwritten"):
        rig.scheduler.activate("a", first)
    with pytest.raises(NotFound):
        rig.scheduler.activate("b", first)


def test_a_first_token_may_end_the_sequence() -> None:
    rig = Rig()
    rig.scheduler.reserve(generation("a", range(10), 1))
    rig.step()
    rig.hand_over("a", range(10))
    assert rig.ends["a"].finish_reason is FinishReason.LENGTH
    assert rig.pool.num_used == 0


def test_a_reservation_passes_prompts_that_lack_only_computing_time() -> None:
    rig = Rig(max_sequences=1)
    rig.scheduler.submit(generation("a", range(40), 2))
    rig.scheduler.submit(generation("b", range(40, 80), 2))
    rig.scheduler.reserve(generation("c", range(10), 2))
    rig.step()
    assert rig.phases() == {"a": "prefilling", "b": "waiting", "c": "reserved"}


def test_nobody_passes_one_that_lacks_blocks() -> None:
    rig = Rig(num_blocks=10, max_sequences=8)
    rig.scheduler.submit(generation("held", range(20)), PrefillMode.HOLD)
    rig.run()
    rig.scheduler.submit(generation("large", range(100, 124), 2))
    # So much arrives after it that it is due before what comes now.
    for _ in range(3):
        rig.scheduler.submit(generation("gone", range(24), 2))
        rig.scheduler.cancel("gone")
    rig.scheduler.submit(generation("small", range(4), 2))
    rig.scheduler.reserve(generation("remote", range(4), 2))
    rig.step()
    assert rig.phases() == {"held": "held", "large": "waiting", "small": "waiting", "remote": "waiting"}
    rig.scheduler.cancel("held")
    rig.step()
    assert rig.phases()["large"] == "prefilling"


def test_activated_sequences_beyond_the_places_wait_for_one() -> None:
    rig = Rig(max_sequences=2)
    for index in range(4):
        rig.scheduler.reserve(generation(f"r{index}", range(index, index + 6), 5))
    rig.step()
    for index in range(4):
        rig.hand_over(f"r{index}", range(index, index + 6))
    rig.run()
    for index in range(4):
        assert rig.tokens[f"r{index}"] == reference(range(index, index + 6), 5)


def test_a_senior_prompt_advances_though_junior_decodes_could_fill_every_step() -> None:
    rig = Rig(max_sequences=4, max_step_tokens=2)
    rig.scheduler.submit(generation("prompt", range(6), 2))
    for index in range(3):
        rig.scheduler.reserve(generation(f"r{index}", range(20, 26), 50))
    rig.step()
    for index in range(3):
        rig.hand_over(f"r{index}", range(20, 26))
    for _ in range(8):
        rig.step()
    assert "prompt" in rig.ends


def test_more_than_max_waiting_are_refused_with_a_time_to_retry() -> None:
    rig = Rig(max_waiting=2)
    rig.scheduler.submit(generation("a", range(4)))
    rig.scheduler.reserve(generation("b", range(4)))
    with pytest.raises(Overloaded) as caught:
        rig.scheduler.submit(generation("c", range(4)))
    assert caught.value.retry_after_ms
    rig.run()
    rig.scheduler.submit(generation("c", range(4)))


def test_one_id_is_taken_once_and_cancelling_is_idempotent() -> None:
    rig = Rig()
    rig.scheduler.submit(generation("a", range(4)))
    with pytest.raises(Conflict):
        rig.scheduler.submit(generation("a", range(4)))
    rig.scheduler.cancel("a")
    rig.scheduler.cancel("a")
    rig.scheduler.submit(generation("a", range(4)))
    rig.run()
    assert rig.tokens["a"] == reference(range(4), 4)


def test_the_snapshot_counts_what_is_queued_running_and_held() -> None:
    rig = Rig(max_step_tokens=8, max_sequences=2)
    rig.scheduler.submit(generation("a", range(4), 10))
    rig.step()
    rig.scheduler.submit(generation("b", range(20), 2))
    rig.scheduler.submit(generation("c", range(30), 2))
    rig.scheduler.reserve(generation("d", range(5), 2))
    rig.step()
    snapshot = take_snapshot(rig.scheduler)
    assert (snapshot.num_running, snapshot.num_waiting, snapshot.num_decoding) == (2, 1, 1)
    assert snapshot.queued_prefill_tokens == (20 - 4 - 7) + 30
    assert snapshot.decode_kv_tokens == 6
    assert snapshot.num_used_blocks == 2 + 5 + 2 - 2  # all three share their first block
    assert snapshot.num_awaited_blocks == 8
    assert take_snapshot(rig.scheduler, [9]).num_awaited_blocks == 8 + 3
    assert [(r.request_id, r.phase, r.num_blocks) for r in snapshot.requests] == [
        ("a", "decoding", 2),
        ("b", "prefilling", 5),
        ("c", "waiting", 0),
        ("d", "reserved", 2),
    ]


class SchedulerMachine(RuleBasedStateMachine):
    """Random arrivals, handoffs and cancellations. Every token must be that of the reference, and nothing may stay."""

    @initialize(
        num_blocks=st.integers(6, 14),
        block_size=st.integers(1, 5),
        max_step_tokens=st.integers(1, 12),
        max_sequences=st.integers(1, 5),
    )
    def start(self, num_blocks: int, block_size: int, max_step_tokens: int, max_sequences: int) -> None:
        self.rig = Rig(
            num_blocks=num_blocks,
            block_size=block_size,
            max_step_tokens=max_step_tokens,
            max_sequences=max_sequences,
        )
        self.asked: dict[str, Generation] = {}
        self.held: set[str] = set()
        self.lent: list[tuple[Loan, int, bytes]] = []  # with how many blocks were full, and their content

    def new(self, prompt: list[int], max_tokens: int, urgent: bool) -> Generation:
        name = f"r{len(self.asked)}"
        room = self.rig.info.max_context_tokens
        prompt = prompt[:room]
        max_tokens = min(max_tokens, max(1, room - len(prompt)))
        request_class = RequestClass.INTERACTIVE if urgent else BATCH
        self.asked[name] = generation(name, prompt, max_tokens, request_class=request_class)
        return self.asked[name]

    prompts = st.lists(st.integers(0, 1), min_size=1, max_size=16)
    lengths = st.integers(1, 12)

    @rule(prompt=prompts, max_tokens=lengths, urgent=st.booleans())
    def submit(self, prompt: list[int], max_tokens: int, urgent: bool) -> None:
        self.rig.scheduler.submit(self.new(prompt, max_tokens, urgent))

    @rule(prompt=prompts, urgent=st.booleans())
    def submit_held(self, prompt: list[int], urgent: bool) -> None:
        asked = self.new(prompt, 1, urgent)
        self.held.add(asked.request_id)
        self.rig.scheduler.submit(asked, PrefillMode.HOLD)

    @rule(prompt=prompts, max_tokens=lengths, urgent=st.booleans())
    def reserve(self, prompt: list[int], max_tokens: int, urgent: bool) -> None:
        self.rig.scheduler.reserve(self.new(prompt, max_tokens, urgent))

    @precondition(lambda self: self.reserved())
    @rule(data=st.data())
    def hand_over(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(self.reserved()))
        self.rig.hand_over(name, self.asked[name].token_ids)

    @precondition(lambda self: list(self.rig.scheduler.sequences()))
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from([s.request_id for s in self.rig.scheduler.sequences()]))
        self.rig.scheduler.cancel(name)

    @precondition(lambda self: any(s.table.block_ids for s in self.rig.scheduler.sequences()))
    @rule(data=st.data())
    def lend(self, data: st.DataObject) -> None:
        borrowable = [s for s in self.rig.scheduler.sequences() if s.table.block_ids]
        sequence = data.draw(st.sampled_from(borrowable))
        loan = self.rig.scheduler.loans.lend(sequence.request_id, sequence.table.block_ids)
        num_full = sequence.num_computed_tokens // self.rig.info.block_size
        self.lent.append((loan, num_full, self.content(loan, num_full)))

    @precondition(lambda self: self.lent)
    @rule(data=st.data())
    def give_back(self, data: st.DataObject) -> None:
        loan, num_full, content = self.lent.pop(data.draw(st.integers(0, len(self.lent) - 1)))
        # Whatever became of the sequence meanwhile.
        assert self.content(loan, num_full) == content
        self.rig.scheduler.loans.give_back(loan)

    def content(self, loan: Loan, num_blocks: int) -> bytes:
        views = self.rig.runner.view_blocks(loan.block_ids[:num_blocks])
        return b"".join(views)

    @rule(count=st.integers(1, 6))
    def step(self, count: int) -> None:
        for _ in range(count):
            batch, _ = self.rig.step()
            phases = set(self.rig.phases().values())
            # Idle while somebody waits: only when blocks are kept for others.
            assert batch.sequences or "waiting" not in phases or phases & {"held", "reserved"} or self.lent

    @invariant()
    def nothing_contradicts_itself(self) -> None:
        if hasattr(self, "rig"):
            self.rig.scheduler.check_integrity()

    def reserved(self) -> list[str]:
        return [name for name, phase in self.rig.phases().items() if phase == "reserved"]

    def teardown(self) -> None:
        if not hasattr(self, "rig"):
            return
        for loan, num_full, content in self.lent:
            assert self.content(loan, num_full) == content
            self.rig.scheduler.loans.give_back(loan)
        for _ in range(100):
            self.rig.run()
            for name, phase in self.rig.phases().items():
                if phase == "reserved":
                    self.rig.hand_over(name, self.asked[name].token_ids)
                elif phase == "held":
                    self.rig.scheduler.cancel(name)
            if not self.rig.phases():
                break
        assert self.rig.phases() == {}
        assert self.rig.pool.num_used == 0
        for name, asked in self.asked.items():
            tokens = self.rig.tokens.get(name, [])
            assert tokens == reference(asked.token_ids, len(tokens))
            if name in self.rig.ends:
                assert len(tokens) == asked.stopping.max_tokens
            assert name not in self.held or len(tokens) <= 1


TestScheduler = SchedulerMachine.TestCase
TestScheduler.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
