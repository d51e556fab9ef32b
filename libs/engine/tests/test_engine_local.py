from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import AsyncIterator, Callable, Sequence

import pytest
from tandem_common.config import ConfigError
from tandem_common.errors import Conflict, InvalidRequest, NotFound, Unavailable
from tandem_common.generation import FinishReason, Generation, StoppingParams
from tandem_common.hashing import block_hashes, namespace_root
from tandem_engine import (
    EngineConfig,
    EngineDied,
    EngineInfo,
    FirstToken,
    ModelError,
    PrefillMode,
    StepOutput,
    create_engine,
)
from tandem_engine.api import Borrowed
from tandem_engine.batch import Batch, Draw
from tandem_engine.local_engine import LocalEngine
from tandem_engine.simulated import SimulatedRunner
from tandem_engine.simulated.running_state import STATE_BYTES
from tandem_engine.staging import WINDOW_BYTES

ROOT = namespace_root("model")


class GatedRunner(SimulatedRunner):
    """A simulated runner that tests can hold up in the middle of a step, or break."""

    def __init__(self, config: EngineConfig) -> None:
        super().__init__(config)
        self.gate = threading.Event()
        self.gate.set()
        self.in_step = threading.Event()
        self.num_steps = 0
        self.held_step = -1
        self.broken = False
        self.closed = False

    def execute(self, batch: Batch) -> list[Draw]:
        if self.num_steps == self.held_step:
            self.gate.clear()
        self.in_step.set()
        assert self.gate.wait(10)
        self.num_steps += 1
        if self.broken:
            raise MemoryError
        return super().execute(batch)

    def close(self) -> None:
        self.closed = True
        super().close()


class Broken(SimulatedRunner):
    def load(self) -> EngineInfo:
        raise ModelError("shard 2 of 3 is missing; download it again")


CONFIG = EngineConfig(engine="simulated", num_blocks=32, block_size=4, max_step_tokens=8, max_sequences=4)


def generation(name: str, tokens: Sequence[int], max_tokens: int = 4) -> Generation:
    return Generation(
        request_id=name,
        token_ids=list(tokens),
        num_prompt_tokens=len(tokens),
        namespace=ROOT,
        stopping=StoppingParams(max_tokens=max_tokens),
    )


@pytest.fixture
async def engine() -> AsyncIterator[LocalEngine]:
    engine = LocalEngine(CONFIG, GatedRunner(CONFIG))
    await engine.start()
    yield engine
    runner_of(engine).gate.set()
    await engine.stop()


def runner_of(engine: LocalEngine) -> GatedRunner:
    assert isinstance(engine._runner, GatedRunner)
    return engine._runner


