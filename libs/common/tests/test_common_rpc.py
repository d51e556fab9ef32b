import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from tandem.v1 import decode_pb2, decode_pb2_grpc, worker_pb2, worker_pb2_grpc
from tandem_common.config import ConfigError
from tandem_common.errors import Conflict, InvalidRequest, Overloaded, TandemError
from tandem_common.logs import bound_request_id
from tandem_common.rpc import RpcServer, error_from_rpc, open_channel, outgoing_metadata

WORKER, DECODE = "tandem.v1.WorkerService", "tandem.v1.DecodeService"


class Worker(worker_pb2_grpc.WorkerServiceServicer):
    def __init__(self, error: Exception | None = None) -> None:
        self.error = error
        self.seen = "nothing"

    async def GetState(self, request: Any, context: Any) -> worker_pb2.GetStateResponse:  # noqa: N802
        self.seen = bound_request_id()
        if self.error is not None:
            raise self.error
        return worker_pb2.GetStateResponse(num_sessions=7)


class Decode(decode_pb2_grpc.DecodeServiceServicer):
    ended = False

    async def Session(self, requests: Any, context: Any) -> AsyncIterator[decode_pb2.SessionResponse]:  # noqa: N802
        try:
            async for request in requests:
                if request.WhichOneof("command") != "open":
                    raise Conflict("open first")
                yield decode_pb2.SessionResponse(stream_ids=[1])
        finally:
            self.ended = True


@asynccontextmanager
async def serving(worker: Worker, decode: Decode | None = None) -> AsyncIterator[grpc.aio.Channel]:
    server = RpcServer([WORKER, DECODE])
    worker_pb2_grpc.add_WorkerServiceServicer_to_server(worker, server.server)
    decode_pb2_grpc.add_DecodeServiceServicer_to_server(decode or Decode(), server.server)
    port = await server.start("127.0.0.1", 0)
    await server.set_serving(True)
    try:
        async with open_channel(f"127.0.0.1:{port}") as channel:
            yield channel
    finally:
        await server.stop(0)


async def get_state(channel: grpc.aio.Channel, **options: Any) -> worker_pb2.GetStateResponse:
    call = worker_pb2_grpc.WorkerServiceStub(channel).GetState  # type: ignore[no-untyped-call]
    response: worker_pb2.GetStateResponse = await call(worker_pb2.GetStateRequest(), timeout=5, **options)
    return response


async def failure(channel: grpc.aio.Channel) -> tuple[grpc.aio.AioRpcError, TandemError]:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await get_state(channel)
    return caught.value, error_from_rpc(caught.value)


async def test_an_error_of_ours_arrives_as_itself_with_the_time_to_retry() -> None:
    async with serving(Worker(Overloaded("busy", retry_after_ms=1500))) as channel:
        _, error = await failure(channel)
    assert isinstance(error, Overloaded)
    assert (error.message, error.retry_after_ms) == ("busy", 1500)


async def test_an_unexpected_exception_tells_the_caller_nothing() -> None:
    async with serving(Worker(ValueError("/etc/secret 0x7f"))) as channel:
        raw, _ = await failure(channel)
    assert (raw.code(), raw.details()) == (grpc.StatusCode.INTERNAL, "internal error")


async def test_a_message_that_does_not_parse_is_the_callers_fault() -> None:
    async with serving(Worker()) as channel:
        raw_call = channel.unary_unary(
            f"/{WORKER}/GetState", request_serializer=None, response_deserializer=None
        )
        for garbage in (b"\xff\xff\xff", b"\x0a\xff"):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await raw_call(garbage, timeout=5)
            assert isinstance(error_from_rpc(caught.value), InvalidRequest)
        assert (await get_state(channel)).num_sessions == 7


async def test_a_malformed_message_in_a_stream_ends_that_stream_only() -> None:
    decode = Decode()
    async with serving(Worker(), decode) as channel:
        call = channel.stream_stream(
            f"/{DECODE}/Session", request_serializer=None, response_deserializer=None
        )()
        await call.write(decode_pb2.SessionRequest(open=decode_pb2.OpenSession()).SerializeToString())
        assert await call.read()
        await call.write(b"\xff\xff\xff")
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            while await call.read() is not grpc.aio.EOF:
                pass
        assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
        assert (await get_state(channel)).num_sessions == 7
    assert decode.ended


async def test_a_cancelled_stream_runs_the_handlers_clean_up() -> None:
    decode = Decode()
    async with serving(Worker(), decode) as channel:
        call = decode_pb2_grpc.DecodeServiceStub(channel).Session()  # type: ignore[no-untyped-call]
        await call.write(decode_pb2.SessionRequest(open=decode_pb2.OpenSession()))
        assert (await call.read()).stream_ids == [1]
        call.cancel()
        async with asyncio.timeout(5):
            while not decode.ended:
                await asyncio.sleep(0.01)


async def test_an_error_in_a_stream_keeps_its_meaning() -> None:
    async with serving(Worker()) as channel:
        call = decode_pb2_grpc.DecodeServiceStub(channel).Session()  # type: ignore[no-untyped-call]
        await call.write(decode_pb2.SessionRequest())
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call.read()
    assert isinstance(error_from_rpc(caught.value), Conflict)


async def test_the_request_id_reaches_the_logs_of_the_callee_and_a_forged_one_does_not() -> None:
    worker = Worker()
    async with serving(worker) as channel:
        await get_state(channel, metadata=outgoing_metadata("req-1"))
        assert worker.seen == "req-1"
        await get_state(channel, metadata=(("x-request-id", "host:port; rm -rf"),))
        assert worker.seen == ""


async def test_a_caller_can_wait_for_health() -> None:
    async with serving(Worker()) as channel:
        check = health_pb2_grpc.HealthStub(channel).Check
        response = await check(health_pb2.HealthCheckRequest(service=WORKER), timeout=5)
    assert response.status == health_pb2.HealthCheckResponse.SERVING


async def test_a_port_in_use_is_a_configuration_error() -> None:
    first, second = RpcServer([]), RpcServer([])
    port = await first.start("127.0.0.1", 0)
    with pytest.raises(ConfigError, match="another program"):
        await second.start("127.0.0.1", port)
    await first.stop(0)
    await second.stop(0)


async def test_nobody_listening_is_unavailable() -> None:
    async with open_channel("127.0.0.1:1") as channel:
        _, error = await failure(channel)
    assert error.code == grpc.StatusCode.UNAVAILABLE
    assert error.retryable
