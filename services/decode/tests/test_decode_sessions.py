"""Sessions as frontends see them."""

import asyncio

import grpc
import pytest
from tandem.v1 import decode_pb2, decode_pb2_grpc, generation_pb2, router_pb2
from worker_harness import FrontendSession, generate, generation, running_worker, session

SLOW = {"sim_decode_base_ms": 20.0}


async def test_two_sessions_get_their_own_tokens(redis_url: str) -> None:
    async with running_worker(redis_url, "both", sim_decode_base_ms=2.0) as worker:
        alone = [await generate(worker, generation(40, first_token=start)) for start in (1, 500)]
        async with session(worker, "a") as first, session(worker, "b") as second:
            await first.submit(7, generation(40, first_token=1))
            await second.submit(7, generation(40, first_token=500))
            assert (await first.ended(7)).token_ids == alone[0].token_ids
            assert (await second.ended(7)).token_ids == alone[1].token_ids
            assert (await worker.state()).num_sessions == 2
        await worker.assert_quiet()


async def test_one_message_per_step_carries_all_streams(redis_url: str) -> None:
    async with (
        running_worker(redis_url, "both", sim_decode_base_ms=5.0) as worker,
        session(worker) as frontend,
    ):
        for stream_id in range(10):
            await frontend.submit(stream_id, generation(20, 30, first_token=1 + 40 * stream_id))
        for stream_id in range(10):
            assert len((await frontend.ended(stream_id)).token_ids) == 30
        # 300 tokens; prompts may have come one by one.
        assert frontend.num_messages < 60


async def test_a_second_request_reports_the_cached_tokens(redis_url: str) -> None:
    async with running_worker(redis_url, "both") as worker:
        first = await generate(worker, generation(100))
        second = await generate(worker, generation(100))
        assert first.started is not None
        assert second.started is not None
        assert first.started.num_cached_tokens == 0
        assert second.started.num_cached_tokens == 96
        assert second.token_ids == first.token_ids


async def test_a_resumed_generation_goes_on_as_if_nothing_had_happened(redis_url: str) -> None:
    async with running_worker(redis_url, "prefill") as prefill, running_worker(redis_url, "decode") as decode:
        whole = await generate(decode, generation(50))
        for used in (None, await prefill.ref()):
            rest = await generate(decode, generation(50, resumed=whole.token_ids[:9]), used)
            assert rest.token_ids == whole.token_ids[9:]


async def test_log_probabilities_come_for_every_token(redis_url: str) -> None:
    async with running_worker(redis_url, "prefill") as prefill, running_worker(redis_url, "decode") as decode:
        wanted = generation(50, 5)
        wanted.sampling.logprobs = 2
        log = await generate(decode, wanted, await prefill.ref())
        assert len(log.logprobs) == len(log.token_ids) == 5
        assert all(len(entry.top_token_ids) == 2 for entry in log.logprobs)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda wanted: wanted.ClearField("token_ids"),
        lambda wanted: wanted.ClearField("namespace"),
        lambda wanted: wanted.ClearField("request_id"),
        lambda wanted: setattr(wanted, "token_ids", b"\xff" * 160),
        lambda wanted: setattr(wanted, "token_ids", wanted.token_ids[:-1]),
        lambda wanted: wanted.stopping.ClearField("max_tokens"),
        lambda wanted: setattr(wanted.stopping, "max_tokens", 2**31),
        lambda wanted: setattr(wanted.stopping, "min_tokens", 99),
        lambda wanted: setattr(wanted.sampling, "temperature", float("nan")),
        lambda wanted: wanted.sampling.logit_bias.update({2**31: 1.0}),
        lambda wanted: setattr(wanted, "request_class", 77),
        lambda wanted: setattr(wanted, "token_ids", bytes(4 * 3000)),
    ],
)
async def test_a_malformed_submit_harms_only_itself(redis_url: str, spoil) -> None:  # type: ignore[no-untyped-def]
    async with (
        running_worker(redis_url, "both", sim_decode_base_ms=1.0) as worker,
        session(worker) as frontend,
    ):
        await frontend.submit(1, generation(40))
        bad = generation(40)
        spoil(bad)
        await frontend.submit(2, bad)
        error = (await frontend.ended(2)).error
        assert error is not None
        assert error.code == grpc.StatusCode.INVALID_ARGUMENT.value[0]
        assert not error.retryable
        assert len((await frontend.ended(1)).token_ids) == 20
        await worker.assert_quiet()


