from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
import redis.asyncio
from grpc_health.v1 import health_pb2, health_pb2_grpc
from prometheus_client import CollectorRegistry
from router_fakes import make_beat, make_card
from tandem.v1 import cluster_pb2, router_pb2, router_pb2_grpc
from tandem_common.hashing import pack_hashes
from tandem_common.keys import KV_ENTRY_FIELD, Keys
from tandem_common.registry import ServiceWatcher, WorkerPublisher
from tandem_common.rpc import error_from_rpc, open_channel
from tandem_common.service import Lifecycle
from tandem_router.app import RouterApp
from tandem_router.config import RouterConfig

KEYS = Keys("default")
BLOCKS = [bytes([i]) * 16 for i in range(1, 63)]


class QuietLifecycle(Lifecycle):
    """Keeps the ready line to itself."""

    def __init__(self) -> None:
        super().__init__("router")
        self.facts: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()

    def ready(self, **facts: str | int) -> None:
        self.facts.set_result(facts)


class World:
    """A running router, two prefill and two decode workers in its registry, and a stub to call it."""

    def __init__(self, client: redis.asyncio.Redis, channel: grpc.aio.Channel, app: RouterApp) -> None:
        self.redis = client
        self.channel = channel
        self.app = app
        self.stub = router_pb2_grpc.RouterServiceStub(channel)

    async def register(self, worker_id: str, role: cluster_pb2.Role, **beat: Any) -> None:
        publisher = WorkerPublisher(self.redis, KEYS, heartbeat_s=60)
        await publisher.publish(make_card(worker_id, role), make_beat(worker_id, **beat))

    async def route(self, request_id: str, **query: Any) -> router_pb2.RouteResponse:
        response: router_pb2.RouteResponse = await self.stub.Route(
            router_pb2.RouteRequest(query=make_message(request_id, **query)), timeout=5
        )
        return response

    async def watch_until(self, condition: Any) -> router_pb2.WatchClusterResponse:
        """Follow the view until it satisfies the condition."""
        async with asyncio.timeout(10):
            call = self.stub.WatchCluster(router_pb2.WatchClusterRequest())
            async for view in call:
                if condition(view):
                    call.cancel()
                    return view
        raise AssertionError("the stream ended")

    def sample(self, name: str, **labels: str) -> float | None:
        return self.registry.get_sample_value(f"tandem_router_{name}", labels)

    registry: CollectorRegistry


def make_message(request_id: str, **changes: Any) -> router_pb2.RouteQuery:
    defaults: dict[str, Any] = {"model": "tiny", "num_tokens": 1000, "max_tokens": 100}
    return router_pb2.RouteQuery(request_id=request_id, **(defaults | changes))


@contextlib.asynccontextmanager
async def running(client: redis.asyncio.Redis, redis_url: str, **config: Any) -> AsyncIterator[World]:
    registry = CollectorRegistry()
    app = RouterApp(
        RouterConfig(redis_url=redis_url, poll_interval_s=0.05, drain_s=0.2, **config),
        metrics_port=9999,
        registry=registry,
    )
    lifecycle = QuietLifecycle()
    task = asyncio.create_task(app.run(lifecycle))
    try:
        facts = await asyncio.wait_for(asyncio.shield(lifecycle.facts), 10)
        async with open_channel(facts["address"]) as channel:
            world = World(client, channel, app)
            world.registry = registry
            yield world
    finally:
        lifecycle.request_stop()
        await asyncio.wait_for(task, 10)


@pytest.fixture
async def world(redis_client: redis.asyncio.Redis, redis_url: str) -> AsyncIterator[World]:
    async with running(redis_client, redis_url) as world:
        for i in range(2):
            await world.register(f"p{i}", cluster_pb2.ROLE_PREFILL)
            await world.register(f"d{i}", cluster_pb2.ROLE_DECODE)
        await world.watch_until(lambda view: len(view.workers) == 4)
        yield world


async def refused(call: Any) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value


