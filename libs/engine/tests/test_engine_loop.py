"""The engine that lives in the event loop: its timer, and what differs from one in a thread."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable

import pytest
import uvloop
from tandem_common.generation import FinishReason, Generation, StoppingParams
from tandem_common.hashing import namespace_root
from tandem_engine import EngineConfig, EngineDied, ModelError, create_engine
from tandem_engine.alarm import Alarm
from tandem_engine.api import EngineInfo, StepCost, StepOutput
from tandem_engine.batch import Batch, Draw
from tandem_engine.loop_engine import LoopEngine
from tandem_engine.simulated import SimulatedRunner

ROOT = namespace_root("model")
CONFIG = EngineConfig(
    engine="simulated", num_blocks=32, block_size=4, max_step_tokens=8, max_sequences=4, sim_decode_base_ms=20
)


def generation(name: str, max_tokens: int) -> Generation:
    return Generation(
        request_id=name,
        token_ids=[1, 2, 3],
        num_prompt_tokens=3,
        namespace=ROOT,
        stopping=StoppingParams(max_tokens=max_tokens),
    )


@pytest.fixture
async def engine() -> AsyncIterator[LoopEngine]:
    engine = create_engine(CONFIG)
    assert isinstance(engine, LoopEngine)
    await engine.start()
    yield engine
    await engine.stop()


async def outputs_until(engine: LoopEngine, enough: Callable[[StepOutput], bool]) -> list[StepOutput]:
    outputs = []
    async with asyncio.timeout(10):
        async for output in engine.steps():
            outputs.append(output)
            if enough(output):
                break
    return outputs


def ends(name: str) -> Callable[[StepOutput], bool]:
    return lambda output: any(t.request_id == name and t.finish_reason is not None for t in output.reports())


@pytest.mark.parametrize("run", [asyncio.run, uvloop.run])
def test_an_alarm_goes_off_once_for_each_setting_and_not_before_its_time(run) -> None:
    async def ring() -> None:
        answers: asyncio.Queue[int] = asyncio.Queue()
        alarm = Alarm(lambda: answers.put_nowait(time.monotonic_ns()))
        try:
            for delay_ns in (5_300_000, 0, -10):
                due_ns = time.monotonic_ns() + delay_ns
                alarm.set(due_ns)
                async with asyncio.timeout(10):
                    assert await answers.get() >= due_ns
            alarm.set(time.monotonic_ns() + 20_000_000)
            alarm.set(0)
            async with asyncio.timeout(10):
                await answers.get()
            await asyncio.sleep(0.04)
            assert answers.empty()
        finally:
            alarm.close()
            alarm.close()

    run(ring())


async def test_the_event_loop_goes_on_while_a_step_takes_its_time(engine: LoopEngine) -> None:
    engine.submit(generation("a", 6))
    began, num_turns = time.monotonic(), 0
    ended = asyncio.create_task(outputs_until(engine, ends("a")))
    while not ended.done():
        num_turns += 1
        await asyncio.sleep(0.001)
    assert num_turns > 20
    assert time.monotonic() - began >= 5 * 0.020  # the first of the six is the prompt's
    assert {output.cost.duration_ms for output in ended.result() if output.cost} == {0.0, 20.0}


async def test_commands_wait_for_the_end_of_the_step_and_wake_an_idle_engine(engine: LoopEngine) -> None:
    engine.submit(generation("a", 3))
    engine.submit(generation("b", 30))
    await outputs_until(engine, ends("a"))
    engine.cancel("b")
    assert [request.request_id for request in engine.snapshot().requests] == ["b"]
    async with asyncio.timeout(10):
        while engine.snapshot().requests:
            await asyncio.sleep(0.001)
    await asyncio.sleep(0.05)
    engine.submit(generation("c", 2))
    (last,) = [
        report
        for output in await outputs_until(engine, ends("c"))
        for report in output.reports()
        if report.finish_reason is not None
    ]
    assert (last.request_id, last.finish_reason) == ("c", FinishReason.LENGTH)


async def test_it_stops_within_a_step_and_ends_its_outbox(engine: LoopEngine) -> None:
    engine.submit(generation("a", 30))
    await asyncio.sleep(0.03)
    async with asyncio.timeout(10):
        await engine.stop()
        async for _ in engine.steps():
            pass
    assert engine.snapshot().requests == ()
    engine.submit(generation("late", 1))  # nobody is there: nothing happens
    await engine.stop()


class Broken(SimulatedRunner):
    """Fails in its second step."""

    num_steps = 0

    def begin(self, batch: Batch) -> tuple[list[Draw], StepCost]:
        self.num_steps += 1
        if self.num_steps == 2:
            raise ValueError("broken")
        return super().begin(batch)


async def test_a_failure_of_the_model_is_the_death_of_the_engine() -> None:
    engine = LoopEngine(CONFIG, Broken(CONFIG))
    await engine.start()
    engine.submit(generation("a", 5))
    with pytest.raises(EngineDied, match="ValueError"):
        await outputs_until(engine, ends("a"))
    with pytest.raises(EngineDied):
        await engine.blocks.reserve(generation("b", 5))
    await engine.stop()


class Unloadable(SimulatedRunner):
    """Has no model."""

    def load(self) -> EngineInfo:
        raise ModelError("no such model; download it")


async def test_a_model_that_cannot_be_loaded_is_named_by_start() -> None:
    engine = LoopEngine(CONFIG, Unloadable(CONFIG))
    with pytest.raises(ModelError, match="download"):
        await engine.start()
    await engine.stop()


async def test_what_contradicts_itself_in_a_pause_ends_the_engine(
    engine: LoopEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tandem_engine.engine_core._IDLE_CHECK_S", 0.01)
    engine.submit(generation("a", 2))
    await outputs_until(engine, ends("a"))
    await asyncio.sleep(0.05)
    assert engine._core is not None
    engine._core.scheduler.pool._free.pop()  # lost
    engine.submit(generation("b", 2))
    await outputs_until(engine, ends("b"))
    with pytest.raises(EngineDied, match="BrokenInvariant"):
        await outputs_until(engine, lambda output: False)
