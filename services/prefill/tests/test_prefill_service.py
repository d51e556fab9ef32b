"""PrefillService called directly, as a decode worker (or somebody who is none) would."""

import asyncio
import json
import os
import signal
import sys

import grpc
import pytest
from tandem.v1 import cluster_pb2, generation_pb2, prefill_pb2
from worker_harness import SECRET, RunningWorker, generation, running_worker

NUM_BLOCKS = 20
SLOW = {"sim_prefill_base_ms": 50.0, "max_step_tokens": 64}


async def request_to(
    decode: RunningWorker, wanted: generation_pb2.Generation | None = None, **destination: object
) -> prefill_pb2.PrefillRequest:
    ref = await decode.ref()
    fields: dict[str, object] = {
        "worker_id": ref.worker_id,
        "epoch": ref.epoch,
        "lease_id": "a" * 32,
        "num_blocks": NUM_BLOCKS,
        "ticket": b"never signed",
    }
    return prefill_pb2.PrefillRequest(
        generation=wanted or generation(320),
        blocks=prefill_pb2.BlockDestination(**(fields | destination)),  # type: ignore[arg-type]
    )


async def status_of(worker: RunningWorker, request: prefill_pb2.PrefillRequest) -> grpc.StatusCode:
    try:
        async for _ in worker.prefill.Prefill(request, timeout=10):
            pass
    except grpc.aio.AioRpcError as error:
        return error.code()
    return grpc.StatusCode.OK


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"worker_id": "stranger"}, grpc.StatusCode.PERMISSION_DENIED),
        ({"epoch": 1}, grpc.StatusCode.PERMISSION_DENIED),
        ({"worker_id": "prefill-self"}, grpc.StatusCode.INVALID_ARGUMENT),
        ({"num_blocks": NUM_BLOCKS + 1}, grpc.StatusCode.INVALID_ARGUMENT),
        ({"num_blocks": 0}, grpc.StatusCode.INVALID_ARGUMENT),
        ({"first_block": NUM_BLOCKS}, grpc.StatusCode.INVALID_ARGUMENT),
        ({"lease_id": ""}, grpc.StatusCode.INVALID_ARGUMENT),
        ({"lease_id": "x" * 1000}, grpc.StatusCode.INVALID_ARGUMENT),
        ({"ticket": b"x" * 5000}, grpc.StatusCode.INVALID_ARGUMENT),
        # Everything is right but the signature: the decode worker refuses the blocks.
        ({}, grpc.StatusCode.UNAVAILABLE),
    ],
)
async def test_a_destination_that_is_not_right_is_refused(
    redis_url: str, change: dict[str, object], code: grpc.StatusCode
) -> None:
    async with (
        running_worker(redis_url, "prefill", worker_id="prefill-self") as prefill,
        running_worker(redis_url, "decode") as decode,
    ):
        assert await status_of(prefill, await request_to(decode, **change)) is code
        await prefill.assert_quiet()
        await decode.assert_quiet()


async def test_a_prompt_that_is_not_right_is_refused(redis_url: str) -> None:
    async with running_worker(redis_url, "prefill") as prefill, running_worker(redis_url, "decode") as decode:
        for bad in (generation(3000), generation_pb2.Generation(), generation(10, first_token=10**9)):
            request = await request_to(decode, bad)
            assert await status_of(prefill, request) is grpc.StatusCode.INVALID_ARGUMENT
        opaque = prefill_pb2.PrefillRequest(generation=generation(), opaque=prefill_pb2.OpaqueHandle(tag="x"))
        assert await status_of(prefill, opaque) is grpc.StatusCode.INVALID_ARGUMENT
        await prefill.assert_quiet()


async def test_a_worker_in_another_role_does_not_prefill(redis_url: str) -> None:
    async with running_worker(redis_url, "decode") as decode, running_worker(redis_url, "both") as both:
        assert await status_of(decode, await request_to(both)) is grpc.StatusCode.FAILED_PRECONDITION
        # An aggregated worker prefills for others; here it gets as far as shipping.
        assert await status_of(both, await request_to(decode)) is grpc.StatusCode.UNAVAILABLE