async def test_a_request_is_routed_to_a_pair_with_addresses_and_epochs_and_booked(world: World) -> None:
    route = await world.route("r1")
    assert route.prefill.worker_id in ("p0", "p1")
    assert route.decode.worker_id in ("d0", "d1")
    assert route.decode.address == f"{route.decode.worker_id}:1"
    assert route.decode.epoch == 1
    assert route.predicted_ttft_ms > 0
    assert route.predicted_cached_tokens == 0
    view = await world.watch_until(lambda view: True)
    booked = {worker.card.worker_id for worker in view.workers if worker.num_bookings}
    assert booked == {route.prefill.worker_id, route.decode.worker_id}


async def test_the_beat_that_reports_a_request_ends_its_booking(world: World) -> None:
    route = await world.route("r1")
    for worker, role in ((route.prefill, cluster_pb2.ROLE_PREFILL), (route.decode, cluster_pb2.ROLE_DECODE)):
        await world.register(worker.worker_id, role, sequence=2, accepted_request_ids=["r1"])
    await world.watch_until(lambda view: not any(worker.num_bookings for worker in view.workers))


async def test_a_request_goes_to_the_worker_whose_events_told_of_its_prefix(world: World) -> None:
    message = cluster_pb2.KvEvents(epoch=1, stored=pack_hashes(BLOCKS[:40]))
    await world.redis.xadd(KEYS.kv_stream("p1"), {KV_ENTRY_FIELD: message.SerializeToString()})
    # The view is sent with every change of a beat and once a second, block events alone do not send it.
    view = await world.watch_until(lambda view: any(worker.num_indexed_blocks for worker in view.workers))
    assert {w.card.worker_id: w.num_indexed_blocks for w in view.workers}["p1"] == 40
    assert all(worker.index_ready for worker in view.workers)

    route = await world.route("r1", block_hashes=pack_hashes(BLOCKS))
    assert route.prefill.worker_id == "p1"
    assert route.predicted_cached_tokens == 640


async def test_explain_tries_a_query_without_booking_or_taking_a_turn(world: World) -> None:
    request = router_pb2.ExplainRequest(query=make_message("r1"))
    explained = await world.stub.Explain(request, timeout=5)
    assert explained == await world.stub.Explain(request, timeout=5)
    assert (explained.policy, explained.unit) == ("predictive", "ms")
    assert explained.num_candidates == len(explained.candidates) == 2 + 4
    costs = [candidate.cost for candidate in explained.candidates]
    assert costs == sorted(costs)
    assert set(explained.candidates[0].terms) >= {"queue", "prefill", "room", "decode", "neighbours"}
    assert explained.chosen == await world.route("r1")


async def test_explain_tells_how_a_routed_request_was_decided(world: World) -> None:
    first = await world.route("r1", excluded_worker_ids=["d0"])
    # What happens later does not change why it was decided so.
    for i in range(5):
        await world.route(f"other-{i}")
    explained = await world.stub.Explain(router_pb2.ExplainRequest(request_id="r1"), timeout=5)
    assert explained.chosen == first
    assert dict(explained.excluded) == {"d0": "failed this request before or excluded by it"}
    assert explained.candidates[0].cost == min(candidate.cost for candidate in explained.candidates)
    assert explained.candidates[0].terms["queue"] == 0.0


async def test_explain_of_a_forgotten_request_is_not_found(
    redis_client: redis.asyncio.Redis, redis_url: str
) -> None:
    async with running(redis_client, redis_url, remembered_decisions=2) as world:
        await world.register("d", cluster_pb2.ROLE_DECODE)
        await world.watch_until(lambda view: len(view.workers) == 1)
        for i in range(3):
            await world.route(f"r{i}")
        error = await refused(world.stub.Explain(router_pb2.ExplainRequest(request_id="r0"), timeout=5))
        assert error.code() is grpc.StatusCode.NOT_FOUND
        await world.stub.Explain(router_pb2.ExplainRequest(request_id="r1"), timeout=5)


