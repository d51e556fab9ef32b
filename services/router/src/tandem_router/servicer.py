"""The gRPC shell: messages in, one synchronous decision, messages out."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

import grpc
from tandem.v1 import router_pb2 as pb
from tandem.v1 import router_pb2_grpc
from tandem_common.errors import InvalidRequest, NotFound, TandemError
from tandem_common.logs import get_logger

from tandem_router.cluster import Cluster
from tandem_router.feed import ClusterFeed
from tandem_router.index import BlockIndex
from tandem_router.kv_follower import KvFollower
from tandem_router.metrics import RouterMetrics
from tandem_router.policies import Policy
from tandem_router.query import EXPLAIN_LIMITS, ROUTE_LIMITS
from tandem_router.recent import RecentDecisions, Remembered
from tandem_router.wire import explanation_to_proto, query_from_proto, route_to_proto

# A watcher hears of a view that grows stale, although nothing changes in it.
_WATCH_INTERVAL_S = 1.0

_log = get_logger("router")
_Context = grpc.aio.ServicerContext[Any, Any]


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
        remembered_decisions: int,
    ) -> None:
        self._policy = policy
        self._cluster = cluster
        self._index = index
        self._feed = feed
        self._follower = follower
        self._metrics = metrics
        self._recent = RecentDecisions(remembered_decisions)
        self._turns: Counter[str] = Counter()  # decisions by model
        self._stopping = asyncio.Event()

    async def Route(self, request: pb.RouteRequest, context: _Context) -> pb.RouteResponse:  # noqa: N802
        """Decide and book."""
        try:
            return self._route(request.query)
        except TandemError as error:
            self._metrics.refusals.labels(error.code.name).inc()
            _log.info(
                "refused",
                request_id=request.query.request_id[:128],
                code=error.code.name,
                num_tokens=request.query.num_tokens,
                reason=error.message,
            )
            raise

    async def Explain(self, request: pb.ExplainRequest, context: _Context) -> pb.ExplainResponse:  # noqa: N802
        """Decide without booking, or look up what was decided."""
        if request.HasField("query"):
            view = self._cluster.view
            query = query_from_proto(request.query, self._index, self._turns[request.query.model])
            decision = self._policy.choose(query, view, ROUTE_LIMITS)
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
        return explanation_to_proto(decision, self._policy.choose(query, view, EXPLAIN_LIMITS))

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
        self._stopping.set()

    def _route(self, message: pb.RouteQuery) -> pb.RouteResponse:
        started_s = time.monotonic()
        query = query_from_proto(message, self._index, self._turns[message.model])
        view = self._cluster.view
        decision = self._policy.choose(query, view, ROUTE_LIMITS)
        chosen_s = time.monotonic()
        self._turns[query.model] += 1
        self._cluster.book(query, decision, chosen_s)
        self._recent.add(Remembered(query=query, view=view, decision=decision))
        chosen = decision.chosen
        metrics = self._metrics
        metrics.choose_s.observe(chosen_s - started_s)
        metrics.decisions.labels(decision.policy, "remote" if chosen.prefill else "local").inc()
        metrics.prompt_tokens.inc(query.num_tokens)
        metrics.cached_tokens.inc(chosen.predicted_cached_tokens)
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
        )
        return route_to_proto(decision)

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
