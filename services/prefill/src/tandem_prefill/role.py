"""PrefillService, as the role of a worker."""

from __future__ import annotations

import time
from typing import ClassVar

import grpc
from tandem.v1 import cluster_pb2, prefill_pb2, prefill_pb2_grpc
from tandem_common.errors import Cancelled, TandemError
from tandem_common.generation_proto import generation_from_proto
from tandem_common.logs import bound_request, get_logger
from tandem_worker.gate import Role
from tandem_worker.metrics import REQUESTS
from tandem_worker.worker import Worker

from tandem_prefill.call import PrefillCall
from tandem_prefill.destination import check_destination

_log = get_logger("prefill")


class PrefillRole(prefill_pb2_grpc.PrefillServiceServicer):
    """Computes prompts for decode workers. See the contract for what each call does and raises."""

    duty: ClassVar[Role] = cluster_pb2.ROLE_PREFILL
    service_name: ClassVar[str] = "tandem.v1.PrefillService"

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        self._calls: dict[str, PrefillCall] = {}

    def add_to(self, server: grpc.aio.Server) -> None:
        """Register the servicer."""
        prefill_pb2_grpc.add_PrefillServiceServicer_to_server(self, server)

    @property
    def num_sessions(self) -> int:
        """None: sessions are the decode role's."""
        return 0

    async def end(self, reason: TandemError) -> None:
        """Every call has ended with its request."""

    async def Prefill(  # type: ignore[override]  # noqa: N802
        self,
        request: prefill_pb2.PrefillRequest,
        context: grpc.aio.ServicerContext[prefill_pb2.PrefillRequest, prefill_pb2.PrefillResponse],
    ) -> None:
        """Compute and ship one prompt."""
        # Writes to the context instead of yielding: a generator that is suspended in `yield` when its call is
        # cancelled would be cleaned up some time later.
        worker, info = self._worker, self._worker.engine.info
        worker.gate.check(self.duty)
        generation = generation_from_proto(request.generation)
        generation.check_limits(vocab_size=info.vocab_size, max_context_tokens=info.max_context_tokens)
        request_id = generation.request_id
        with bound_request(request_id):
            destination = await check_destination(worker, request, generation)
            call = PrefillCall(worker, generation, destination)
            if earlier := self._calls.get(request_id):
                earlier.on_failure(Cancelled("the prompt was asked for again"))
            self._calls[request_id] = call
            worker.accepted.add(request_id, time.monotonic())
            outcome = "failed"
            try:
                await call.run(context.write)
                outcome = "finished"
            finally:
                if self._calls.get(request_id) is call:
                    del self._calls[request_id]
                REQUESTS.labels("cancelled" if context.cancelled() else outcome).inc()
                _log.info(
                    "prefill",
                    outcome=outcome,
                    num_tokens=len(generation.token_ids),
                    decode_worker_id=destination.card.worker_id,
                )

    async def Release(  # noqa: N802
        self,
        request: prefill_pb2.ReleaseRequest,
        context: grpc.aio.ServicerContext[prefill_pb2.ReleaseRequest, prefill_pb2.ReleaseResponse],
    ) -> prefill_pb2.ReleaseResponse:
        """End a handoff, if it is still there."""
        self._worker.leases.expire(request.lease_id)
        return prefill_pb2.ReleaseResponse()