async def test_another_model_is_refused(redis_url: str) -> None:
    async with running_worker(redis_url, "both") as worker:
        log = await generate(worker, generation(model="other"))
        assert log.error is not None
        assert log.error.code == grpc.StatusCode.FAILED_PRECONDITION.value[0]


async def test_a_stale_epoch_is_refused(redis_url: str) -> None:
    async with running_worker(redis_url, "both") as worker:
        stale = FrontendSession(worker, (await worker.ref()).epoch - 1)
        await stale.open()
        assert (await stale.over()).code() is grpc.StatusCode.FAILED_PRECONDITION


@pytest.mark.parametrize(
    "message",
    [
        decode_pb2.SessionRequest(),
        decode_pb2.SessionRequest(cancel=decode_pb2.Cancel(stream_id=1)),
        decode_pb2.SessionRequest(open=decode_pb2.OpenSession()),
    ],
)
async def test_a_session_must_be_opened_first(redis_url: str, message: decode_pb2.SessionRequest) -> None:
    async with running_worker(redis_url, "both") as worker:
        call = decode_pb2_grpc.DecodeServiceStub(worker.channel).Session()
        await call.write(message)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call.read()
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_cancelling_ends_a_request_and_says_so(redis_url: str) -> None:
    async with running_worker(redis_url, "both", **SLOW) as worker, session(worker) as frontend:
        await frontend.submit(1, generation(40, 1000))
        await frontend.has_tokens(1, 3)
        await frontend.cancel(1)
        await frontend.cancel(99)
        finished = (await frontend.ended(1)).finished
        assert finished is not None
        assert finished.reason == generation_pb2.FINISH_REASON_CANCELLED
        await worker.assert_quiet()
        # The stream id is free again.
        frontend.streams.clear()
        await frontend.submit(1, generation(40, 3))
        assert len((await frontend.ended(1)).token_ids) == 3


async def test_a_frontend_that_vanishes_takes_its_requests_along(redis_url: str) -> None:
    async with running_worker(redis_url, "both", **SLOW) as worker:
        async with session(worker) as frontend:
            for stream_id in range(3):
                await frontend.submit(stream_id, generation(40, 1000, first_token=1 + 50 * stream_id))
            await frontend.has_tokens(0, 2)
        await worker.assert_quiet()
        assert (await worker.state()).num_sessions == 0


async def test_a_request_may_take_no_longer_than_its_time(redis_url: str) -> None:
    async with running_worker(redis_url, "both", **SLOW) as worker, session(worker) as frontend:
        await frontend.submit(1, generation(40, 1000), timeout_ms=100)
        error = (await frontend.ended(1)).error
        assert error is not None
        assert error.code == grpc.StatusCode.DEADLINE_EXCEEDED.value[0]
        await worker.assert_quiet()


async def test_the_same_request_twice_is_two_streams(redis_url: str) -> None:
    async with running_worker(redis_url, "both", **SLOW) as worker, session(worker) as frontend:
        wanted = generation(40, 10)
        await frontend.submit(1, wanted)
        await frontend.has_tokens(1, 2)
        await frontend.submit(2, wanted)
        assert (await frontend.ended(2)).token_ids == (await frontend.ended(1)).token_ids
        await worker.assert_quiet()


async def test_a_worker_is_never_its_own_prefill_peer(redis_url: str) -> None:
    async with running_worker(redis_url, "both") as worker:
        log = await generate(worker, generation(100), await worker.ref())
        assert log.started is not None
        assert log.started.prefill_worker_id == worker.worker_id
        assert len(log.token_ids) == 20


async def test_addresses_in_a_request_are_not_used(redis_url: str) -> None:
    touched = asyncio.Event()

    async def touch(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        touched.set()
        writer.close()

    trap = await asyncio.start_server(touch, "127.0.0.1", 0)
    port = trap.sockets[0].getsockname()[1]
    async with running_worker(redis_url, "decode") as decode:
        stranger = router_pb2.WorkerRef(worker_id="stranger", epoch=1, address=f"127.0.0.1:{port}")
        log = await generate(decode, generation(100), stranger)
        assert len(log.token_ids) == 20
    assert not touched.is_set()
    trap.close()
    await trap.wait_closed()
