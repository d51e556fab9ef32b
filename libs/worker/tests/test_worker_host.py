"""A whole worker: registration, roles, draining, and how it lives through losses."""

import asyncio
import time

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from tandem.v1 import cluster_pb2, worker_pb2
from tandem_common.hashing import block_hashes, unpack_hashes
from tandem_common.keys import Keys
from tandem_common.redis_client import connect
from tandem_common.registry import MIN_TTL_S, ClusterWatcher, WorkerPublisher
from tandem_common.token_ids import unpack_token_ids
from tandem_engine.api import Engine, EngineDied
from tandem_engine.batch import Batch, DrawnToken
from tandem_engine.config import EngineConfig
from tandem_engine.local_engine import LocalEngine
from tandem_engine.simulated import SimulatedRunner
from tandem_worker.registration import Fenced
from worker_harness import (
    BLOCK_SIZE,
    NAMESPACE,
    FrontendSession,
    RedisServer,
    generate,
    generation,
    is_role,
    running_worker,
    session,
)

KEYS = Keys("default")
SLOW = {"sim_decode_base_ms": 20.0}


async def registered(redis_url: str, worker_id: str) -> cluster_pb2.WorkerCard | None:
    client = connect(redis_url)
    watcher = ClusterWatcher(client, KEYS)
    await watcher.refresh()
    await client.aclose()
    found = watcher.workers.get(worker_id)
    return found.card if found else None


async def snapshot_of(redis_url: str, worker_id: str) -> set[bytes]:
    client = connect(redis_url)
    record = await client.get(KEYS.kv_snapshot(worker_id))
    await client.aclose()
    return set(unpack_hashes(cluster_pb2.KvSnapshot.FromString(record or b"").stored))


async def test_a_worker_registers_before_it_is_ready_and_leaves_when_it_stops(redis_url: str) -> None:
    async with running_worker(redis_url, "both", labels=("rack=r1",)) as worker:
        card = await registered(redis_url, worker.worker_id)
        assert card is not None
        assert card.address == worker.address
        assert card.block_size == BLOCK_SIZE
        assert card.labels["rack"] == "r1"
        assert {end.kind for end in card.kv_endpoints} == {
            cluster_pb2.TRANSPORT_KIND_SHM,
            cluster_pb2.TRANSPORT_KIND_TCP,
        }
        assert len(card.supported_roles) == 3
    assert await registered(redis_url, worker.worker_id) is None
    client = connect(redis_url)
    assert not await client.exists(KEYS.kv_stream(worker.worker_id), KEYS.kv_snapshot(worker.worker_id))
    await client.aclose()


async def test_a_later_incarnation_has_a_greater_epoch(redis_url: str) -> None:
    epochs = []
    for _ in range(2):
        async with running_worker(redis_url, "both", worker_id="same") as worker:
            epochs.append((await worker.ref()).epoch)
    assert epochs[1] > epochs[0]


async def test_an_older_incarnation_is_fenced(redis_url: str) -> None:
    async with (
        running_worker(redis_url, "both", worker_id="same") as old,
        running_worker(redis_url, "both", worker_id="same") as new,
    ):
        with pytest.raises(Fenced):
            async with asyncio.timeout(5):
                await old.task
        await asyncio.sleep(0.3)
        card = await registered(redis_url, "same")
        assert card is not None
        assert card.address == new.address


async def test_a_frozen_worker_goes_on_as_a_later_incarnation(redis_url: str) -> None:
    async with running_worker(redis_url, "both", worker_id="w", **SLOW) as worker:
        before = await worker.ref()
        await generate(worker, generation(64, 2))  # leaves blocks in its cache
        async with session(worker) as frontend:
            await frontend.submit(1, generation(20, 300))
            log = await frontend.has_tokens(1, 2)
            time.sleep(MIN_TTL_S + 0.5)
            async with asyncio.timeout(10):
                while (card := await registered(redis_url, "w")) is None or card.epoch == before.epoch:
                    await asyncio.sleep(0.02)
            assert card.epoch > before.epoch
            assert card.address == before.address
            # Who still believes in the one before is refused; what nobody gave up goes on.
            stale = FrontendSession(worker, before.epoch)
            await stale.open()
            assert (await stale.over()).code() is grpc.StatusCode.FAILED_PRECONDITION
            await frontend.has_tokens(1, len(log.token_ids) + 5)
        # Its blocks are told again under the new epoch.
        client = connect(redis_url)
        async with asyncio.timeout(10):
            while True:
                record = await client.get(KEYS.kv_snapshot("w"))
                snapshot = cluster_pb2.KvSnapshot.FromString(record or b"")
                if snapshot.epoch == card.epoch and snapshot.stored:
                    break
                await asyncio.sleep(0.02)
        await client.aclose()


