"""WorkerService: what operators, the planner and tests ask of any worker."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence

import grpc
from redis.exceptions import RedisError
from tandem.v1 import cluster_pb2, worker_pb2, worker_pb2_grpc
from tandem_common.errors import Conflict, InvalidRequest, Unavailable
from tandem_common.logs import get_logger

from tandem_worker.card import make_state
from tandem_worker.drain import drain
from tandem_worker.gate import Role, role_name
from tandem_worker.registration import Registration
from tandem_worker.roles import RoleService
from tandem_worker.worker import Worker

_log = get_logger("worker_service")

SERVICE_NAME = "tandem.v1.WorkerService"


class WorkerService(worker_pb2_grpc.WorkerServiceServicer):
    """See the contract for what each call does and raises."""

    def __init__(self, worker: Worker, registration: Registration, roles: Sequence[RoleService]) -> None:
        self._worker = worker
        self._registration = registration
        self._roles = roles
        self._changing = asyncio.Lock()

    async def SetRole(  # noqa: N802
        self,
        request: worker_pb2.SetRoleRequest,
        context: grpc.aio.ServicerContext[worker_pb2.SetRoleRequest, worker_pb2.SetRoleResponse],
    ) -> worker_pb2.SetRoleResponse:
        """Change the role."""
        if request.role not in cluster_pb2.Role.values() or request.role == cluster_pb2.ROLE_UNSPECIFIED:
            raise InvalidRequest("role must be one of prefill, decode, both", param="role")
        self._worker.gate.check_supported(request.role)
        async with self._changing:
            await self._change_role(request.role)
        return worker_pb2.SetRoleResponse(card=self._registration.records()[0])

    async def Drain(  # noqa: N802
        self,
        request: worker_pb2.DrainRequest,
        context: grpc.aio.ServicerContext[worker_pb2.DrainRequest, worker_pb2.DrainResponse],
    ) -> worker_pb2.DrainResponse:
        """Take nothing new and wait."""
        timeout_s = request.timeout_ms / 1000 or self._worker.config.drain_timeout_s
        num_unfinished = await drain(
            self._worker.gate, self._worker.dispatcher, self._registration, timeout_s
        )
        return worker_pb2.DrainResponse(num_unfinished=num_unfinished)

    async def GetState(  # noqa: N802
        self,
        request: worker_pb2.GetStateRequest,
        context: grpc.aio.ServicerContext[worker_pb2.GetStateRequest, worker_pb2.GetStateResponse],
    ) -> worker_pb2.GetStateResponse:
        """Say what is held."""
        card, beat = self._registration.records()
        return make_state(self._worker, card, beat, sum(role.num_sessions for role in self._roles))

    async def _change_role(self, role: Role) -> None:
        gate = self._worker.gate
        if gate.draining:
            raise Conflict("this worker is draining")
        old = gate.role
        if role == old:
            return
        if gate.keeps_duties(role):
            gate.role = role
        else:
            try:
                await drain(
                    gate, self._worker.dispatcher, self._registration, self._worker.config.drain_timeout_s
                )
                gate.role = role
                for service in self._roles:
                    if not gate.has(service.duty):
                        await service.end(Unavailable("the worker has changed its role"))
            finally:
                gate.end_drain()
        _log.info("role changed", old=role_name(old), new=role_name(role))
        # The caller finds the new role in the registry, unless Redis is away: then it comes with a later beat.
        with contextlib.suppress(RedisError, OSError):
            await self._registration.publish()
