"""The whole planner in one process: real Redis, real gRPC, heartbeats written by the test."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc
import pytest
from prometheus_client import CollectorRegistry, generate_latest
from tandem.v1 import cluster_pb2 as pb
from tandem.v1 import planner_pb2, planner_pb2_grpc
from tandem_common.keys import Keys
from tandem_common.redis_client import connect
from tandem_common.registry import ClusterWatcher, WorkerPublisher
from tandem_common.rpc import RpcServer, open_channel
from tandem_planner.config import PlannerConfig
from tandem_planner.lease import PlannerLease
from tandem_planner.loop import PlanLoop
from tandem_planner.metrics import Metrics
from tandem_planner.servicer import PlannerServicer

KEYS = Keys("default")


class RunningPlanner:
    def __init__(self, redis_url: str) -> None:
        config = PlannerConfig(
            redis_url=redis_url, interval_s=0.1, observe_interval_s=0.05, min_observed_s=1, max_stale_s=0.5
        )
        self.client = connect(redis_url)
        self.watcher = ClusterWatcher(self.client, KEYS, 0.05)
        self.lease = PlannerLease(self.client, KEYS, 1.0)
        self.registry = CollectorRegistry()
        self.loop = PlanLoop(
            config,
            client=self.client,
            watcher=self.watcher,
            lease=self.lease,
            metrics=Metrics(self.registry),
        )


@contextlib.asynccontextmanager
async def running_planner(redis_url: str) -> AsyncIterator[tuple[RunningPlanner, Any]]:
    planner = RunningPlanner(redis_url)
    rpc = RpcServer(["tandem.v1.PlannerService"])
    planner_pb2_grpc.add_PlannerServiceServicer_to_server(
        PlannerServicer(planner.loop, planner.lease), rpc.server
    )
    port = await rpc.start("127.0.0.1", 0)
    channel = open_channel(f"127.0.0.1:{port}")
    tasks = [
        asyncio.create_task(work)
        for work in (
            planner.watcher.run(),
            planner.lease.run(),
            planner.loop.watch_traffic(),
            planner.loop.keep_planning(),
        )
    ]
    try:
        yield planner, planner_pb2_grpc.PlannerServiceStub(channel)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        planner.loop.advisor.close()
        await channel.close()
        await rpc.stop(1.0)
        await planner.client.aclose()


def decisions_of(planner: RunningPlanner) -> Any:
    return planner.loop.advisor.decisions


def current_total(planner: RunningPlanner) -> int:
    return sum(decision.proposal.current.total for decision in decisions_of(planner).values())


async def publish(client: Any, worker_id: str, role: pb.Role.ValueType, sequence: int = 1) -> None:
    card = pb.WorkerCard(
        worker_id=worker_id, epoch=1, model="m", role=role, status=pb.WORKER_STATUS_SERVING, block_size=16
    )
    beat = pb.WorkerBeat(worker_id=worker_id, epoch=1, sequence=sequence)
    await WorkerPublisher(client, KEYS, 60.0).publish(card, beat)


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(10.0):
        while not condition():
            await asyncio.sleep(0.02)


async def test_before_the_first_plan_the_planner_is_unavailable(redis_server: Any) -> None:
    async with running_planner(redis_server.url) as (_, stub):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.GetPlan(planner_pb2.GetPlanRequest(), timeout=5)
        assert caught.value.code() == grpc.StatusCode.UNAVAILABLE


async def test_the_plan_is_served_written_to_redis_and_shown_in_metrics(redis_server: Any) -> None:
    async with running_planner(redis_server.url) as (planner, stub):
        await publish(planner.client, "p", pb.ROLE_PREFILL)
        await publish(planner.client, "d", pb.ROLE_DECODE)
        await until(lambda: current_total(planner) == 2 and planner.lease.token)
        plan = await stub.GetPlan(planner_pb2.GetPlanRequest(), timeout=5)
        assert plan.lease_token == 1
        assert not plan.paused
        assert plan.targets.ttft_ms == 500.0
        (decision,) = plan.decisions
        assert decision.model == "m"
        assert (decision.current.num_prefill, decision.current.num_decode) == (1, 1)
        assert decision.confident
        async with asyncio.timeout(5.0):
            while True:
                stored = await planner.client.get(KEYS.plan("m"))
                if stored and planner_pb2.Decision.FromString(stored).id == decision.id:
                    break
                await asyncio.sleep(0.02)
        text = generate_latest(planner.registry).decode()
        assert 'tandem_planner_workers{model="m",plan="needed",role="decode"} 1.0' in text
        assert "tandem_planner_lease_token 1.0" in text


async def test_decisions_are_watched_as_they_are_taken_and_the_stream_ends_with_the_planner(
    redis_server: Any,
) -> None:
    async with running_planner(redis_server.url) as (planner, stub):
        stream = stub.WatchDecisions(planner_pb2.WatchDecisionsRequest())
        await publish(planner.client, "d1", pb.ROLE_DECODE)
        async with asyncio.timeout(10.0):
            first = await stream.read()
            await publish(planner.client, "d2", pb.ROLE_DECODE)
            later = await stream.read()
            while later.decision.current.num_decode != 2:
                later = await stream.read()
        assert first.decision.current.num_decode == 1
        assert later.decision.id > first.decision.id
        planner.loop.advisor.close()
        async with asyncio.timeout(5.0):
            while await stream.read() != grpc.aio.EOF:
                pass


async def test_targets_can_be_set_and_bad_ones_are_refused_by_name(redis_server: Any) -> None:
    async with running_planner(redis_server.url) as (planner, stub):
        wanted = planner_pb2.Targets(ttft_ms=100.0, itl_ms=10.0, percentile=0.5)
        answer = await stub.SetTargets(planner_pb2.SetTargetsRequest(targets=wanted), timeout=5)
        assert answer.targets == wanted
        assert planner.loop.advisor.targets.ttft_ms == 100.0
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.SetTargets(planner_pb2.SetTargetsRequest(), timeout=5)
        assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
        assert "ttft_ms = 0" in (caught.value.details() or "")


async def test_a_paused_planner_plans_but_does_not_write(redis_server: Any) -> None:
    async with running_planner(redis_server.url) as (planner, stub):
        assert (await stub.Pause(planner_pb2.PauseRequest(paused=True), timeout=5)).paused
        await publish(planner.client, "d", pb.ROLE_DECODE)
        await until(lambda: decisions_of(planner) and planner.lease.token)
        await planner.loop.plan_once()
        assert (await stub.GetPlan(planner_pb2.GetPlanRequest(), timeout=5)).paused
        assert await planner.client.get(KEYS.plan("m")) is None
        assert not (await stub.Pause(planner_pb2.PauseRequest(), timeout=5)).paused
        await planner.loop.plan_once()
        assert await planner.client.get(KEYS.plan("m")) is not None


async def test_a_second_planner_stands_by_with_a_plan_of_its_own_and_takes_over(redis_server: Any) -> None:
    async with running_planner(redis_server.url) as (second, second_stub):
        await until(lambda: second.lease.token)
        await second.lease.release()
        async with running_planner(redis_server.url) as (first, _):
            await until(lambda: first.lease.token or second.lease.token)
            holder, standby = (first, second) if first.lease.token else (second, first)
            await publish(first.client, "d", pb.ROLE_DECODE)
            await until(lambda: decisions_of(first) and decisions_of(second))
            assert holder.lease.token > 0
            assert standby.lease.token == 0
        await until(lambda: second.lease.token)
        plan = await second_stub.GetPlan(planner_pb2.GetPlanRequest(), timeout=5)
        assert plan.lease_token >= 2


async def test_without_redis_the_last_plan_is_still_served_and_nothing_is_acted_on(
    redis_server: Any,
) -> None:
    async with running_planner(redis_server.url) as (planner, stub):
        await publish(planner.client, "d", pb.ROLE_DECODE)
        await until(lambda: decisions_of(planner) and planner.lease.token)
        redis_server.stop()
        await until(lambda: not planner.lease.token)
        await asyncio.sleep(0.3)
        plan = await stub.GetPlan(planner_pb2.GetPlanRequest(), timeout=5)
        assert plan.lease_token == 0
        assert plan.decisions[0].current.num_decode == 1
        redis_server.start()
        await publish(planner.client, "d", pb.ROLE_DECODE, sequence=2)
        await until(lambda: planner.lease.token and planner.watcher.stale_ms < 500)
        await planner.loop.plan_once()
        assert await planner.client.get(KEYS.plan("m")) is not None