async def test_beats_list_accepted_requests_and_learnt_speeds(redis_url: str) -> None:
    async with running_worker(redis_url, "both", sim_decode_base_ms=1.0, sim_prefill_base_ms=1.0) as worker:
        wanted = generation(40, 30)
        await generate(worker, wanted)
        beat = (await worker.state()).beat
        assert wanted.request_id in beat.accepted_request_ids
        assert beat.decode_speed.num_samples > 0
        assert beat.num_cached_blocks > 0
        assert beat.num_used_blocks == 0


async def test_blocks_are_told_as_they_are_stored(redis_url: str) -> None:
    async with running_worker(redis_url, "both") as worker:
        wanted = generation(100, 1)
        await generate(worker, wanted)
        expected = block_hashes(NAMESPACE, unpack_token_ids(wanted.token_ids), BLOCK_SIZE)
        client = connect(redis_url)
        stored: set[bytes] = set()
        for _ in range(100):
            for _, fields in await client.xrange(KEYS.kv_stream(worker.worker_id)):
                stored |= set(unpack_hashes(cluster_pb2.KvEvents.FromString(fields[b"events"]).stored))
            if stored >= set(expected):
                break
            await asyncio.sleep(0.02)
        await client.aclose()
        assert stored == set(expected)


async def test_an_emptied_redis_is_filled_again_while_serving(redis_url: str) -> None:
    async with running_worker(redis_url, "both", **SLOW) as worker, session(worker) as frontend:
        await frontend.submit(1, generation(100, 60))
        await frontend.has_tokens(1, 3)
        client = connect(redis_url)
        await client.flushall()
        await client.aclose()
        log = await frontend.ended(1)
        assert len(log.token_ids) == 60
        assert await registered(redis_url, worker.worker_id) is not None
        for _ in range(100):
            if len(await snapshot_of(redis_url, worker.worker_id)) >= 6:
                break
            await asyncio.sleep(0.02)
        assert len(await snapshot_of(redis_url, worker.worker_id)) >= 6


async def test_serving_goes_on_without_redis(redis_server: RedisServer) -> None:
    async with (
        running_worker(redis_server.url, "prefill") as prefill,
        running_worker(redis_server.url, "decode") as decode,
    ):
        ref = await prefill.ref()
        before = await generate(decode, generation(100), ref)
        redis_server.stop()
        # Other tokens, so that nothing is cached; the pair still knows each other.
        async with session(decode) as frontend:
            await frontend.submit(1, generation(100, first_token=500), ref)
            log = await frontend.ended(1)
        assert len(log.token_ids) == len(before.token_ids)
        assert log.started is not None
        assert log.started.prefill_worker_id == prefill.worker_id
        redis_server.start()
        async with asyncio.timeout(5):
            while await registered(redis_server.url, decode.worker_id) is None:
                await asyncio.sleep(0.05)


async def test_draining_refuses_new_requests_and_lets_others_finish(redis_url: str) -> None:
    async with running_worker(redis_url, "both", **SLOW) as worker, session(worker) as frontend:
        await frontend.submit(1, generation(40, 20))
        await frontend.has_tokens(1, 2)
        draining = asyncio.ensure_future(
            worker.admin.Drain(worker_pb2.DrainRequest(timeout_ms=5000), timeout=10)
        )
        await asyncio.sleep(0.1)
        await frontend.submit(2, generation(40, 20))
        refused = (await frontend.ended(2)).error
        assert refused is not None
        assert refused.code == grpc.StatusCode.UNAVAILABLE.value[0]
        assert refused.retryable
        assert len((await frontend.ended(1)).token_ids) == 20
        assert (await draining).num_unfinished == 0
        card = await registered(redis_url, worker.worker_id)
        assert card is not None
        assert card.status == cluster_pb2.WORKER_STATUS_DRAINING
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await worker.admin.SetRole(worker_pb2.SetRoleRequest(role=cluster_pb2.ROLE_PREFILL), timeout=5)
        assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION


async def test_stopping_ends_what_does_not_finish_in_time_so_that_it_resumes_elsewhere(
    redis_url: str,
) -> None:
    async with running_worker(redis_url, "both", drain_timeout_s=0.3, **SLOW) as worker:
        async with session(worker) as frontend:
            await frontend.submit(1, generation(40, 1000))
            await frontend.has_tokens(1, 2)
            worker.lifecycle.request_stop()
            log = await frontend.ended(1)
            assert log.error is not None
            assert log.error.code == grpc.StatusCode.UNAVAILABLE.value[0]
            assert log.error.retryable
            assert (await frontend.over()).code() is grpc.StatusCode.UNAVAILABLE
        async with asyncio.timeout(5):
            await worker.task


