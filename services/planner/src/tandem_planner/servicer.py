"""PlannerService over gRPC; what each call may answer is written in planner.proto."""

from __future__ import annotations

from collections.abc import AsyncIterator

import grpc
from tandem.v1 import planner_pb2 as pb
from tandem.v1 import planner_pb2_grpc
from tandem_common.errors import Unavailable
from tandem_common.logs import get_logger

from tandem_planner.lease import PlannerLease
from tandem_planner.loop import PlanLoop
from tandem_planner.targets import Targets

_log = get_logger("planner")


class PlannerServicer(planner_pb2_grpc.PlannerServiceServicer):
    """Serves the plans of one loop."""

    def __init__(self, loop: PlanLoop, lease: PlannerLease) -> None:
        self._loop = loop
        self._advisor = loop.advisor
        self._lease = lease

    async def GetPlan(  # noqa: N802 - named by the contract
        self,
        request: pb.GetPlanRequest,
        context: grpc.aio.ServicerContext[pb.GetPlanRequest, pb.GetPlanResponse],
    ) -> pb.GetPlanResponse:
        """The plans that hold now; Unavailable before the first."""
        decisions = self._advisor.decisions
        if not decisions:
            raise Unavailable(
                "there is no plan yet: no worker is registered, or the planner has just started",
                retry_after_ms=round(1000 * self._loop.interval_s),
            )
        return pb.GetPlanResponse(
            decisions=[decision.to_proto() for decision in decisions.values()],
            targets=self._advisor.targets.to_proto(),
            paused=self._advisor.paused,
            lease_token=self._lease.token,
        )

    async def WatchDecisions(  # noqa: N802
        self,
        request: pb.WatchDecisionsRequest,
        context: grpc.aio.ServicerContext[pb.WatchDecisionsRequest, pb.WatchDecisionsResponse],
    ) -> AsyncIterator[pb.WatchDecisionsResponse]:
        """The latest decisions, then each new one."""
        async for decision in self._advisor.watch():
            yield pb.WatchDecisionsResponse(decision=decision.to_proto())

    async def SetTargets(  # noqa: N802
        self,
        request: pb.SetTargetsRequest,
        context: grpc.aio.ServicerContext[pb.SetTargetsRequest, pb.SetTargetsResponse],
    ) -> pb.SetTargetsResponse:
        """Other targets from now on, and a plan for them at once."""
        targets = Targets.from_proto(request.targets)
        self._advisor.set_targets(targets)
        _log.info(
            "targets set", ttft_ms=targets.ttft_ms, itl_ms=targets.itl_ms, percentile=targets.percentile
        )
        self._loop.plan_soon()
        return pb.SetTargetsResponse(targets=targets.to_proto())

    async def Pause(  # noqa: N802
        self, request: pb.PauseRequest, context: grpc.aio.ServicerContext[pb.PauseRequest, pb.PauseResponse]
    ) -> pb.PauseResponse:
        """While paused, plans are made and served, but not written to Redis for others to act on."""
        self._advisor.paused = request.paused
        _log.info("paused" if request.paused else "resumed")
        return pb.PauseResponse(paused=request.paused)
