from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tandem_common.generation import Generation, SamplingParams, StoppingParams
from tandem_common.hashing import namespace_root
from tandem_engine import Engine, EngineConfig, FirstToken, ModelError, PrefillMode, create_engine
from tandem_engine.batch import Batch, DrawnToken, ScheduledSequence
from tandem_engine.simulated import SimulatedRunner
from tandem_engine.simulated.running_state import FIRST_STATE, checksum, draw_token, next_states

ROOT = namespace_root("model")


def loaded_runner(**settings: object) -> SimulatedRunner:
    values: dict[str, object] = {"engine": "simulated", "num_blocks": 8, "block_size": 4} | settings
    runner = SimulatedRunner(EngineConfig(**values))  # type: ignore[arg-type]
    runner.load()
    return runner


def row(
    tokens: Sequence[int],
    computed: int,
    blocks: Sequence[int],
    *,
    logprobs: int | None = None,
    stops: frozenset[int] = frozenset(),
) -> ScheduledSequence:
    """A row that computes all that is left."""
    return ScheduledSequence(
        request_id="r",
        token_ids=tokens,
        num_computed_tokens=computed,
        num_new_tokens=len(tokens) - computed,
        block_ids=blocks,
        num_prompt_tokens=len(tokens),
        sampling=SamplingParams(logprobs=logprobs),
        stopping=StoppingParams(max_tokens=4, stop_token_ids=stops),
        draws_token=True,
    )


def draw(runner: SimulatedRunner, scheduled: ScheduledSequence) -> int:
    (drawn,) = runner.execute(Batch([scheduled]))
    assert isinstance(drawn, int)
    return drawn


def reference(prompt: Sequence[int], count: int, vocab_size: int = 32_000) -> list[int]:
    """One at a time, without blocks."""
    tokens = list(prompt)
    for _ in range(count):
        states = b"".join(state.to_bytes(8, "little") for state in next_states(FIRST_STATE, tokens))
        tokens.append(draw_token(checksum(states), vocab_size, frozenset()))
    return tokens[len(prompt) :]


def test_tokens_depend_on_every_token_before_them_and_on_their_order() -> None:
    prompts = [[1, 2, 3, 4], [2, 1, 3, 4], [1, 2, 3], [1, 2, 3, 5], [0, 2, 3, 4]]
    answers = [tuple(reference(prompt, 4)) for prompt in prompts]
    assert len(set(answers)) == len(prompts)
    assert len(set(reference([1], 200))) > 190


