"""Sessions whose messages take a lane: the same as over gRPC, in fewer steps."""

from __future__ import annotations

import asyncio

from tandem.v1 import decode_pb2
from worker_harness import generation, running_worker, session


async def test_tokens_are_those_of_a_session_over_grpc_alone(redis_url: str) -> None:
    async with running_worker(redis_url, "both", sim_decode_base_ms=2.0) as worker:
        wanted = [generation(20, 30, first_token=1 + 40 * i) for i in range(8)]
        said: list[list[list[int]]] = []
        for lane in (False, True):
            async with session(worker, lane=lane) as frontend:
                for stream_id, each in enumerate(wanted):
                    await frontend.submit(stream_id, each)
                logs = [await frontend.ended(stream_id) for stream_id in range(8)]
                assert all(log.started is not None and log.finished is not None for log in logs)
                said.append([log.token_ids for log in logs])
        assert said[0] == said[1]
        await worker.assert_quiet()


async def test_one_message_per_step_carries_all_streams(redis_url: str) -> None:
    async with (
        running_worker(redis_url, "both", sim_decode_base_ms=5.0) as worker,
        session(worker, lane=True) as frontend,
    ):
        for stream_id in range(10):
            await frontend.submit(stream_id, generation(20, 30, first_token=1 + 40 * stream_id))
        for stream_id in range(10):
            assert len((await frontend.ended(stream_id)).token_ids) == 30
        # 300 tokens; prompts may have come one by one.
        assert frontend.num_messages < 60


async def test_several_commands_in_one_message_are_applied_in_order(redis_url: str) -> None:
    async with (
        running_worker(redis_url, "both", sim_decode_base_ms=20.0) as worker,
        session(worker, lane=True) as frontend,
    ):
        submits = [decode_pb2.Submit(stream_id=i, generation=generation(20, 200)) for i in range(3)]
        await frontend.write(decode_pb2.SessionRequest(submits=submits, cancelled_stream_ids=[1, 99]))
        assert (await frontend.ended(1)).token_ids == []
        await frontend.has_tokens(0, 2)
        await frontend.has_tokens(2, 2)
        await frontend.write(decode_pb2.SessionRequest(cancelled_stream_ids=[0, 2]))
        await worker.assert_quiet()


async def test_what_cannot_be_parsed_ends_the_session_and_its_requests_only(redis_url: str) -> None:
    async with (
        running_worker(redis_url, "both", sim_decode_base_ms=5.0) as worker,
        session(worker, "good") as other,
    ):
        await other.submit(1, generation(20, 40))
        for nonsense in (b"\xff\xff\xff\xff", b""):
            async with session(worker, "bad", lane=True) as frontend:
                await frontend.submit(7, generation(20, 500))
                await frontend.has_tokens(7, 1)
                frontend.lane.write(nonsense)
                assert (await frontend.over()).code().name == "INVALID_ARGUMENT"
        assert len((await other.ended(1)).token_ids) == 40
        await worker.assert_quiet()


async def test_a_lane_that_is_cut_ends_its_session_and_frees_its_requests(redis_url: str) -> None:
    async with running_worker(redis_url, "both", sim_decode_base_ms=5.0) as worker:
        async with session(worker, lane=True) as frontend:
            await frontend.submit(7, generation(20, 500))
            await frontend.has_tokens(7, 1)
            assert frontend.lane._transport is not None
            frontend.lane._transport.abort()
            assert (await frontend.over()).code().name == "UNAVAILABLE"
        await worker.assert_quiet()


async def test_a_frontend_that_does_not_read_gets_its_tokens_together_later(redis_url: str) -> None:
    async with (
        running_worker(redis_url, "both", sim_decode_base_ms=1.0) as worker,
        session(worker, lane=True) as frontend,
    ):
        wanted = generation(20, 400)
        wanted.sampling.logprobs = 20  # large messages
        transport = frontend.lane._transport
        assert transport is not None
        for stream_id in range(40):
            each = decode_pb2.Submit(stream_id=stream_id, generation=wanted)
            each.generation.request_id = f"req-{stream_id}-of-a-slow-reader"
            await frontend.write(decode_pb2.SessionRequest(submits=[each]))
        await frontend.has_tokens(0, 5)
        transport.pause_reading()
        before = frontend.num_messages
        await asyncio.sleep(0.5)
        assert frontend.num_messages == before
        transport.resume_reading()
        log = await frontend.ended(0)
        assert len(log.token_ids) == 400