async def test_the_role_changes_without_a_restart(redis_url: str) -> None:
    async with running_worker(redis_url, "decode") as worker, session(worker) as frontend:
        epoch = (await worker.ref()).epoch
        await frontend.submit(1, generation(40))
        await frontend.ended(1)
        answer = await worker.admin.SetRole(
            worker_pb2.SetRoleRequest(role=cluster_pb2.ROLE_PREFILL), timeout=10
        )
        assert is_role(answer.card, "prefill")
        assert (await frontend.over()).code() is grpc.StatusCode.UNAVAILABLE
        card = await registered(redis_url, worker.worker_id)
        assert card is not None
        assert is_role(card, "prefill")
        assert card.status == cluster_pb2.WORKER_STATUS_SERVING
        assert card.epoch == epoch
        async with session(worker) as late:
            assert (await late.over()).code() is grpc.StatusCode.FAILED_PRECONDITION
        async with running_worker(redis_url, "decode") as decode:
            log = await generate(decode, generation(200), await worker.ref())
            assert log.started is not None
            assert log.started.prefill_worker_id == worker.worker_id
        again = await worker.admin.SetRole(
            worker_pb2.SetRoleRequest(role=cluster_pb2.ROLE_DECODE), timeout=10
        )
        assert is_role(again.card, "decode")
        assert len((await generate(worker, generation(40))).token_ids) == 20


async def test_a_role_that_adds_duties_disturbs_nobody(redis_url: str) -> None:
    async with running_worker(redis_url, "decode", **SLOW) as worker, session(worker) as frontend:
        await frontend.submit(1, generation(40))
        await frontend.has_tokens(1, 2)
        await worker.admin.SetRole(worker_pb2.SetRoleRequest(role=cluster_pb2.ROLE_BOTH), timeout=10)
        assert len((await frontend.ended(1)).token_ids) == 20


@pytest.mark.parametrize("role", [cluster_pb2.ROLE_UNSPECIFIED, 99])
async def test_a_role_that_does_not_exist_is_refused(redis_url: str, role: int) -> None:
    async with running_worker(redis_url, "both") as worker:
        request = worker_pb2.SetRoleRequest.FromString(bytes([8, role]))
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await worker.admin.SetRole(request, timeout=5)
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_a_worker_waits_for_redis_and_stops_when_told_to(redis_server: RedisServer) -> None:
    redis_server.stop()
    entered = asyncio.Event()

    async def run() -> None:
        async with running_worker(redis_server.url, "both"):
            entered.set()

    starting = asyncio.create_task(run())
    await asyncio.sleep(0.2)
    assert not entered.is_set()
    redis_server.start()
    async with asyncio.timeout(5):
        await starting
    assert entered.is_set()


async def test_a_stale_registration_of_another_worker_is_not_touched(redis_url: str) -> None:
    client = connect(redis_url)
    card = cluster_pb2.WorkerCard(worker_id="other", epoch=1, address="127.0.0.1:1")
    await WorkerPublisher(client, KEYS, 10).publish(card, cluster_pb2.WorkerBeat(worker_id="other", epoch=1))
    async with running_worker(redis_url, "both"):
        pass
    assert await registered(redis_url, "other") == card
    await client.aclose()


class DyingRunner(SimulatedRunner):
    """Breaks down after some steps."""

    def __init__(self, config: EngineConfig, num_steps: int) -> None:
        super().__init__(config)
        self._num_steps_left = num_steps

    def execute(self, batch: Batch) -> list[DrawnToken | None]:
        self._num_steps_left -= 1
        if self._num_steps_left < 0:
            raise RuntimeError("out of order")
        return super().execute(batch)


async def test_an_engine_that_dies_ends_the_worker_and_lets_requests_resume_elsewhere(redis_url: str) -> None:
    def make_engine(config: EngineConfig) -> Engine:
        return LocalEngine(config, DyingRunner(config, num_steps=5))

    async with (
        running_worker(redis_url, "both", make_engine=make_engine) as worker,
        session(worker) as frontend,
    ):
        await frontend.submit(1, generation(40, 1000))
        log = await frontend.ended(1)
        assert 0 < len(log.token_ids) < 1000
        assert log.error is not None
        assert log.error.code == grpc.StatusCode.UNAVAILABLE.value[0]
        assert log.error.retryable
        with pytest.raises(EngineDied):
            async with asyncio.timeout(5):
                await worker.task
        assert await registered(redis_url, worker.worker_id) is None


async def test_an_idle_engine_that_contradicts_itself_ends_the_worker(redis_url: str) -> None:
    engines: list[LocalEngine] = []

    def make_engine(config: EngineConfig) -> Engine:
        engines.append(LocalEngine(config, SimulatedRunner(config)))
        return engines[-1]

    async with (
        running_worker(redis_url, "both", make_engine=make_engine) as worker,
        session(worker) as frontend,
    ):
        health = health_pb2_grpc.HealthStub(worker.channel).Watch(health_pb2.HealthCheckRequest(service=""))
        assert (await health.read()).status == health_pb2.HealthCheckResponse.SERVING
        await frontend.submit(1, generation(40, 5))
        await frontend.ended(1)
        core = engines[0]._core
        assert core is not None
        core.scheduler.pool._free.pop()  # a block is lost; nobody asks for one
        assert (await health.read()).status == health_pb2.HealthCheckResponse.NOT_SERVING
        with pytest.raises(EngineDied, match="BrokenInvariant"):
            async with asyncio.timeout(5):
                await worker.task
        assert await registered(redis_url, worker.worker_id) is None