@pytest.mark.parametrize(
    ("changes", "code", "words"),
    [
        ({"model": "huge"}, grpc.StatusCode.NOT_FOUND, "served now: tiny"),
        ({"model": ""}, grpc.StatusCode.INVALID_ARGUMENT, "model"),
        ({"num_tokens": 0}, grpc.StatusCode.INVALID_ARGUMENT, "num_tokens"),
        ({"num_tokens": 2**31}, grpc.StatusCode.INVALID_ARGUMENT, "num_tokens"),
        ({"max_tokens": 0}, grpc.StatusCode.INVALID_ARGUMENT, "max_tokens"),
        ({"block_hashes": b"short"}, grpc.StatusCode.INVALID_ARGUMENT, "16-byte"),
        ({"num_tokens": 1, "block_hashes": bytes(32)}, grpc.StatusCode.INVALID_ARGUMENT, "2 block hashes"),
        ({"request_class": 9}, grpc.StatusCode.INVALID_ARGUMENT, "class"),
        ({"excluded_worker_ids": ["x"] * 257}, grpc.StatusCode.INVALID_ARGUMENT, "at most 256"),
        ({"num_tokens": 9000}, grpc.StatusCode.INVALID_ARGUMENT, "9000 tokens"),
        (
            {"excluded_worker_ids": ["d0", "d1"]},
            grpc.StatusCode.UNAVAILABLE,
            "2 failed this request before or excluded by it",
        ),
    ],
)
async def test_a_refusal_names_the_reason_and_books_nothing(
    world: World, changes: dict[str, Any], code: grpc.StatusCode, words: str
) -> None:
    error = await refused(world.route("r1", **changes))
    assert error.code() is code
    assert words in (error.details() or "")
    assert world.sample("refusals_total", code=code.name) == 1
    assert len(world.app.cluster.bookings) == 0


@pytest.mark.parametrize("request_id", ["", "a b", "x" * 129, "nul\0"])
async def test_a_request_id_that_could_spoil_a_log_is_refused(world: World, request_id: str) -> None:
    assert (await refused(world.route(request_id))).code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_explain_of_nothing_is_refused(world: World) -> None:
    error = await refused(world.stub.Explain(router_pb2.ExplainRequest(), timeout=5))
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_decisions_are_counted_by_policy_and_kind(world: World) -> None:
    await world.route("r1")
    await world.route("r2", num_tokens=4)
    assert world.sample("decisions_total", policy="predictive", prefill="remote") == 1
    assert world.sample("decisions_total", policy="predictive", prefill="local") == 1
    assert world.sample("choose_seconds_count") == 2
    assert world.sample("prompt_tokens_total") == 1004


async def test_round_robin_takes_turns_for_each_model_on_its_own(
    redis_client: redis.asyncio.Redis, redis_url: str
) -> None:
    async with running(redis_client, redis_url, policy="round_robin") as world:
        for i in range(2):
            await world.register(f"d{i}", cluster_pb2.ROLE_DECODE)
        publisher = WorkerPublisher(world.redis, KEYS, heartbeat_s=60)
        for i in range(2):
            await publisher.publish(make_card(f"e{i}", model="large"), make_beat(f"e{i}"))
        await world.watch_until(lambda view: len(view.workers) == 4)
        chosen = [
            (await world.route(f"r{i}", model=("tiny", "large")[i % 2])).decode.worker_id for i in range(8)
        ]
        assert chosen == ["d0", "e0", "d1", "e1"] * 2


async def test_serving_goes_on_while_redis_is_empty(world: World) -> None:
    await world.redis.flushall()
    await asyncio.sleep(0.3)
    assert (await world.route("r1")).decode.worker_id in ("d0", "d1")


async def test_the_router_can_be_found_and_is_healthy_until_it_stops(
    redis_client: redis.asyncio.Redis, redis_url: str
) -> None:
    watcher = ServiceWatcher(redis_client, KEYS, "router")
    async with running(redis_client, redis_url) as world:
        health = health_pb2_grpc.HealthStub(world.channel)
        answer = await health.Check(
            health_pb2.HealthCheckRequest(service="tandem.v1.RouterService"), timeout=5
        )
        assert answer.status == health_pb2.HealthCheckResponse.SERVING
        async with asyncio.timeout(5):
            while not watcher.services:
                await watcher.refresh()
        (card,) = watcher.services.values()
        assert (card.kind, card.metrics_port) == ("router", 9999)
        assert card.address.startswith("127.0.0.1:")
        stream = world.stub.WatchCluster(router_pb2.WatchClusterRequest())
        assert await stream.read() is not grpc.aio.EOF
    await watcher.refresh()
    assert not watcher.services


