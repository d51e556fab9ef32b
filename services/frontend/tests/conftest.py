"""A frontend in this process, with real gRPC workers and routers whose answers are scripted."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from prometheus_client import CollectorRegistry
from tandem.v1 import cluster_pb2, decode_pb2, decode_pb2_grpc, generation_pb2, router_pb2, router_pb2_grpc
from tandem_common.errors import TandemError, Unavailable
from tandem_common.keys import Keys
from tandem_common.lane import Lane, LaneServer
from tandem_common.model_source import model_revision
from tandem_common.redis_client import connect
from tandem_common.registry import WorkerPublisher
from tandem_common.rpc import RpcServer, open_channel
from tandem_common.token_ids import unpack_token_ids
from tandem_frontend.api_keys import ApiKeys
from tandem_frontend.config import FrontendConfig
from tandem_frontend.frontend import Frontend
from tandem_frontend.frontend_metrics import FrontendMetrics
from tandem_frontend.models import LocalModel
from tandem_frontend.tokenizer import ModelTokenizer

MODEL_DIR = Path(__file__).parents[3] / "models" / "tandem-tiny"
ANSWER = "Once upon a time a small fox met 🦊 an old owl. They talked until the sun went down over the hill."


@dataclass
class Worker(decode_pb2_grpc.DecodeServiceServicer):
    """A decode worker that writes `answer` token by token, one step every `step_s`, for all its streams."""

    worker_id: str
    answer: Sequence[int]
    epoch: int = 1
    step_s: float = 0.002
    tokens_per_step: int = 1
    num_cached_tokens: int = 0
    # After so many tokens of a stream, counted here:
    end_session_after: int | None = None
    hang_after: int | None = None
    fail_after: tuple[int, decode_pb2.StreamError] | None = None
    stop_reason: int = generation_pb2.FINISH_REASON_STOP
    submits: list[decode_pb2.Submit] = field(default_factory=list)
    cancelled: list[int] = field(default_factory=list)
    opened: list[decode_pb2.OpenSession] = field(default_factory=list)
    live: dict[int, list[Any]] = field(default_factory=dict)  # stream id → [submit, next index, sent here]
    port: int = 0
    rpc: RpcServer | None = None
    lanes: LaneServer | None = None  # offers one to each session
    lane: Lane | None = None  # of the last session
    num_over_grpc: int = 0  # messages that came so

    async def start(self) -> None:
        self.rpc = RpcServer(["tandem.v1.DecodeService"])
        decode_pb2_grpc.add_DecodeServiceServicer_to_server(self, self.rpc.server)
        self.port = await self.rpc.start("127.0.0.1", self.port)

    async def stop(self) -> None:
        assert self.rpc is not None
        await self.rpc.stop(0)
        if self.lanes is not None:
            await self.lanes.close()

    @property
    def ref(self) -> router_pb2.WorkerRef:
        return router_pb2.WorkerRef(
            worker_id=self.worker_id, epoch=self.epoch, address=f"127.0.0.1:{self.port}"
        )

    def card(self, revision: str, **changes: Any) -> cluster_pb2.WorkerCard:
        fields: dict[str, Any] = {
            "worker_id": self.worker_id,
            "epoch": self.epoch,
            "address": f"127.0.0.1:{self.port}",
            "model": "tandem-tiny",
            "model_revision": revision,
            "role": cluster_pb2.ROLE_DECODE,
            "status": cluster_pb2.WORKER_STATUS_SERVING,
            "block_size": 16,
            "num_blocks": 64,
            "max_context_tokens": 512,
            "vocab_size": 4096,
        }
        return cluster_pb2.WorkerCard(**(fields | changes))

    async def Session(  # noqa: N802
        self, requests: Any, context: Any
    ) -> AsyncIterator[decode_pb2.SessionResponse]:
        lane = self.lane = Lane(self._on_message, lambda: None)
        await context.send_initial_metadata(await self.lanes.offer(lane) if self.lanes else ())
        reader = asyncio.create_task(self._read(requests))
        try:
            while True:
                await asyncio.sleep(self.step_s)
                response, die = self._step()
                if response.stream_ids or response.events:
                    if lane.is_open:
                        lane.write(response.SerializeToString())
                    else:
                        yield response
                if die:
                    raise Unavailable("scripted end")
        finally:
            reader.cancel()
            lane.close()
            self.live.clear()

    async def _read(self, requests: Any) -> None:
        async for request in requests:
            self.num_over_grpc += 1
            self._apply(request)

    def _on_message(self, message: bytes) -> None:
        self._apply(decode_pb2.SessionRequest.FromString(message))

    def _apply(self, request: decode_pb2.SessionRequest) -> None:
        if request.HasField("open"):
            self.opened.append(request.open)
        for submit in request.submits:
            self.submits.append(submit)
            generation = submit.generation
            resumed = len(unpack_token_ids(generation.token_ids)) - generation.num_prompt_tokens
            self.live[submit.stream_id] = [submit, resumed, 0]
        for stream_id in request.cancelled_stream_ids:
            self.cancelled.append(stream_id)
            self.live.pop(stream_id, None)

    def _step(self) -> tuple[decode_pb2.SessionResponse, bool]:
        response = decode_pb2.SessionResponse()
        for stream_id, (submit, index, sent) in list(self.live.items()):
            generation = submit.generation
            if self.end_session_after is not None and sent >= self.end_session_after:
                return response, True
            if self.hang_after is not None and sent >= self.hang_after:
                continue
            if self.fail_after is not None and sent >= self.fail_after[0]:
                response.events.add(stream_id=stream_id, error=self.fail_after[1])
                del self.live[stream_id]
                continue
            stop_at = min(len(self.answer), generation.stopping.max_tokens)
            new = self.answer[index : min(stop_at, index + self.tokens_per_step)]
            if new:
                response.stream_ids.append(stream_id)
                response.token_ids.extend(new)
                if self.tokens_per_step > 1:
                    response.token_counts.append(len(new))
                if generation.sampling.HasField("logprobs"):
                    entries = [self._logprobs(token, generation.sampling.logprobs) for token in new]
                    response.logprobs.add(stream_id=stream_id, tokens=entries)
                self.live[stream_id] = [submit, index + len(new), sent + len(new)]
            if sent == 0:
                started = decode_pb2.StreamStarted(
                    num_cached_tokens=self.num_cached_tokens, prefill_worker_id=self.worker_id
                )
                response.events.add(stream_id=stream_id, started=started)
            if index + len(new) >= stop_at:
                reason = (
                    self.stop_reason if stop_at == len(self.answer) else generation_pb2.FINISH_REASON_LENGTH
                )
                response.events.add(stream_id=stream_id, finished=decode_pb2.StreamFinished(reason=reason))
                del self.live[stream_id]
        return response, False

    def _logprobs(self, token_id: int, num_top: int) -> generation_pb2.TokenLogprobs:
        return generation_pb2.TokenLogprobs(
            logprob=-0.5,
            top_token_ids=[(token_id + i) % 4096 for i in range(num_top)],
            top_logprobs=[-0.5 - i for i in range(num_top)],
        )


@dataclass
class Router(router_pb2_grpc.RouterServiceServicer):
    """A router that sends every request to the first worker that is not excluded."""

    workers: list[Worker]
    error: TandemError | None = None
    delay_s: float = 0.0
    queries: list[router_pb2.RouteQuery] = field(default_factory=list)
    port: int = 0
    rpc: RpcServer | None = None

    async def start(self) -> None:
        self.rpc = RpcServer(["tandem.v1.RouterService"])
        router_pb2_grpc.add_RouterServiceServicer_to_server(self, self.rpc.server)
        self.port = await self.rpc.start("127.0.0.1", self.port)

    async def stop(self) -> None:
        assert self.rpc is not None
        await self.rpc.stop(0)

    async def RouteStream(  # noqa: N802
        self, requests: AsyncIterator[router_pb2.RouteStreamRequest], context: Any
    ) -> AsyncIterator[router_pb2.RouteStreamResponse]:
        async for request in requests:
            for call in request.calls:
                self.queries.append(call.query)
                await asyncio.sleep(self.delay_s)
                yield router_pb2.RouteStreamResponse(answers=[self._answer(call)])

    def _answer(self, call: router_pb2.RouteCall) -> router_pb2.RouteAnswer:
        error = self.error
        for worker in self.workers if error is None else ():
            if worker.worker_id not in call.query.excluded_worker_ids:
                route = router_pb2.RouteResponse(decode=worker.ref)
                return router_pb2.RouteAnswer(call_id=call.call_id, route=route)
        error = error or Unavailable("all workers are excluded")
        failure = router_pb2.RouteFailure(
            code=error.code.value[0], message=error.message, retry_after_ms=error.retry_after_ms
        )
        return router_pb2.RouteAnswer(call_id=call.call_id, failure=failure)


class System:
    """A frontend and what it talks to."""

    def __init__(self, redis_url: str, local: LocalModel, stack: contextlib.AsyncExitStack) -> None:
        self.redis_url = redis_url
        self.local = local
        self.workers: list[Worker] = []
        self.routers: list[Router] = []
        self.registry = CollectorRegistry()
        self.answer = local.tokenizer.encode_text(ANSWER).tolist()
        self._stack = stack
        self._redis = connect(redis_url)
        stack.push_async_callback(self._redis.aclose)
        self._publisher = WorkerPublisher(self._redis, Keys("test"), 60)

    async def add_worker(self, worker_id: str, **script: Any) -> Worker:
        worker = Worker(worker_id=worker_id, **({"answer": self.answer} | script))
        await worker.start()
        self._stack.push_async_callback(worker.stop)
        await self.register(worker)
        self.workers.append(worker)
        return worker

    async def register(self, worker: Worker, **changes: Any) -> None:
        card = worker.card(self.local.revision, **changes)
        await self._publisher.publish(
            card, cluster_pb2.WorkerBeat(worker_id=worker.worker_id, epoch=worker.epoch)
        )

    async def unregister(self, worker: Worker) -> None:
        await self._publisher.remove(worker.worker_id)

    async def add_router(self, **script: Any) -> Router:
        router = Router(workers=self.workers, **script)
        await router.start()
        self._stack.push_async_callback(router.stop)
        self.routers.append(router)
        return router

    async def start(self, *, keys: ApiKeys | None = None, ready: bool = True, **settings: Any) -> None:
        defaults = {
            "model": "tandem-tiny",
            "redis_url": self.redis_url,
            "cluster": "test",
            "cluster_secret": "not a secret, only a test",
            "http_port": 0,
            "routers": tuple(f"127.0.0.1:{router.port}" for router in self.routers),
            "drain_timeout_s": 5.0,
        }
        config = FrontendConfig(**(defaults | settings))
        self.frontend = Frontend(
            config, self.local, keys or ApiKeys({}), self._redis, FrontendMetrics(self.registry)
        )
        await self.frontend.start()
        self._stack.push_async_callback(self.frontend.stop)
        work = asyncio.create_task(self.frontend.run(0))

        async def end() -> None:
            work.cancel()
            await asyncio.gather(work, return_exceptions=True)

        self._stack.push_async_callback(end)
        self.url = f"http://127.0.0.1:{self.frontend.http_port}"
        self.http = await self._stack.enter_async_context(aiohttp.ClientSession(self.url))
        self.channel = await self._stack.enter_async_context(open_channel(f"127.0.0.1:{self.frontend.port}"))
        if ready:
            await self.until(lambda: self.frontend.health.report().ready)

    async def until(self, condition: Callable[[], bool], timeout_s: float = 10.0) -> None:
        async with asyncio.timeout(timeout_s):
            while not condition():
                await asyncio.sleep(0.01)

    def metric(self, name: str, **labels: str) -> float:
        return self.registry.get_sample_value(f"tandem_frontend_{name}", labels) or 0.0

    def check_quiet(self) -> None:
        """Nothing is left of any request, here or at the workers."""
        assert self.frontend.health.report().num_open_requests == 0
        assert [worker.live for worker in self.workers] == [{}] * len(self.workers)
        sessions = self.frontend._sessions._sessions.values()
        assert sum(session.num_streams for session in sessions) == 0


@pytest.fixture(scope="session")
def model_dir() -> Path:
    return MODEL_DIR


@pytest.fixture(scope="session")
def local_model() -> LocalModel:
    return LocalModel(
        name="tandem-tiny", revision=model_revision(MODEL_DIR), tokenizer=ModelTokenizer(MODEL_DIR)
    )


@pytest.fixture
def answer() -> str:
    """What every scripted worker writes."""
    return ANSWER


@pytest.fixture
async def system(redis_url: str, local_model: LocalModel) -> AsyncIterator[System]:
    """Not started: add workers and routers, then `await system.start()`."""
    async with contextlib.AsyncExitStack() as stack:
        yield System(redis_url, local_model, stack)