@pytest.mark.parametrize("slot", range(10))
def test_a_wrong_byte_anywhere_in_the_blocks_changes_the_next_token(slot: int) -> None:
    runner = loaded_runner()
    right = draw(runner, row(range(11), 0, [3, 1, 2]))
    assert draw(runner, row(range(11), 10, [3, 1, 2])) == right
    block = bytearray(32)
    runner.read_blocks([[3, 1, 2][slot // 4]], memoryview(block))
    block[slot % 4 * 8 + 5] ^= 1
    runner.write_blocks([[3, 1, 2][slot // 4]], memoryview(block))
    assert draw(runner, row(range(11), 10, [3, 1, 2])) != right


def test_poisoned_blocks_change_the_next_token() -> None:
    runner = loaded_runner()
    right = draw(runner, row(range(11), 0, [3, 1, 2]))
    runner.poison_blocks([1])
    assert draw(runner, row(range(11), 10, [3, 1, 2])) != right


def test_stop_tokens_are_not_drawn() -> None:
    runner = loaded_runner()
    first = draw(runner, row(range(5), 0, [0, 1]))
    stops = frozenset({first, first + 1})
    assert draw(runner, row(range(5), 0, [0, 1], stops=stops)) == first + 2


def test_log_probabilities_come_when_asked_for_with_the_drawn_token_first() -> None:
    runner = loaded_runner()
    (drawn,) = runner.execute(Batch([row(range(5), 0, [0, 1], logprobs=3)]))
    assert isinstance(drawn, DrawnToken)
    assert drawn.logprobs.top_token_ids[0] == drawn.token_id
    assert len(set(drawn.logprobs.top_token_ids)) == len(drawn.logprobs.top_logprobs) == 3
    (without,) = runner.execute(Batch([row(range(5), 0, [0, 1])]))
    assert isinstance(without, int)


def test_a_step_takes_as_long_as_the_formula_says() -> None:
    runner = loaded_runner(sim_prefill_base_ms=20, sim_prefill_token_ms=10, sim_prefill_context_ms=5)
    scheduled = row(range(8), 4, [0, 1])  # 4 tokens after 4: 20 + 40 + 80 ms
    started = time.perf_counter()
    runner.execute(Batch([scheduled]))
    assert 0.14 <= time.perf_counter() - started < 0.64


def test_decodes_have_a_formula_of_their_own() -> None:
    runner = loaded_runner(
        sim_prefill_base_ms=10_000, sim_decode_base_ms=20, sim_decode_sequence_ms=30, sim_decode_kv_ms=5
    )
    scheduled = row(range(8), 7, [0, 1])
    scheduled.num_prompt_tokens = 6
    started = time.perf_counter()
    runner.execute(Batch([scheduled]))
    assert 0.09 <= time.perf_counter() - started < 0.6


def test_vocabulary_and_context_are_those_of_the_model_directory(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"vocab_size": 50, "max_position_embeddings": 24}))
    config = EngineConfig(engine="simulated", model=str(tmp_path), block_size=4)
    info = SimulatedRunner(config).load()
    assert (info.vocab_size, info.max_context_tokens) == (50, 24)
    assert info.block_bytes == info.block_size * 8


def test_the_context_is_no_longer_than_the_pool() -> None:
    info = SimulatedRunner(EngineConfig(engine="simulated", num_blocks=3, block_size=4)).load()
    assert info.max_context_tokens == 12


@pytest.mark.parametrize("content", [None, "{", "[]", '{"vocab_size": 0}', '{"vocab_size": 5}'])
def test_an_unusable_model_directory_is_named_with_the_fix(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    with pytest.raises(ModelError, match=r"config\.json"):
        SimulatedRunner(EngineConfig(engine="simulated", model=str(tmp_path))).load()


@dataclass(frozen=True, kw_only=True)
class Job:
    """One request of the property test."""

    prompt: list[int]
    max_tokens: int
    delay: int  # steps of the consumer before it is submitted
    way: str  # "local", "handoff", "resumed", "cancelled"
    num_before: int  # tokens before a resumption or a cancellation


jobs = st.builds(
    Job,
    prompt=st.lists(st.integers(0, 2), min_size=1, max_size=24),
    max_tokens=st.integers(1, 12),
    delay=st.integers(0, 6),
    way=st.sampled_from(["local", "local", "handoff", "resumed", "cancelled"]),
    num_before=st.integers(0, 11),
)


class Consumer:
    """Collects the outbox of one engine."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.tokens: dict[str, list[int]] = {}
        self.done: dict[str, asyncio.Event] = {}
        self.num_outputs = 0

    async def run(self) -> None:
        async for output in self.engine.steps():
            self.num_outputs += 1
            assert not output.failures, output.failures
            for report in output.reports():
                name = report.request_id
                if name in self.tokens:
                    self.tokens[name].extend(report.token_ids)
                    if report.finish_reason is not None or name.endswith("-held"):
                        self.done[name].set()

    def expect(self, name: str) -> asyncio.Event:
        self.tokens[name] = []
        self.done[name] = asyncio.Event()
        return self.done[name]


def make_generation(name: str, job: Job, resumed: Sequence[int] = ()) -> Generation:
    return Generation(
        request_id=name,
        token_ids=[*job.prompt, *resumed],
        num_prompt_tokens=len(job.prompt),
        namespace=ROOT,
        stopping=StoppingParams(max_tokens=job.max_tokens),
    )


async def serve(job: Job, name: str, here: Consumer, other: Consumer, handoffs: asyncio.Semaphore) -> None:
    """Take one request through the engine in its way, and compare.

    One handoff at a time: two engines that are full of each other's reservations would wait for a lease to expire.
    """
    expected = reference(job.prompt, job.max_tokens)
    num_before = min(job.num_before, job.max_tokens - 1)
    while here.num_outputs < job.delay:
        if here.engine.snapshot().num_running == 0:
            break
        await asyncio.sleep(0)
    done = here.expect(name)
    if job.way == "handoff":
        await handoffs.acquire()
        held = f"{name}-held"
        prefilled = other.expect(held)
        other.engine.submit(make_generation(held, job), PrefillMode.HOLD)
        reservation = await here.engine.blocks.reserve(make_generation(name, job))
        first, count = reservation.num_held_blocks, reservation.num_blocks - reservation.num_held_blocks
        async with (
            other.engine.blocks.reading(held, first, count) as sources,
            here.engine.blocks.writing(name, first, count) as targets,
        ):
            await prefilled.wait()
            other.engine.cancel(held)  # what is lent stays as it is
            await asyncio.sleep(0)
            for source, target in zip(sources, targets, strict=True):
                target[:] = source
        await here.engine.blocks.activate(
            name, FirstToken(token_id=other.tokens[held][0], num_cached_tokens=0)
        )
        handoffs.release()
    elif job.way == "resumed":
        here.engine.submit(make_generation(name, job, expected[:num_before]))
        here.tokens[name] = expected[:num_before]
    else:
        here.engine.submit(make_generation(name, job))
    if job.way == "cancelled":
        while len(here.tokens[name]) < num_before:
            await asyncio.sleep(0)
        here.engine.cancel(name)
        assert here.tokens[name] == expected[: len(here.tokens[name])]
    else:
        await done.wait()
        assert here.tokens[name] == expected


async def play(jobs: Sequence[Job], **settings: int) -> None:
    config = EngineConfig(engine="simulated", poison_freed_blocks=True, **settings)  # type: ignore[arg-type]
    engines = [create_engine(config), create_engine(config)]
    consumers = [Consumer(engine) for engine in engines]
    handoffs = asyncio.Semaphore(1)
    for engine in engines:
        await engine.start()
    try:
        async with asyncio.timeout(30), asyncio.TaskGroup() as consuming:
            for consumer in consumers:
                consuming.create_task(consumer.run())
            async with asyncio.TaskGroup() as serving:
                for index, job in enumerate(jobs):
                    here, other = consumers[index % 2], consumers[1 - index % 2]
                    serving.create_task(serve(job, f"r{index}", here, other, handoffs))
            for engine in engines:
                while engine.snapshot().requests:
                    await asyncio.sleep(0.001)
                assert engine.snapshot().num_used_blocks == 0
                engine._core.scheduler.check_integrity()  # type: ignore[attr-defined]
                await engine.stop()
    finally:
        for engine in engines:
            await engine.stop()


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    jobs=st.lists(jobs, min_size=1, max_size=10),
    block_size=st.integers(1, 7),
    spare_blocks=st.integers(0, 12),
    max_step_tokens=st.integers(1, 40),
    max_sequences=st.integers(1, 6),
)
def test_every_request_gets_the_tokens_of_a_one_at_a_time_run(
    jobs: list[Job], block_size: int, spare_blocks: int, max_step_tokens: int, max_sequences: int
) -> None:
    """Paged, chunked, batched, cached, preempted, cancelled, handed over and resumed: all the same tokens."""
    asyncio.run(
        play(
            jobs,
            block_size=block_size,
            num_blocks=-(-36 // block_size) + spare_blocks,  # the largest request has 24 + 12 tokens
            max_step_tokens=max_step_tokens,
            max_sequences=max_sequences,
        )
    )
