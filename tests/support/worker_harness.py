"""Whole workers inside the test's process: simulated engine, real gRPC, real transports, real Redis."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import grpc
from tandem.v1 import (
    cluster_pb2,
    decode_pb2,
    decode_pb2_grpc,
    generation_pb2,
    prefill_pb2_grpc,
    router_pb2,
    worker_pb2,
    worker_pb2_grpc,
)
from tandem_common.keys import Keys
from tandem_common.lane import Lane, connect_lane
from tandem_common.redis_client import connect
from tandem_common.registry import WorkerPublisher
from tandem_common.rpc import open_channel
from tandem_common.service import Lifecycle
from tandem_common.token_ids import pack_token_ids
from tandem_engine.api import Engine
from tandem_engine.config import EngineConfig
from tandem_engine.factory import create_engine
from tandem_worker.config import WorkerConfig
from tandem_worker.host import WorkerHost

SECRET = "a secret of the tests"
NAMESPACE = b"n" * 16
BLOCK_SIZE = 16
FALSE_WORKER_ID = "false"
_numbers = itertools.count(1)


class RedisServer(Protocol):
    """The fixture `redis_server`."""

    url: str

    def start(self) -> None: ...

    def stop(self) -> None: ...


class ObservedLifecycle(Lifecycle):
    """Keeps the ready line instead of printing it."""

    def __init__(self) -> None:
        super().__init__("worker")
        self.is_ready = asyncio.Event()

    def ready(self, **facts: str | int) -> None:
        self.facts = facts
        self.is_ready.set()


class RunningWorker:
    """A worker that serves, with stubs to talk to it."""

    def __init__(self, facts: dict[str, str | int], task: asyncio.Task[None], lifecycle: Lifecycle) -> None:
        self.worker_id = str(facts["worker_id"])
        self.address = str(facts["address"])
        self.task = task
        self.lifecycle = lifecycle
        self.channel = open_channel(self.address)
        self.admin = worker_pb2_grpc.WorkerServiceStub(self.channel)
        self.prefill = prefill_pb2_grpc.PrefillServiceStub(self.channel)

    async def state(self) -> worker_pb2.GetStateResponse:
        return await self.admin.GetState(worker_pb2.GetStateRequest(), timeout=5)

    async def ref(self) -> router_pb2.WorkerRef:
        card = (await self.state()).card
        return router_pb2.WorkerRef(worker_id=card.worker_id, epoch=card.epoch, address=card.address)

    async def assert_quiet(self) -> None:
        """Nothing is left: no request, lease or used block."""
        for _ in range(100):
            state = await self.state()
            if not state.requests and not state.leases and state.blocks.used == 0:
                blocks = state.blocks
                assert blocks.total == blocks.cached + blocks.free
                return
            await asyncio.sleep(0.05)
        raise AssertionError(f"not quiet: {state.requests} {state.leases} {state.blocks}")

    async def until(self, phase: str) -> worker_pb2.GetStateResponse:
        """Wait until a request is in this phase."""
        for _ in range(500):
            state = await self.state()
            if any(request.phase == phase for request in state.requests):
                return state
            await asyncio.sleep(0.01)
        raise AssertionError(f"no request got {phase}: {state.requests}")

    async def until_leased(self, phase: worker_pb2.LeasePhase.ValueType) -> worker_pb2.LeaseState:
        """Wait until a lease is in this phase."""
        for _ in range(500):
            state = await self.state()
            for lease in state.leases:
                if lease.phase == phase:
                    return lease
            await asyncio.sleep(0.01)
        raise AssertionError(f"no lease got to {phase}: {state.leases}")


@contextlib.asynccontextmanager
async def running_worker(
    redis_url: str,
    role: str,
    *,
    make_engine: Callable[[EngineConfig], Engine] = create_engine,
    **settings: object,
) -> AsyncIterator[RunningWorker]:
    """A worker for the length of the block; it is stopped as by SIGTERM."""
    defaults = {
        "engine": "simulated",
        "num_blocks": 256,
        "max_context_tokens": 2048,
        "max_step_tokens": 128,
        "heartbeat_s": 0.1,
        "drain_timeout_s": 5.0,
        "metrics_port": -1,
        "worker_id": f"{role}-{next(_numbers)}",
    }
    config = WorkerConfig(
        redis_url=redis_url,
        cluster_secret=SECRET,
        role=role,
        **(defaults | settings),  # type: ignore[arg-type]
    )
    lifecycle = ObservedLifecycle()
    task = asyncio.create_task(WorkerHost(config, make_engine).serve(lifecycle))
    ready = asyncio.create_task(lifecycle.is_ready.wait())
    await asyncio.wait([task, ready], return_when=asyncio.FIRST_COMPLETED)
    if not ready.done():
        ready.cancel()
        await task
    worker = RunningWorker(lifecycle.facts, task, lifecycle)
    try:
        yield worker
    finally:
        await worker.channel.close()
        lifecycle.request_stop()
        async with asyncio.timeout(15):
            with contextlib.suppress(Exception):
                await task


@contextlib.asynccontextmanager
async def false_prefill_worker(
    redis_url: str, servicer: prefill_pb2_grpc.PrefillServiceServicer
) -> AsyncIterator[router_pb2.WorkerRef]:
    """A registered prefill worker whose answers the test makes up."""
    server = grpc.aio.server()
    prefill_pb2_grpc.add_PrefillServiceServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    card = cluster_pb2.WorkerCard(worker_id=FALSE_WORKER_ID, epoch=1, address=f"127.0.0.1:{port}")
    client = connect(redis_url)
    publisher = WorkerPublisher(client, Keys("default"), heartbeat_s=10)
    await publisher.publish(card, cluster_pb2.WorkerBeat(worker_id=FALSE_WORKER_ID, epoch=1))
    try:
        yield router_pb2.WorkerRef(worker_id=FALSE_WORKER_ID, epoch=1)
    finally:
        await client.aclose()
        await server.stop(0)


def generation(
    num_prompt_tokens: int = 100,
    max_tokens: int = 20,
    *,
    request_id: str = "",
    first_token: int = 1,
    resumed: Sequence[int] = (),
    model: str = "",
) -> generation_pb2.Generation:
    """A request whose prompt is a row of numbers."""
    prompt = [first_token + number for number in range(num_prompt_tokens)]
    return generation_pb2.Generation(
        request_id=request_id or f"req-{next(_numbers):032x}",
        model=model,
        token_ids=pack_token_ids([*prompt, *resumed]),
        num_prompt_tokens=num_prompt_tokens,
        namespace=NAMESPACE,
        stopping=generation_pb2.StoppingParams(max_tokens=max_tokens),
    )


@dataclass
class StreamLog:
    """What a session said of one stream."""

    token_ids: list[int] = field(default_factory=list)
    started: decode_pb2.StreamStarted | None = None
    finished: decode_pb2.StreamFinished | None = None
    error: decode_pb2.StreamError | None = None
    logprobs: list[generation_pb2.TokenLogprobs] = field(default_factory=list)


class FrontendSession:
    """A frontend's end of a session."""

    def __init__(self, worker: RunningWorker, epoch: int, frontend_id: str = "frontend-1") -> None:
        self.call = decode_pb2_grpc.DecodeServiceStub(worker.channel).Session()
        self._open = decode_pb2.OpenSession(frontend_id=frontend_id, epoch=epoch)
        self.streams: dict[int, StreamLog] = defaultdict(StreamLog)
        self.num_messages = 0
        self._news = asyncio.Event()
        self._reading: asyncio.Task[None] | None = None
        self.status: grpc.aio.AioRpcError | None = None
        self.lane = Lane(self._on_message, lambda: None)
        self._address = worker.address

    async def take_lane(self) -> None:
        """From now on messages go over the lane that the worker offers."""
        await connect_lane(self.lane, self._address, await self.call.initial_metadata())
        assert self.lane.is_open

    async def open(self) -> None:
        self._reading = asyncio.create_task(self._read())
        # A refusal may come before the write: it is the reader's to tell.
        with contextlib.suppress(grpc.aio.AioRpcError):
            await self.call.write(decode_pb2.SessionRequest(open=self._open))

    async def close(self) -> None:
        self.call.cancel()
        self.lane.close()
        if self._reading is not None:
            await asyncio.gather(self._reading, return_exceptions=True)

    async def submit(
        self,
        stream_id: int,
        wanted: generation_pb2.Generation,
        prefill: router_pb2.WorkerRef | None = None,
        timeout_ms: int = 0,
    ) -> None:
        submit = decode_pb2.Submit(
            stream_id=stream_id, generation=wanted, prefill=prefill, timeout_ms=timeout_ms
        )
        await self.write(decode_pb2.SessionRequest(submits=[submit]))

    async def cancel(self, stream_id: int) -> None:
        await self.write(decode_pb2.SessionRequest(cancelled_stream_ids=[stream_id]))

    async def write(self, request: decode_pb2.SessionRequest) -> None:
        """Say something."""
        if self.lane.is_open:
            self.lane.write(request.SerializeToString())
        else:
            await self.call.write(request)

    async def ended(self, stream_id: int) -> StreamLog:
        """Wait for the end of a stream."""
        return await self._until(lambda: self._has_ended(stream_id), stream_id)

    async def has_tokens(self, stream_id: int, count: int) -> StreamLog:
        """Wait for that many tokens."""
        return await self._until(lambda: len(self.streams[stream_id].token_ids) >= count, stream_id)

    async def over(self) -> grpc.aio.AioRpcError:
        """Wait for the end of the session, and say how it ended."""
        async with asyncio.timeout(10):
            assert self._reading is not None
            await self._reading
        assert self.status is not None
        return self.status

    def _has_ended(self, stream_id: int) -> bool:
        log = self.streams[stream_id]
        return log.finished is not None or log.error is not None

    async def _until(self, condition, stream_id: int) -> StreamLog:  # type: ignore[no-untyped-def]
        async with asyncio.timeout(10):
            while not condition():
                if self.status is not None:
                    raise self.status
                self._news.clear()
                await self._news.wait()
        return self.streams[stream_id]

    async def _read(self) -> None:
        try:
            async for response in self.call:
                self._take(response)
        except grpc.aio.AioRpcError as error:
            self.status = error
        except asyncio.CancelledError:
            pass
        finally:
            self._news.set()

    def _on_message(self, message: bytes) -> None:
        self._take(decode_pb2.SessionResponse.FromString(message))

    def _take(self, response: decode_pb2.SessionResponse) -> None:
        self.num_messages += 1
        counts = response.token_counts or [1] * len(response.stream_ids)
        tokens = iter(response.token_ids)
        for stream_id, count in zip(response.stream_ids, counts, strict=True):
            self.streams[stream_id].token_ids += itertools.islice(tokens, count)
        assert next(tokens, None) is None
        for column in response.logprobs:
            self.streams[column.stream_id].logprobs += column.tokens
        for event in response.events:
            kind = event.WhichOneof("event")
            setattr(self.streams[event.stream_id], kind, getattr(event, kind))
        self._news.set()


@contextlib.asynccontextmanager
async def session(
    worker: RunningWorker, frontend_id: str = "frontend-1", *, lane: bool = False
) -> AsyncIterator[FrontendSession]:
    """An open session with a worker."""
    opened = FrontendSession(worker, (await worker.ref()).epoch, frontend_id)
    await opened.open()
    try:
        if lane:
            await opened.take_lane()
        yield opened
    finally:
        await opened.close()


async def generate(
    worker: RunningWorker,
    wanted: generation_pb2.Generation,
    prefill: router_pb2.WorkerRef | None = None,
) -> StreamLog:
    """One request in a session of its own, to its end."""
    async with session(worker) as frontend:
        await frontend.submit(1, wanted, prefill)
        return await frontend.ended(1)


def is_role(card: cluster_pb2.WorkerCard, role: str) -> bool:
    """Whether a card says this role."""
    return cluster_pb2.Role.Name(card.role) == f"ROLE_{role.upper()}"
