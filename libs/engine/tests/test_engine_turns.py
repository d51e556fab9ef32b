"""Prompts take turns: short ones pass long ones, but not for ever."""

from __future__ import annotations

from dataclasses import replace

from tandem_common.generation import Generation, RequestClass, StoppingParams
from tandem_common.hashing import namespace_root
from tandem_engine.api import EngineInfo
from tandem_engine.batch import Batch
from tandem_engine.block_pool import BlockPool
from tandem_engine.scheduler import Scheduler
from tandem_engine.snapshot import take_snapshot

CHUNK = 16
INFO = EngineInfo(
    name="fake",
    vocab_size=100_000,
    max_context_tokens=4096,
    block_size=4,
    num_blocks=4096,
    max_step_tokens=CHUNK,
    max_sequences=64,
    dtype="none",
    block_shape=(1,),
    block_bytes=1,
    layout_digest=b"",
)


class Engine:
    """A scheduler whose tokens cost nothing; notes in which order prompts were finished."""

    def __init__(self, max_step_tokens: int = CHUNK) -> None:
        info = replace(INFO, max_step_tokens=max_step_tokens)
        self.scheduler = Scheduler(info, BlockPool(info.num_blocks, info.block_size))
        self.finished: list[str] = []
        self._next_token = 0

    def submit(self, name: str, num_tokens: int, *, batch: bool = False) -> None:
        """A prompt that shares nothing with any other, and ends with its first token."""
        tokens = range(self._next_token, self._next_token + num_tokens)
        self._next_token += num_tokens
        self.scheduler.submit(
            Generation(
                request_id=name,
                token_ids=list(tokens),
                num_prompt_tokens=num_tokens,
                namespace=namespace_root("model"),
                stopping=StoppingParams(max_tokens=1),
                request_class=RequestClass.BATCH if batch else RequestClass.INTERACTIVE,
            )
        )

    def step(self) -> Batch:
        batch = self.scheduler.schedule()
        drawn = [7 if row.draws_token else None for row in batch.sequences]
        output = self.scheduler.postprocess(batch, drawn)
        self.finished += [token.request_id for token in output.reports()]
        self.scheduler.check_integrity()
        return batch

    def run(self) -> None:
        while self.step().sequences:
            pass


def test_a_short_prompt_is_computed_between_the_chunks_of_a_long_one() -> None:
    engine = Engine()
    engine.submit("long", 20 * CHUNK)
    engine.step()
    engine.submit("short", CHUNK // 2)
    rows = engine.step().sequences
    assert [(row.request_id, row.num_new_tokens) for row in rows] == [
        ("short", CHUNK // 2),
        ("long", CHUNK - CHUNK // 2),
    ]
    assert engine.finished == ["short"]


def test_a_step_that_ends_a_prompt_is_not_filled_up_with_a_long_one() -> None:
    engine = Engine(max_step_tokens=2048)
    engine.submit("long", 4000)
    engine.step()
    engine.submit("short", 100)
    engine.submit("other", 200)
    rows = engine.step().sequences
    # 512 tokens keep a processor busy.
    assert [(row.request_id, row.num_new_tokens) for row in rows] == [
        ("short", 100),
        ("other", 200),
        ("long", 212),
    ]


def test_equal_prompts_are_computed_in_order_of_arrival() -> None:
    engine = Engine()
    for number in range(5):
        engine.submit(f"r{number}", 3 * CHUNK)
    engine.run()
    assert engine.finished == [f"r{number}" for number in range(5)]


def test_a_long_prompt_is_overtaken_by_at_most_twice_its_own_length() -> None:
    engine = Engine()
    engine.submit("long", 10 * CHUNK)
    number = 0
    while "long" not in engine.finished:
        # More arrives in every step than can be computed.
        for _ in range(2):
            engine.submit(f"short{number}", CHUNK)
            number += 1
        engine.step()
    assert 10 < len(engine.finished) - 1 <= 20


def test_an_interactive_prompt_passes_batch_work_of_any_length() -> None:
    engine = Engine()
    engine.submit("batch", CHUNK, batch=True)
    engine.submit("interactive", 10 * CHUNK)
    engine.run()
    assert engine.finished == ["interactive", "batch"]


def test_what_waits_for_the_end_of_a_step_is_counted_as_queued() -> None:
    engine = Engine()
    engine.submit("long", 3 * CHUNK)
    engine.step()
    held = take_snapshot(engine.scheduler, [2 * CHUNK])
    assert held.queued_prefill_tokens == 2 * CHUNK + 2 * CHUNK
    # Of each prompt one chunk comes after tokens: two chunks after one and two, and one after one.
    assert held.queued_prefill_context == CHUNK * (CHUNK + 2 * CHUNK) + CHUNK * CHUNK
    assert held.num_waiting == 1


def test_it_is_told_which_prompts_a_newcomer_passes() -> None:
    engine = Engine()
    engine.submit("long", 40 * CHUNK)
    engine.submit("batch", CHUNK, batch=True)
    engine.step()
    batch, long = take_snapshot(engine.scheduler).passable
    assert (batch.tokens, long.tokens) == (CHUNK, 39 * CHUNK)
    assert batch.below_tokens > 10**9
    # What the newcomers must be shorter than: that they are passed if they are, and wait if they are not.
    for num_tokens, first in ((long.below_tokens - 1, "newcomer"), (long.below_tokens + 1, "long")):
        rival = Engine()
        rival.submit("long", 40 * CHUNK)
        rival.submit("batch", CHUNK, batch=True)
        rival.step()
        rival.submit("newcomer", num_tokens)
        rival.run()
        assert rival.finished[0] == first
