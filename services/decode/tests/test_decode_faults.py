"""Handoffs that go wrong: the request is answered all the same, with the same tokens, and nothing is left behind."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import grpc
import pytest
from tandem.v1 import prefill_pb2, prefill_pb2_grpc, worker_pb2
from worker_harness import (
    RunningWorker,
    StreamLog,
    false_prefill_worker,
    generate,
    generation,
    running_worker,
    session,
)

# A prompt of 320 tokens takes five steps of 64 tokens: long enough to be caught in each phase.
SLOW_PREFILL = {"sim_prefill_base_ms": 200.0, "max_step_tokens": 64}


@asynccontextmanager
async def pair(
    redis_url: str, prefill: dict[str, object] | None = None, decode: dict[str, object] | None = None
) -> AsyncIterator[tuple[RunningWorker, RunningWorker]]:
    async with (
        running_worker(redis_url, "prefill", **(prefill or {})) as prefiller,
        running_worker(redis_url, "decode", **(decode or {})) as decoder,
    ):
        yield prefiller, decoder


def assert_computed_by(log: StreamLog, worker: RunningWorker, expected: StreamLog) -> None:
    assert log.token_ids == expected.token_ids
    assert log.started is not None
    assert log.started.prefill_worker_id == worker.worker_id


async def test_a_prefill_worker_that_dies_in_mid_call_is_replaced_by_a_local_prefill(redis_url: str) -> None:
    class Dying(prefill_pb2_grpc.PrefillServiceServicer):
        async def Prefill(self, request, context):  # type: ignore[no-untyped-def]  # noqa: N802
            await context.write(prefill_pb2.PrefillResponse(accepted=prefill_pb2.PrefillAccepted()))
            await context.abort(grpc.StatusCode.UNAVAILABLE, "gone")

    async with running_worker(redis_url, "decode") as decode, false_prefill_worker(redis_url, Dying()) as ref:
        log = await generate(decode, generation(100), ref)
        await decode.assert_quiet()
        assert_computed_by(log, decode, await generate(decode, generation(100)))


async def test_a_prefill_worker_that_lies_about_being_done_is_not_believed(redis_url: str) -> None:
    class Lying(prefill_pb2_grpc.PrefillServiceServicer):
        async def Prefill(self, request, context):  # type: ignore[no-untyped-def]  # noqa: N802
            await context.write(prefill_pb2.PrefillResponse(done=prefill_pb2.PrefillDone(first_token_id=5)))

    async with running_worker(redis_url, "decode") as decode, false_prefill_worker(redis_url, Lying()) as ref:
        log = await generate(decode, generation(100), ref)
        await decode.assert_quiet()
        assert_computed_by(log, decode, await generate(decode, generation(100)))


@pytest.mark.parametrize("limit", [{"prefill_timeout_s": 0.3}, {"lease_timeout_s": 0.3}])
async def test_a_prefill_worker_that_hangs_is_given_up(redis_url: str, limit: dict[str, float]) -> None:
    cancelled = asyncio.Event()

    class Hanging(prefill_pb2_grpc.PrefillServiceServicer):
        async def Prefill(self, request, context):  # type: ignore[no-untyped-def]  # noqa: N802
            try:
                await asyncio.sleep(60)
            finally:
                cancelled.set()

    async with (
        running_worker(redis_url, "decode", **limit) as decode,
        false_prefill_worker(redis_url, Hanging()) as ref,
    ):
        log = await generate(decode, generation(100), ref)
        await decode.assert_quiet()
        assert_computed_by(log, decode, await generate(decode, generation(100)))
        async with asyncio.timeout(5):
            await cancelled.wait()


async def test_a_prefill_worker_that_stops_in_the_middle_hands_over(redis_url: str) -> None:
    async with pair(redis_url, SLOW_PREFILL | {"drain_timeout_s": 0.1}) as (prefill, decode):
        expected = await generate(decode, generation(320, first_token=1000))
        async with session(decode) as frontend:
            wanted = generation(320)
            await frontend.submit(1, wanted, await prefill.ref())
            await decode.until_leased(worker_pb2.LEASE_PHASE_TRANSFERRING)
            prefill.lifecycle.request_stop()
            log = await frontend.ended(1)
        assert len(log.token_ids) == len(expected.token_ids)
        assert_computed_by(log, decode, await generate(decode, generation(320)))
        await decode.assert_quiet()


async def test_an_unknown_prefill_worker_and_a_stale_epoch_fall_back(redis_url: str) -> None:
    async with pair(redis_url) as (prefill, decode):
        ref = await prefill.ref()
        ref.epoch -= 1
        log = await generate(decode, generation(100), ref)
        assert_computed_by(log, decode, await generate(decode, generation(100)))


async def test_workers_with_other_layouts_do_not_exchange_blocks(redis_url: str) -> None:
    async with pair(redis_url, {"block_size": 32}) as (prefill, decode):
        log = await generate(decode, generation(100), await prefill.ref())
        assert_computed_by(log, decode, await generate(decode, generation(100)))
        await prefill.assert_quiet()


@pytest.mark.parametrize("phase", ["queued", "computing", "transferring", "decoding"])
@pytest.mark.parametrize("how", ["cancel", "vanish"])
async def test_cancelling_in_any_phase_leaves_nothing(redis_url: str, phase: str, how: str) -> None:
    slow = SLOW_PREFILL if phase != "decoding" else {}
    async with pair(redis_url, slow, {"sim_decode_base_ms": 20.0}) as (prefill, decode):
        async with session(decode) as frontend:
            await frontend.submit(1, generation(320, 1000), await prefill.ref())
            match phase:
                case "queued":
                    await decode.until("reserved")
                case "computing":
                    await prefill.until("prefilling")
                case "transferring":
                    await decode.until_leased(worker_pb2.LEASE_PHASE_TRANSFERRING)
                case "decoding":
                    await frontend.has_tokens(1, 3)
            if how == "cancel":
                await frontend.cancel(1)
                await frontend.ended(1)
        await decode.assert_quiet()
        await prefill.assert_quiet()


async def test_what_a_handoff_skips_is_reported_as_cached(redis_url: str) -> None:
    async with pair(redis_url) as (prefill, decode):
        await generate(decode, generation(64))
        log = await generate(decode, generation(320), await prefill.ref())
        assert log.started is not None
        assert log.started.prefill_worker_id == prefill.worker_id
        assert log.started.num_cached_tokens == 64
        again = await generate(decode, generation(320, first_token=1), await prefill.ref())
        assert again.started is not None
        assert again.started.num_cached_tokens == 304 or again.started.num_cached_tokens == 320
        assert again.token_ids == log.token_ids


async def test_many_handoffs_at_once_share_a_connection(redis_url: str) -> None:
    async with pair(redis_url, None, {"num_blocks": 1024}) as (prefill, decode):
        ref = await prefill.ref()
        async with session(decode) as frontend:
            for stream_id in range(12):
                await frontend.submit(stream_id, generation(200, 8, first_token=1 + 300 * stream_id), ref)
            logs = [await frontend.ended(stream_id) for stream_id in range(12)]
        for stream_id, log in enumerate(logs):
            assert log.error is None
            expected = await generate(decode, generation(200, 8, first_token=1 + 300 * stream_id))
            assert log.token_ids == expected.token_ids
        await decode.assert_quiet()
        await prefill.assert_quiet()


async def test_a_decode_pool_without_room_makes_the_handoff_wait(redis_url: str) -> None:
    async with pair(redis_url, None, {"num_blocks": 24, "max_context_tokens": 320}) as (prefill, decode):
        ref = await prefill.ref()
        async with session(decode) as frontend:
            for stream_id in range(4):
                await frontend.submit(stream_id, generation(200, 40, first_token=1 + 300 * stream_id), ref)
            for stream_id in range(4):
                assert len((await frontend.ended(stream_id)).token_ids) == 40
        await decode.assert_quiet()
        await prefill.assert_quiet()