BUSY = {"num_running": 10, "num_waiting": 10, "queued_prefill_tokens": 60_000}


async def make_busy(world: World, sequence: int = 2, **beat: Any) -> None:
    """All workers are far behind, or as `beat` says."""
    for i in range(2):
        await world.register(f"p{i}", cluster_pb2.ROLE_PREFILL, sequence=sequence, **(beat or BUSY))
        await world.register(f"d{i}", cluster_pb2.ROLE_DECODE, sequence=sequence, **(beat or BUSY))
    await world.watch_until(lambda view: all(worker.beat.sequence == sequence for worker in view.workers))


def waiting_call(world: World, request_id: str) -> Any:
    """A Route call whose initial metadata can be awaited before its answer, as frontends make it."""
    route: Any = world.channel.unary_stream(
        "/tandem.v1.RouterService/Route",
        request_serializer=router_pb2.RouteRequest.SerializeToString,
        response_deserializer=router_pb2.RouteResponse.FromString,
    )
    return route(router_pb2.RouteRequest(query=make_message(request_id)), timeout=10)


async def test_a_request_waits_in_the_router_and_starts_when_the_workers_have_caught_up(world: World) -> None:
    await make_busy(world)
    call = waiting_call(world, "r1")
    await asyncio.wait_for(call.initial_metadata(), 5)
    assert not call.done(), "waiting is told before the answer"
    assert len(world.app.cluster.bookings) == 0
    await make_busy(world, 3, num_running=0)
    response = await call.read()
    assert response.waited_ms > 0
    assert response.decode.worker_id in ("d0", "d1")


async def test_a_call_that_is_given_up_leaves_the_queue(world: World) -> None:
    await make_busy(world)
    call = waiting_call(world, "r1")
    await asyncio.wait_for(call.initial_metadata(), 5)
    call.cancel()
    async with asyncio.timeout(5):
        while (await explained_admission(world)).num_waiting:
            await asyncio.sleep(0.02)
    await make_busy(world, 3, num_running=0)
    assert len(world.app.cluster.bookings) == 0


async def explained_admission(world: World, **query: Any) -> router_pb2.AdmissionView:
    request = router_pb2.ExplainRequest(query=make_message("dry", **query))
    response: router_pb2.ExplainResponse = await world.stub.Explain(request, timeout=5)
    return response.admission


async def test_a_request_that_would_miss_its_deadline_is_refused_at_once_with_a_time_to_retry(
    world: World,
) -> None:
    await make_busy(world)
    error = await refused(world.route("r1", ttft_deadline_ms=100))
    assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    told = error_from_rpc(error)
    assert told.retry_after_ms is not None
    assert told.retry_after_ms > 1000
    assert world.sample("refusals_total", code="RESOURCE_EXHAUSTED") == 1


async def test_explain_shows_what_the_queue_makes_of_a_request(world: World) -> None:
    assert (await explained_admission(world)).verdict == "start"
    await make_busy(world)
    waits = await explained_admission(world)
    assert (waits.verdict, waits.deadline_ms) == ("wait", 60_000)
    assert waits.wait_ms > 0
    assert waits.ttft_bound_ms > waits.wait_ms
    refusal = await explained_admission(world, ttft_deadline_ms=100)
    assert (refusal.verdict, refusal.deadline_ms) == ("refuse", 100)
    assert refusal.reason


async def test_how_predictions_turned_out_decides_who_is_refused(world: World) -> None:
    assert (await explained_admission(world, ttft_deadline_ms=300)).verdict == "start"
    seen = [router_pb2.TtftObservation(predicted_ttft_ms=10, observed_ttft_ms=100) for _ in range(20)]
    await world.stub.Route(router_pb2.RouteRequest(query=make_message("r1"), observations=seen), timeout=5)
    assert world.sample("prediction_ratio_count") == 20
    judged = await explained_admission(world, ttft_deadline_ms=300)
    assert judged.error_factor == pytest.approx(10)
    assert judged.verdict == "refuse"


