"""DecodeService, as the role of a worker."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import ClassVar

import grpc
from tandem.v1 import cluster_pb2, decode_pb2, decode_pb2_grpc
from tandem_common.errors import Conflict, InvalidRequest, TandemError
from tandem_common.lane import LaneServer
from tandem_common.logs import get_logger
from tandem_worker.gate import Role
from tandem_worker.metrics import SESSIONS
from tandem_worker.worker import Worker

from tandem_decode.prefill_channels import PrefillChannels
from tandem_decode.session import Session

_log = get_logger("decode")

_OPEN_TIMEOUT_S = 10.0
_END_TIMEOUT_S = 2.0
_MAX_FRONTEND_ID_CHARS = 128

_Context = grpc.aio.ServicerContext[decode_pb2.SessionRequest, decode_pb2.SessionResponse]


class DecodeRole(decode_pb2_grpc.DecodeServiceServicer):
    """Decodes for frontends. See the contract for what a session does and how it ends."""

    duty: ClassVar[Role] = cluster_pb2.ROLE_DECODE
    service_name: ClassVar[str] = "tandem.v1.DecodeService"

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        self._channels = PrefillChannels(worker.watcher)
        self._lanes = LaneServer(worker.config.host)
        self._sessions: dict[Session, asyncio.Event] = {}  # set when the session is over

    def add_to(self, server: grpc.aio.Server) -> None:
        """Register the servicer."""
        decode_pb2_grpc.add_DecodeServiceServicer_to_server(self, server)

    @property
    def num_sessions(self) -> int:
        """Sessions open with frontends."""
        return len(self._sessions)

    async def end(self, reason: TandemError) -> None:
        """Let every session send what it has and end with `reason`."""
        over = [asyncio.create_task(event.wait()) for event in self._sessions.values()]
        for session in self._sessions:
            session.end(reason)
        if over:
            await asyncio.wait(over, timeout=_END_TIMEOUT_S)
        for task in over:
            task.cancel()
        await self._channels.close()
        await self._lanes.close()

    async def Session(  # type: ignore[override]  # noqa: N802
        self, request_iterator: AsyncIterator[decode_pb2.SessionRequest], context: _Context
    ) -> None:
        """One session, until either side ends it."""
        self._worker.gate.check(self.duty)
        frontend_id = await self._open(request_iterator)
        session = Session(self._worker, self._channels, frontend_id)
        # Tells the frontend that it has been let in. Before the writer starts: gRPC takes one write at a time.
        await context.send_initial_metadata(await self._lanes.offer(session.lane))
        over = self._sessions[session] = asyncio.Event()
        SESSIONS.set(len(self._sessions))
        _log.info("session opened", frontend_id=frontend_id)
        writing = asyncio.create_task(session.write_out(context.write), name="session-writer")
        reading = asyncio.create_task(_read(session, request_iterator), name="session-reader")
        try:
            await asyncio.wait([writing, reading], return_when=asyncio.FIRST_COMPLETED)
            for task in (writing, reading):
                if task.done():
                    task.result()
        finally:
            # Whatever ended it: nobody waits for these requests any more.
            session.close()
            self._lanes.withdraw(session.lane)
            del self._sessions[session]
            over.set()
            SESSIONS.set(len(self._sessions))
            _log.info("session closed", frontend_id=frontend_id)
            writing.cancel()
            reading.cancel()
            await asyncio.gather(writing, reading, return_exceptions=True)

    async def _open(self, requests: AsyncIterator[decode_pb2.SessionRequest]) -> str:
        """Read the first message; returns the frontend's id."""
        try:
            async with asyncio.timeout(_OPEN_TIMEOUT_S):
                first = await anext(requests, None)
        except TimeoutError:
            raise InvalidRequest("the session was not opened in time") from None
        if first is None or first.WhichOneof("command") != "open":
            raise InvalidRequest("the first message must open the session")
        if not 0 < len(first.open.frontend_id) <= _MAX_FRONTEND_ID_CHARS:
            raise InvalidRequest("frontend_id must have 1 to 128 characters")
        if first.open.epoch != self._worker.epoch:
            raise Conflict("this worker runs in another incarnation")
        return first.open.frontend_id


async def _read(session: Session, requests: AsyncIterator[decode_pb2.SessionRequest]) -> None:
    """Handle commands until the frontend has left or breaks the protocol."""
    async for command in requests:
        session.handle(command)
