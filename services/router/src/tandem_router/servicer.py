"""The gRPC shell: messages in, one synchronous decision, messages out."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import grpc
from tandem.v1 import router_pb2 as pb
from tandem.v1 import router_pb2_grpc
from tandem_common.errors import InvalidRequest, NotFound, TandemError, Unavailable
from tandem_common.lane import LaneServer
from tandem_common.logs import get_logger
from tandem_common.telemetry import span

from tandem_router.admission import AdmissionRules, PredictionError
from tandem_router.affinity import Sessions
from tandem_router.booking_exchange import BookingExchange
from tandem_router.cluster import Cluster
from tandem_router.desk import Desk, QueueRules, charged_tokens, expected_new_tokens
from tandem_router.dispatcher import Dispatched, Dispatcher, Pending
from tandem_router.elsewhere import WaitingElsewhere
from tandem_router.fairness import FairShares
from tandem_router.feed import ClusterFeed
from tandem_router.index import BlockIndex
from tandem_router.kv_follower import KvFollower
from tandem_router.metrics import RouterMetrics
from tandem_router.policies import Policy
from tandem_router.query import EXPLAIN_LIMITS, Decision, Query
from tandem_router.recent import RecentDecisions, Remembered
from tandem_router.route_stream import RouteStream
from tandem_router.speculative import SpeculativeIndex
from tandem_router.view import ClusterView
from tandem_router.wire import admission_to_proto, explanation_to_proto, query_from_proto, route_to_proto

# A watcher hears of a view that grows stale, although nothing changes in it.
_WATCH_INTERVAL_S = 1.0
_MAX_OBSERVATIONS = 64

_log = get_logger("router")
_Context = grpc.aio.ServicerContext[Any, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class ServicerRules:
    """What operators set."""

    admission: AdmissionRules = field(default_factory=AdmissionRules)
    queue: QueueRules = field(default_factory=QueueRules)
    error_quantile: float = 0.9
    remembered_decisions: int = 1024
    speculative_ttl_s: float = 5.0
    session_ttl_s: float = 600.0


class RouterServicer(router_pb2_grpc.RouterServiceServicer):
    """RouterService over one cluster, index and policy."""

    def __init__(
        self,
        policy: Policy,
        cluster: Cluster,
        index: BlockIndex,
        feed: ClusterFeed,
        follower: KvFollower,
        metrics: RouterMetrics,
        *,
        rules: ServicerRules,
        shares: FairShares,
        exchange: BookingExchange | None = None,
        elsewhere: WaitingElsewhere | None = None,
        lanes: LaneServer | None = None,
    ) -> None:
        """Without `exchange`, nobody else hears of the bookings."""
        self._lanes = lanes or LaneServer("127.0.0.1")
        self._policy = policy
        self._cluster = cluster
        self._index = index
        self._feed = feed
        self._follower = follower
        self._metrics = metrics
        self._exchange = exchange
        self._shares = shares
        self._recent = RecentDecisions(rules.remembered_decisions)
        self._expected = SpeculativeIndex(ttl_s=rules.speculative_ttl_s)
        self._sessions = Sessions(ttl_s=rules.session_ttl_s)
        self._dispatcher = Dispatcher(
            Desk(
                policy,
                lambda: cluster.view,
                self._make_query,
                self._start,
                shares=shares,
                rules=rules.admission,
                queue_rules=rules.queue,
                error=PredictionError(quantile=rules.error_quantile),
                elsewhere=elsewhere,
            )
        )
        self._turns: Counter[str] = Counter()  # decisions by model
        self._stopping = asyncio.Event()

    async def Route(self, request: pb.RouteRequest, context: _Context) -> pb.RouteResponse:  # noqa: N802
        """Decide and book."""
        self.observe(request.observations, request.served)

        async def on_wait() -> None:
            # The sign that this router is alive, however long the request has to wait.
            await context.send_initial_metadata(())

        try:
            return self.end(request.query, await self._dispatcher.route(request.query, on_wait))
        except TandemError as error:
            self.refused(request.query, error)
            raise

    async def RouteStream(  # type: ignore[override]  # noqa: N802
        self, request_iterator: AsyncIterator[pb.RouteStreamRequest], context: _Context
    ) -> None:
        """Decide and book, many at once."""
        ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        stream = RouteStream(self, ended)
        # Tells the frontend that it is being heard. Before the writer starts: gRPC takes one write at a time.
        await context.send_initial_metadata(await self._lanes.offer(stream.lane))

        async def read() -> None:
            async for request in request_iterator:
                stream.handle(request)

        tasks = [
            asyncio.create_task(stream.writer.run(context.write), name="route-writer"),
            asyncio.create_task(read(), name="route-reader"),
            asyncio.create_task(self._until_stopping(), name="route-stopping"),
        ]
        try:
            done, _ = await asyncio.wait([*tasks, ended], return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            stream.close()
            self._lanes.withdraw(stream.lane)
            for task in tasks:
                task.cancel()
            ended.cancel()
            await asyncio.gather(*tasks, ended, return_exceptions=True)

    def observe(self, observations: Sequence[pb.TtftObservation], served: Sequence[pb.ServedTokens]) -> None:
        """Learn how predictions turned out, and how long answers became."""
        for seen in observations[:_MAX_OBSERVATIONS]:
            ratio = self._dispatcher.error.observe(seen.predicted_ttft_ms, seen.observed_ttft_ms)
            if ratio is not None:
                self._metrics.prediction_ratio.observe(ratio)
        for answer in served[:_MAX_OBSERVATIONS]:
            self._correct(answer)

    def begin(self, query: pb.RouteQuery, traceparent: str) -> pb.RouteResponse | Pending:
        """Decide and book, or let it wait; raises TandemError."""
        with span("/tandem.v1.RouterService/Route", traceparent):
            answer = self._dispatcher.begin(query)
            return self.end(query, answer) if isinstance(answer, Dispatched) else answer

    def end(self, query: pb.RouteQuery, dispatched: Dispatched) -> pb.RouteResponse:
        """Remember a decision, and make the answer."""
        self._note(dispatched)
        return route_to_proto(dispatched.started.decision, dispatched.started.waited_ms)

    def refused(self, query: pb.RouteQuery, error: TandemError) -> None:
        """Count and log."""
        self._metrics.refusals.labels(error.code.name).inc()
        _log.info(
            "refused",
            request_id=query.request_id[:128],
            code=error.code.name,
            num_tokens=query.num_tokens,
            reason=error.message,
        )

    def leave(self, pending: Pending) -> None:
        """A request that waits is not wanted any more."""
        self._dispatcher.leave(pending)

    async def Explain(self, request: pb.ExplainRequest, context: _Context) -> pb.ExplainResponse:  # noqa: N802
        """Decide without booking, or look up what was decided."""
        admission = None
        if request.HasField("query"):
            query, view, decision, judgement = self._dispatcher.desk.judge(request.query, time.monotonic())
            admission = admission_to_proto(
                judgement, self._dispatcher.num_waiting, self._dispatcher.error.factor
            )
        elif request.request_id:
            remembered = self._recent.get(request.request_id)
            if remembered is None:
                raise NotFound(
                    "no decision for this request is remembered; ask sooner, or ask another router",
                    param="request_id",
                )
            query, view, decision = remembered.query, remembered.view, remembered.decision
        else:
            raise InvalidRequest("send a query to try, or the request_id of a routed request", param="query")
        return explanation_to_proto(decision, self._policy.choose(query, view, EXPLAIN_LIMITS), admission)

    async def WatchCluster(  # noqa: N802
        self, request: pb.WatchClusterRequest, context: _Context
    ) -> AsyncIterator[pb.WatchClusterResponse]:
        """The view now, with every change, and once a second."""
        while not self._stopping.is_set():
            yield self._watched()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_WATCH_INTERVAL_S):
                    await self._feed.changed()

    def stop(self) -> None:
        """End what would go on for ever."""
        self._dispatcher.stop()
        self._stopping.set()

    def view_changed(self, _: ClusterView) -> None:
        """Start those who wait and can start now."""
        self._dispatcher.pump()
        if self._exchange is not None:
            self._exchange.tell_waiting(self._dispatcher.desk.waiting_tenants())
        self._metrics.catching_up.set(
            sum(not self._follower.ready(worker_id) for worker_id in self._cluster.registered)
        )
        self._metrics.waiting.set(self._dispatcher.num_waiting)
        self._metrics.error_factor.set(self._dispatcher.error.factor)

    def others_started(self) -> None:
        """Start those who were held back for tenants that had their turn elsewhere now."""
        self._dispatcher.pump()

    def _correct(self, served: pb.ServedTokens) -> None:
        """Charge a tenant for the answer that there was instead of the one that was expected."""
        num_tokens = served.num_new_tokens - expected_new_tokens(served.max_tokens)
        if num_tokens:
            self._shares.correct(served.tenant, num_tokens)
            if self._exchange is not None:
                self._exchange.tell_correction(served.tenant, num_tokens)

    async def _until_stopping(self) -> None:
        await self._stopping.wait()
        await asyncio.sleep(0)  # those who waited have been told; let that be written
        raise Unavailable("this router is stopping; ask another")

    def _make_query(self, message: pb.RouteQuery) -> Query:
        now_s = time.monotonic()
        return query_from_proto(
            message,
            self._index,
            self._turns[message.model],
            now_s=now_s,
            expected=self._expected,
            preferred=self._sessions.preferred(message.tenant, message.session_id, now_s),
        )

    def _start(self, message: pb.RouteQuery, query: Query, decision: Decision) -> None:
        """Book a decision here and, soon, at the other routers."""
        now_s = time.monotonic()
        self._turns[query.model] += 1
        bookings = self._cluster.book(query, decision, now_s)
        if self._exchange is not None:
            self._exchange.share(query.request_id, query.model, query.tenant, charged_tokens(query), bookings)
        self._expected.add(message.block_hashes, decision.chosen.computing.facts.worker_id, now_s)
        self._sessions.note(message.tenant, message.session_id, decision, now_s)

    def _note(self, dispatched: Dispatched) -> None:
        """Remember, count and log."""
        started = dispatched.started
        query, decision = started.query, started.decision
        self._recent.add(Remembered(query=query, view=started.view, decision=decision))
        chosen = decision.chosen
        metrics = self._metrics
        metrics.decisions.labels(decision.policy, "remote" if chosen.prefill else "local").inc()
        metrics.prompt_tokens.inc(query.num_tokens)
        metrics.cached_tokens.inc(chosen.predicted_cached_tokens)
        metrics.choose_s.observe(dispatched.choose_s)
        metrics.waited_ms.observe(started.waited_ms)
        if decision.predicted_ttft_ms:
            metrics.predicted_ttft_ms.observe(decision.predicted_ttft_ms)
        _log.info(
            "routed",
            request_id=query.request_id,
            model=query.model,
            num_tokens=query.num_tokens,
            decode=chosen.decode.facts.worker_id,
            prefill=chosen.prefill.facts.worker_id if chosen.prefill else None,
            predicted_cached_tokens=chosen.predicted_cached_tokens,
            predicted_ttft_ms=round(decision.predicted_ttft_ms, 2),
            cost=round(chosen.cost, 2),
            unit=decision.unit,
            num_candidates=decision.num_candidates,
            waited_ms=round(started.waited_ms, 2),
        )

    def _watched(self) -> pb.WatchClusterResponse:
        return pb.WatchClusterResponse(
            workers=[
                pb.WorkerView(
                    card=record.card,
                    beat=record.beat,
                    num_bookings=self._cluster.bookings.count(worker_id),
                    num_indexed_blocks=self._index.num_blocks(worker_id),
                    index_ready=self._follower.ready(worker_id),
                )
                for worker_id, record in sorted(self._cluster.registered.items())
            ],
            stale_ms=self._feed.stale_ms,
        )