async def eventually(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not condition():
            await asyncio.sleep(0.001)


async def outputs_until(engine: LocalEngine, enough: Callable[[StepOutput], bool]) -> list[StepOutput]:
    outputs = []
    async with asyncio.timeout(5):
        async for output in engine.steps():
            outputs.append(output)
            if enough(output):
                break
    return outputs


def ends(name: str) -> Callable[[StepOutput], bool]:
    return lambda output: any(t.request_id == name and t.finish_reason is not None for t in output.reports())


async def test_a_request_is_generated_reported_and_forgotten(engine: LocalEngine) -> None:
    engine.submit(generation("a", range(10), 3))
    outputs = await outputs_until(engine, ends("a"))
    reports = [report for output in outputs for report in output.reports()]
    assert [len(report.token_ids) for report in reports] == [1, 1, 1]
    assert [report.num_cached_tokens for report in reports] == [0, None, None]
    assert reports[-1].finish_reason is FinishReason.LENGTH
    assert engine.snapshot().requests == ()
    costs = [output.cost for output in outputs if output.cost]
    assert [(c.num_prefill_tokens, c.prefill_token_context) for c in costs] == [
        (8, 0),
        (2, 16),
        (0, 0),
        (0, 0),
    ]
    assert [(c.num_decode_sequences, c.decode_kv_tokens) for c in costs] == [(0, 0), (0, 0), (1, 11), (1, 12)]


async def test_the_hashes_of_stored_and_removed_blocks_are_reported(engine: LocalEngine) -> None:
    engine.submit(generation("a", range(10), 1))
    outputs = await outputs_until(engine, ends("a"))
    assert [h for output in outputs for h in output.stored_hashes] == block_hashes(ROOT, range(10), 4)
    engine.submit(generation("b", range(100, 228), 1))  # the whole pool
    outputs = await outputs_until(engine, ends("b"))
    removed = [h for output in outputs for h in output.removed_hashes]
    assert sorted(removed) == sorted(block_hashes(ROOT, range(10), 4))


async def test_a_bad_request_fails_alone(engine: LocalEngine) -> None:
    engine.submit(generation("good", range(10), 3))
    engine.submit(generation("long", range(200), 3))
    engine.submit(generation("strange", [10**6], 3))
    outputs = await outputs_until(engine, ends("good"))
    failures = {failure.request_id: failure.error for output in outputs for failure in output.failures}
    assert set(failures) == {"long", "strange"}
    assert all(isinstance(error, InvalidRequest) for error in failures.values())


async def test_a_cancelled_request_is_gone_without_a_report(engine: LocalEngine) -> None:
    runner_of(engine).gate.clear()
    engine.submit(generation("a", range(10), 3))
    await eventually(runner_of(engine).in_step.is_set)
    engine.cancel("a")
    engine.cancel("never seen")
    runner_of(engine).gate.set()
    await eventually(lambda: not engine.snapshot().requests)
    assert engine.snapshot().num_used_blocks == 0
    engine.submit(generation("b", range(10), 1))
    outputs = await outputs_until(engine, ends("b"))
    assert {t.request_id for output in outputs for t in output.reports()} == {"b"}


async def test_blocks_are_handed_over_while_the_prompt_is_still_computed(engine: LocalEngine) -> None:
    other = LocalEngine(CONFIG, GatedRunner(CONFIG))
    await other.start()
    try:
        engine.submit(generation("held", range(20)), PrefillMode.HOLD)
        reservation = await other.blocks.reserve(generation("a", range(20), 6))
        assert (reservation.num_blocks, reservation.num_held_blocks) == (5, 0)
        for block in range(5):
            async with (
                engine.blocks.reading("held", block, 1) as [source],
                other.blocks.writing("a", block, 1) as [target],
            ):
                target[:] = source
        held = await outputs_until(engine, lambda output: any(output.reports()))
        first = held[-1].tokens[0].token_ids[0]
        await other.blocks.activate("a", FirstToken(token_id=first, num_cached_tokens=3))
        handed = await outputs_until(other, ends("a"))
        engine.submit(generation("local", range(20), 6))
        local = await outputs_until(engine, ends("local"))
    finally:
        await other.stop()
    tokens = [[token for o in run for t in o.reports() for token in t.token_ids] for run in (handed, local)]
    assert tokens[0] == tokens[1]
    assert len(tokens[0]) == 6
    assert handed[0].tokens[0].num_cached_tokens == 3
    assert [p.num_computed_tokens for output in held for p in output.progress] == [8, 16, 20]
    assert [r.phase for r in engine.snapshot().requests] == ["held"]
    engine.cancel("held")
    await eventually(lambda: engine.snapshot().num_used_blocks == 0)


async def test_a_reservation_waits_for_room(engine: LocalEngine) -> None:
    engine.submit(generation("held", range(100)), PrefillMode.HOLD)
    await eventually(lambda: [r.phase for r in engine.snapshot().requests] == ["held"])
    waiting = asyncio.create_task(engine.blocks.reserve(generation("a", range(200, 240), 6)))
    await eventually(lambda: engine.snapshot().num_waiting == 1)
    assert not waiting.done()
    engine.cancel("held")
    assert (await waiting).num_blocks == 10


async def test_a_reservation_that_is_given_up_leaves_nothing(engine: LocalEngine) -> None:
    engine.submit(generation("held", range(100)), PrefillMode.HOLD)
    await eventually(lambda: [r.phase for r in engine.snapshot().requests] == ["held"])
    waiting = asyncio.create_task(engine.blocks.reserve(generation("a", range(200, 240), 6)))
    await eventually(lambda: engine.snapshot().num_waiting == 1)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    await eventually(lambda: engine.snapshot().num_waiting == 0)
    other = asyncio.create_task(engine.blocks.reserve(generation("b", range(200, 240), 6)))
    await eventually(lambda: engine.snapshot().num_waiting == 1)
    engine.cancel("b")
    with pytest.raises(NotFound):
        await other


async def enter(borrowed: Borrowed) -> None:
    async with borrowed:
        pass


async def test_what_cannot_be_reserved_written_or_read_is_said(engine: LocalEngine) -> None:
    blocks = engine.blocks
    with pytest.raises(InvalidRequest, match="200 tokens"):
        await blocks.reserve(generation("a", range(200), 3))
    await blocks.reserve(generation("a", range(10), 3))
    with pytest.raises(Conflict):
        await blocks.reserve(generation("a", range(10), 3))
    with pytest.raises(NotFound):
        await enter(blocks.writing("b", 0, 1))
    with pytest.raises(InvalidRequest, match="3 to 4"):
        await enter(blocks.writing("a", 3, 1))
    with pytest.raises(Conflict, match="3 blocks unwritten"):
        await blocks.activate("a", FirstToken(token_id=1, num_cached_tokens=0))
    with pytest.raises(NotFound):
        await enter(blocks.reading("b", 0, 1))
    with pytest.raises(InvalidRequest, match="do not exist"):
        await enter(blocks.reading("a", 0, 4))
    engine.submit(generation("c", range(8)), PrefillMode.HOLD)
    await eventually(lambda: "held" in [r.phase for r in engine.snapshot().requests])
    with pytest.raises(Conflict, match="held, not reserved"):
        await enter(blocks.writing("c", 0, 1))


async def test_shared_blocks_of_a_reservation_cannot_be_overwritten(engine: LocalEngine) -> None:
    engine.submit(generation("a", range(8), 1))
    await outputs_until(engine, ends("a"))
    reservation = await engine.blocks.reserve(generation("b", range(10), 3))
    assert (reservation.num_blocks, reservation.num_held_blocks) == (3, 2)
    with pytest.raises(InvalidRequest, match="2 to 3 are"):
        await enter(engine.blocks.writing("b", 1, 1))


async def test_what_could_not_be_filled_does_not_count_as_written(engine: LocalEngine) -> None:
    await engine.blocks.reserve(generation("a", range(10), 3))
    with pytest.raises(InvalidRequest, match="checksum"):
        async with engine.blocks.writing("a", 0, 3):
            raise InvalidRequest("a checksum")
    with pytest.raises(Conflict, match="3 blocks unwritten"):
        await engine.blocks.activate("a", FirstToken(token_id=1, num_cached_tokens=0))


async def test_computed_blocks_are_lent_while_a_step_is_computed(engine: LocalEngine) -> None:
    runner = runner_of(engine)
    runner.held_step = 1
    engine.submit(generation("held", range(20)), PrefillMode.HOLD)
    await outputs_until(engine, lambda output: bool(output.progress))
    await eventually(lambda: not runner.gate.is_set())
    async with engine.blocks.reading("held", 0, 2) as views:
        assert any(views[0])
        assert not runner.gate.is_set()
    runner.gate.set()


@pytest.mark.parametrize("borrow", ["reading", "writing"])
async def test_blocks_that_are_lent_are_given_to_nobody_else(engine: LocalEngine, borrow: str) -> None:
    if borrow == "reading":
        engine.submit(generation("a", range(100)), PrefillMode.HOLD)
    else:
        await engine.blocks.reserve(generation("a", range(100)))
    lending = getattr(engine.blocks, borrow)("a", 23, 2)
    views = await lending.__aenter__()
    content = [bytes(view) for view in views]
    engine.cancel("a")
    await eventually(lambda: not engine.snapshot().requests)
    assert engine.snapshot().num_used_blocks == 25
    engine.submit(generation("b", range(200, 300), 1))  # would need all of them
    await asyncio.sleep(0.02)
    assert engine.snapshot().num_waiting == 1
    assert [bytes(view) for view in views] == content
    if borrow == "reading":
        await lending.__aexit__(None, None, None)
    else:
        with pytest.raises(NotFound):
            await lending.__aexit__(None, None, None)
    await outputs_until(engine, ends("b"))
    await eventually(lambda: engine.snapshot().num_used_blocks == 0)


async def test_a_reader_that_is_cancelled_leaves_no_loan(engine: LocalEngine) -> None:
    runner = runner_of(engine)
    runner.gate.clear()
    engine.submit(generation("a", range(20)), PrefillMode.HOLD)
    reading = asyncio.create_task(enter(engine.blocks.reading("a", 4, 1)))
    await eventually(runner.in_step.is_set)
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading
    runner.gate.set()
    await outputs_until(engine, lambda output: any(output.reports()))
    engine.cancel("a")
    await eventually(lambda: engine.snapshot().num_used_blocks == 0)


class DeviceRunner(GatedRunner):
    """A runner whose blocks are out of the host's reach, as on a GPU."""

    def view_blocks(self, block_ids: Sequence[int]) -> None:  # type: ignore[override]
        return None


async def test_blocks_on_a_device_are_copied_to_the_host_and_back() -> None:
    engines = [LocalEngine(CONFIG, DeviceRunner(CONFIG)), LocalEngine(CONFIG, DeviceRunner(CONFIG))]
    here, there = engines
    for engine in engines:
        await engine.start()
    try:
        here.submit(generation("a", range(20)), PrefillMode.HOLD)
        await there.blocks.reserve(generation("a", range(20), 6))
        async with here.blocks.reading("a", 0, 5) as [source], there.blocks.writing("a", 0, 5) as [target]:
            target[:] = source
        first = (await outputs_until(here, lambda output: any(output.reports())))[-1].tokens[0].token_ids[0]
        await there.blocks.activate("a", FirstToken(token_id=first, num_cached_tokens=0))
        handed = await outputs_until(there, ends("a"))
        here.submit(generation("local", range(20), 6))
        local = await outputs_until(here, ends("local"))
        tokens = [
            [token for o in run for t in o.reports() for token in t.token_ids] for run in (handed, local)
        ]
        assert tokens[0] == tokens[1]
    finally:
        for engine in engines:
            await engine.stop()


class SharedConfig(EngineConfig):
    """As a worker that ships blocks has it."""

    shares_pool = True


SHARED = SharedConfig(engine="simulated", num_blocks=32, block_size=4, max_step_tokens=8, max_sequences=4)


@pytest.mark.parametrize(
    ("runner", "num_bytes"),
    [
        (GatedRunner(SHARED), 32 * 4 * STATE_BYTES),  # the pool itself
        (GatedRunner(CONFIG), WINDOW_BYTES),
        (DeviceRunner(CONFIG), WINDOW_BYTES),
    ],
    ids=["a pool that is shared", "a pool that is not", "a device"],
)
async def test_blocks_are_lent_where_another_process_can_read_them(
    runner: GatedRunner, num_bytes: int
) -> None:
    engine = LocalEngine(CONFIG, runner)
    await engine.start()
    try:
        engine.submit(generation("a", range(20)), PrefillMode.HOLD)
        blocks = engine.blocks
        assert blocks.memory is not None
        assert blocks.max_shared_bytes == num_bytes
        async with blocks.reading("a", 1, 3) as own, blocks.reading("a", 1, 3, shared=True) as shared:
            assert b"".join(shared) == b"".join(own)
            read = b"".join(
                os.pread(blocks.memory.descriptor, len(v), blocks.memory.offset_of(v)) for v in shared
            )
            assert read == b"".join(own)
    finally:
        await engine.stop()


async def test_without_memory_that_can_be_shared_blocks_are_lent_otherwise(
    engine: LocalEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(os, "memfd_create")
    assert engine.blocks.memory is None
    engine.submit(generation("a", range(20)), PrefillMode.HOLD)
    async with engine.blocks.reading("a", 0, 5) as views:
        assert sum(map(len, views)) == 5 * 4 * STATE_BYTES


async def test_reads_of_a_cancelled_request_end(engine: LocalEngine) -> None:
    runner_of(engine).gate.clear()
    engine.submit(generation("a", range(20)), PrefillMode.HOLD)
    reading = asyncio.create_task(enter(engine.blocks.reading("a", 4, 1)))
    await eventually(runner_of(engine).in_step.is_set)
    engine.cancel("a")
    runner_of(engine).gate.set()
    with pytest.raises(NotFound):
        await reading


async def test_a_runner_that_fails_ends_the_engine_and_everything_that_waits(engine: LocalEngine) -> None:
    runner_of(engine).gate.clear()
    engine.submit(generation("a", range(20), 4), PrefillMode.HOLD)
    await eventually(runner_of(engine).in_step.is_set)
    reading = asyncio.create_task(enter(engine.blocks.reading("a", 4, 1)))
    await asyncio.sleep(0)
    runner_of(engine).broken = True
    runner_of(engine).gate.set()
    with pytest.raises(EngineDied, match="MemoryError"):
        await outputs_until(engine, lambda output: False)
    with pytest.raises(EngineDied):
        await reading
    with pytest.raises(EngineDied):
        await engine.blocks.reserve(generation("b", range(4)))
    engine.submit(generation("c", range(4)))
    assert runner_of(engine).closed
    assert engine.snapshot().requests == ()


async def test_stopping_ends_steps_and_whoever_waits_and_can_be_repeated(engine: LocalEngine) -> None:
    engine.submit(generation("held", range(100)), PrefillMode.HOLD)
    waiting = asyncio.create_task(engine.blocks.reserve(generation("a", range(200, 240), 6)))
    await eventually(lambda: engine.snapshot().num_waiting == 1)
    await engine.stop()
    await engine.stop()
    await outputs_until(engine, lambda output: False)  # ends by itself
    with pytest.raises(Unavailable):
        await waiting
    assert runner_of(engine).closed
    assert not any(thread.name == "tandem-engine" for thread in threading.enumerate())


async def test_a_model_that_cannot_be_loaded_is_reported_by_start() -> None:
    engine = LocalEngine(CONFIG, Broken(CONFIG))
    with pytest.raises(ModelError, match="shard 2 of 3"):
        await engine.start()
    await engine.stop()


async def test_an_engine_whose_outputs_nobody_takes_computes_no_further_but_still_obeys(
    engine: LocalEngine,
) -> None:
    runner = runner_of(engine)
    for index in range(12):
        engine.submit(generation(f"r{index}", [index], 100))
    await eventually(lambda: runner.num_steps >= 256)
    steps = runner.num_steps
    await asyncio.sleep(0.05)
    assert runner.num_steps == steps == 256
    engine.cancel("r11")
    await eventually(lambda: all(r.request_id != "r11" for r in engine.snapshot().requests))
    outputs = await outputs_until(engine, ends("r10"))
    assert sum(len(t.token_ids) for output in outputs for t in output.reports()) == 1100


async def test_integrity_is_checked_when_the_engine_has_been_idle_for_a_second(engine: LocalEngine) -> None:
    engine.submit(generation("a", [1], 1))
    await outputs_until(engine, ends("a"))
    core = engine._core
    assert core is not None
    core.scheduler.pool._free.pop()  # a leak
    with pytest.raises(EngineDied, match="BrokenInvariant"):
        await outputs_until(engine, lambda output: False)


async def test_an_engine_is_used_between_start_and_stop_only() -> None:
    engine = LocalEngine(CONFIG, GatedRunner(CONFIG))
    with pytest.raises(RuntimeError, match="not started"):
        engine.submit(generation("a", [1]))
    assert engine.snapshot().requests == ()
    await engine.stop()
    await outputs_until(engine, lambda output: False)


async def test_the_factory_makes_what_the_configuration_names() -> None:
    engine = create_engine(CONFIG)
    await engine.start()
    assert engine.info.name == "simulated"
    await engine.stop()
    with pytest.raises(ConfigError, match="model is empty"):
        EngineConfig(engine="torch")
    with pytest.raises(ConfigError, match="must be one of torch, simulated"):
        EngineConfig(engine="other")
    with pytest.raises(ConfigError, match="at least 1"):
        EngineConfig(engine="simulated", block_size=0)