@pytest.mark.parametrize("phase", ["waiting", "prefilling"])
async def test_a_call_that_is_cancelled_leaves_nothing(redis_url: str, phase: str) -> None:
    async with (
        running_worker(redis_url, "prefill", max_sequences=1, **SLOW) as prefill,
        running_worker(redis_url, "decode") as decode,
    ):
        calls = []
        for number in range(2):
            request = await request_to(
                decode, generation(320, first_token=1 + 400 * number), lease_id=str(number), first_block=19
            )
            calls.append(prefill.prefill.Prefill(request, timeout=30))
        await prefill.until(phase)
        for call in calls:
            call.cancel()
        await prefill.assert_quiet()


async def test_releasing_ends_a_handoff_and_may_come_twice(redis_url: str) -> None:
    async with (
        running_worker(redis_url, "prefill", **SLOW) as prefill,
        running_worker(redis_url, "decode") as decode,
    ):
        request = await request_to(decode, first_block=19)
        outcome = asyncio.create_task(status_of(prefill, request))
        await prefill.until("prefilling")
        release = prefill_pb2.ReleaseRequest(
            request_id=request.generation.request_id, lease_id=request.blocks.lease_id
        )
        for _ in range(2):
            await prefill.prefill.Release(release, timeout=5)
        assert await outcome is grpc.StatusCode.DEADLINE_EXCEEDED
        await prefill.assert_quiet()


async def test_a_call_for_the_same_request_replaces_the_earlier_one(redis_url: str) -> None:
    async with (
        running_worker(redis_url, "prefill", **SLOW) as prefill,
        running_worker(redis_url, "decode") as decode,
    ):
        wanted = generation(320)
        first = asyncio.create_task(
            status_of(prefill, await request_to(decode, wanted, lease_id="1", first_block=19))
        )
        await prefill.until("prefilling")
        second = asyncio.create_task(
            status_of(prefill, await request_to(decode, wanted, lease_id="2", first_block=19))
        )
        assert await first is grpc.StatusCode.CANCELLED
        assert await second is grpc.StatusCode.UNAVAILABLE  # its ticket was not signed
        await prefill.assert_quiet()


async def test_a_lease_that_expires_ends_the_call(redis_url: str) -> None:
    async with (
        running_worker(redis_url, "prefill", lease_timeout_s=0.2, sim_prefill_base_ms=500.0) as prefill,
        running_worker(redis_url, "decode") as decode,
    ):
        assert await status_of(prefill, await request_to(decode)) is grpc.StatusCode.DEADLINE_EXCEEDED
        await prefill.assert_quiet()


@pytest.mark.parametrize("module", ["tandem_prefill", "tandem_decode"])
async def test_the_program_says_when_it_is_ready_and_stops_cleanly(redis_url: str, module: str) -> None:
    environment = os.environ | {"TANDEM_REDIS_URL": redis_url, "TANDEM_CLUSTER_SECRET": SECRET}
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", module, "--engine", "simulated", "--worker-id", "w"),
        env=environment,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        assert process.stdout is not None
        async with asyncio.timeout(20):
            facts = json.loads(await process.stdout.readline())
        assert facts["ready"] == "worker"
        assert facts["worker_id"] == "w"
        assert facts["role"] == module.removeprefix("tandem_")
        assert facts["metrics_port"] > 0
        channel = grpc.aio.insecure_channel(facts["address"])
        async with asyncio.timeout(10):
            await channel.channel_ready()
        await channel.close()
        process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(10):
            _, errors = await process.communicate()
        assert process.returncode == 0, errors.decode()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def test_the_card_says_what_role_was_configured(redis_url: str) -> None:
    async with running_worker(redis_url, "prefill") as prefill:
        assert (await prefill.state()).card.role == cluster_pb2.ROLE_PREFILL