async def test_a_worker_whose_blocks_are_not_known_yet_is_said_so_and_routed_to_by_load(world: World) -> None:
    await world.redis.set(KEYS.kv_stream("p9"), b"no stream")
    await world.register("p9", cluster_pb2.ROLE_PREFILL)

    def is_ready(view: router_pb2.WatchClusterResponse) -> dict[str, bool]:
        return {worker.card.worker_id: worker.index_ready for worker in view.workers}

    await world.watch_until(lambda view: is_ready(view).get("p9") is False and is_ready(view)["p0"])
    route = await world.route("r1", num_tokens=4000, pinned_worker_ids=["p9", "d0"])
    assert route.prefill.worker_id == "p9"
    assert route.predicted_cached_tokens == 0
    async with asyncio.timeout(10):
        while world.sample("workers_catching_up") != 1:
            await asyncio.sleep(0.02)
        await world.redis.delete(KEYS.kv_stream("p9"))
        while world.sample("workers_catching_up") != 0:
            await asyncio.sleep(0.02)
    assert is_ready(await world.watch_until(lambda view: True))["p9"]


async def test_tenants_are_charged_for_the_answers_that_there_were(world: World) -> None:
    await world.route("r1", tenant="long", max_tokens=1000)
    await world.route("r2", tenant="short", max_tokens=1000)
    shares = world.app.shares
    assert shares.counter("long") == shares.counter("short") == 1256
    served = [
        router_pb2.ServedTokens(tenant="long", max_tokens=1000, num_new_tokens=900),
        router_pb2.ServedTokens(tenant="short", max_tokens=1000, num_new_tokens=10),
        router_pb2.ServedTokens(tenant="never seen", max_tokens=10, num_new_tokens=2**32 - 1),
    ]
    request = router_pb2.RouteRequest(query=make_message("r3", tenant="third"), served=served)
    await world.stub.Route(request, timeout=5)
    assert (shares.counter("long"), shares.counter("short")) == (1900, 1010)


async def test_a_session_goes_back_to_its_worker(world: World) -> None:
    first = await world.route("r0", num_tokens=4, session_id="s")
    again = await world.route("r1", num_tokens=4, session_id="s")
    assert again.decode.worker_id == first.decode.worker_id
    other = await world.route("r2", num_tokens=4, session_id="other")
    assert other.decode.worker_id != first.decode.worker_id, "the least loaded"


async def test_a_prefix_is_expected_where_it_was_routed_before_events_tell(world: World) -> None:
    first = await world.route("r1", block_hashes=pack_hashes(BLOCKS))
    assert first.predicted_cached_tokens == 0
    request = router_pb2.ExplainRequest(query=make_message("r2", block_hashes=pack_hashes(BLOCKS)))
    explained = await world.stub.Explain(request, timeout=5)
    expected = {
        c.prefill_worker_id or c.decode_worker_id: c.prefill_cached_blocks for c in explained.candidates
    }
    assert {worker_id for worker_id, num_blocks in expected.items() if num_blocks == 62} == {
        first.prefill.worker_id
    }


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"pinned_worker_ids": ["127.0.0.1:80"]}, "pinned_worker_ids"),
        ({"pinned_worker_ids": ["x"] * 257}, "pinned_worker_ids"),
        ({"required_labels": {str(i): "" for i in range(17)}}, "required_labels"),
        ({"required_labels": {"region": "x" * 129}}, "required_labels"),
        ({"excluded_worker_ids": ["10.0.0.1:7000"]}, "excluded_worker_ids"),
        ({"max_price_per_million_tokens": -0.1}, "max_price_per_million_tokens"),
        ({"max_price_per_million_tokens": float("nan")}, "max_price_per_million_tokens"),
        ({"max_price_per_million_tokens": float("inf")}, "max_price_per_million_tokens"),
        ({"session_id": "x" * 129}, "session_id"),
    ],
)
async def test_what_a_request_asks_for_is_checked(world: World, changes: dict[str, Any], words: str) -> None:
    error = await refused(world.route("r1", **changes))
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert words in (error.details() or "")


async def test_pins_and_labels_are_followed(world: World) -> None:
    for i in range(4):
        assert (await world.route(f"r{i}", pinned_worker_ids=["d1"])).decode.worker_id == "d1"
        assert (await world.route(f"l{i}", required_labels={"host": "here"})).decode.worker_id
    error = await refused(world.route("r9", required_labels={"region": "mars"}))
    assert error.code() is grpc.StatusCode.UNAVAILABLE
