"""A prompt is prefilled by one worker and decoded by another, over each transport."""

import asyncio
import threading

import pytest
from tandem.v1 import generation_pb2
from tandem_engine.api import Engine
from tandem_engine.batch import Batch, DrawnToken
from tandem_engine.config import EngineConfig
from tandem_engine.local_engine import LocalEngine
from tandem_engine.simulated import SimulatedRunner
from tandem_engine.simulated.running_state import STATE_BYTES
from tandem_worker.metrics import RECEIVED_BYTES, RECEIVED_CHUNKS
from worker_harness import BLOCK_SIZE, generate, generation, running_worker

# The pool of a worker that was started in another role cannot be shared: its blocks go through windows that are.
WAYS = [("prefill", "shm"), ("both", "shm"), ("prefill", "tcp")]
each_way = pytest.mark.parametrize(("role", "transport"), WAYS, ids=["shm", "windows", "tcp"])


@each_way
@pytest.mark.parametrize("num_prompt_tokens", [1, 16, 17, 500])
async def test_a_handoff_gives_the_tokens_of_a_local_run(
    redis_url: str, role: str, transport: str, num_prompt_tokens: int
) -> None:
    async with (
        running_worker(redis_url, role, transports=(transport,)) as prefill,
        running_worker(redis_url, "decode", transports=(transport,)) as decode,
        running_worker(redis_url, "both") as both,
    ):
        local = await generate(both, generation(num_prompt_tokens))
        remote = await generate(decode, generation(num_prompt_tokens), await prefill.ref())
        assert len(local.token_ids) == 20
        assert remote.token_ids == local.token_ids
        assert remote.finished is not None
        assert remote.finished.reason == generation_pb2.FINISH_REASON_LENGTH
        assert remote.started is not None
        # A prompt of no more than one block is not worth a handoff.
        by = prefill if num_prompt_tokens > BLOCK_SIZE else decode
        assert remote.started.prefill_worker_id == by.worker_id
        assert remote.started.num_cached_tokens == 0
        for worker in (prefill, decode, both):
            await worker.assert_quiet()


@each_way
async def test_a_handoff_of_many_chunks_is_whole(
    redis_url: str, role: str, transport: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tandem_worker.receiving.CHUNK_BYTES", 3 * BLOCK_SIZE * STATE_BYTES)
    async with (
        running_worker(redis_url, role, transports=(transport,), max_step_tokens=1000) as prefill,
        running_worker(redis_url, "decode", transports=(transport,)) as decode,
        running_worker(redis_url, "both") as both,
    ):
        before = RECEIVED_CHUNKS.labels("copied")._value.get()
        log = await generate(decode, generation(500), await prefill.ref())
        assert RECEIVED_CHUNKS.labels("copied")._value.get() - before == 11  # 32 blocks, 3 at a time
        assert log.token_ids == (await generate(both, generation(500))).token_ids
        for worker in (prefill, decode):
            await worker.assert_quiet()


class HeldRunner(SimulatedRunner):
    """Stays in its third step until told to go on."""

    def __init__(self, config: EngineConfig) -> None:
        super().__init__(config)
        self.num_steps = 0
        self.go_on = threading.Event()

    def execute(self, batch: Batch) -> list[DrawnToken | None]:
        self.num_steps += 1
        if self.num_steps == 3:
            assert self.go_on.wait(10)
        return super().execute(batch)


@each_way
async def test_blocks_arrive_while_later_ones_are_computed(redis_url: str, role: str, transport: str) -> None:
    runners: list[HeldRunner] = []

    def make_engine(config: EngineConfig) -> Engine:
        runners.append(HeldRunner(config))
        return LocalEngine(config, runners[-1])

    num_step_tokens = 8 * BLOCK_SIZE
    async with (
        running_worker(
            redis_url,
            role,
            make_engine=make_engine,
            max_step_tokens=num_step_tokens,
            transports=(transport,),
        ) as prefill,
        running_worker(redis_url, "decode", transports=(transport,)) as decode,
    ):
        before = RECEIVED_BYTES._value.get()
        answer = asyncio.create_task(generate(decode, generation(4 * num_step_tokens), await prefill.ref()))
        # The blocks of both steps that are done, while the third is being computed.
        async with asyncio.timeout(10):
            while RECEIVED_BYTES._value.get() - before < 2 * num_step_tokens * STATE_BYTES:
                await asyncio.sleep(0.01)
        assert not runners[0].go_on.is_set()
        runners[0].go_on.set()
        assert len((await answer).token_ids) == 20
