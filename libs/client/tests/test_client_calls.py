"""Both clients against a scripted server: the same calls, the same answers, the same errors."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Callable, Coroutine
from typing import Any

import grpc
import pytest
import tandem_client as tc
from tandem.v1 import generation_pb2

QUICK = tc.RetryPolicy(first_backoff_s=0.01, max_backoff_s=0.02)
MODEL = "tandem-tiny"


class SyncCaller:
    """Calls through the sync client."""

    def __init__(self, address: str, **options: Any) -> None:
        self.client = tc.Client(address, **options)

    def call(self, name: str, *args: Any, **kwargs: Any) -> Any:
        return getattr(self.client, name)(*args, **kwargs)

    def stream(self, name: str, *args: Any, take: int | None = None, **kwargs: Any) -> Any:
        deltas = []
        with getattr(self.client, name)(*args, **kwargs) as stream:
            for delta in stream:
                deltas.append(delta)
                if len(deltas) == take:
                    break
        return deltas, stream

    def close(self) -> None:
        self.client.close()


class AsyncCaller:
    """Calls through the async client, from one event loop."""

    def __init__(self, address: str, **options: Any) -> None:
        self.runner = asyncio.Runner()
        self.client = tc.AsyncClient(address, **options)

    def call(self, name: str, *args: Any, **kwargs: Any) -> Any:
        return self.run(getattr(self.client, name)(*args, **kwargs))

    def stream(self, name: str, *args: Any, take: int | None = None, **kwargs: Any) -> Any:
        async def consume() -> Any:
            deltas = []
            async with getattr(self.client, name)(*args, **kwargs) as stream:
                async for delta in stream:
                    deltas.append(delta)
                    if len(deltas) == take:
                        break
            return deltas, stream

        return self.run(consume())

    def run(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        return self.runner.run(coroutine)

    def close(self) -> None:
        self.run(self.client.close())
        self.runner.close()


@pytest.fixture(params=[SyncCaller, AsyncCaller], ids=["sync", "async"])
def connect(request):
    callers = []

    def make(address: str, **options: Any) -> Any:
        callers.append(request.param(address, **{"retry": QUICK, **options}))
        return callers[-1]

    yield make
    for caller in callers:
        caller.close()


def test_a_chat_returns_the_whole_answer(connect, address, service):
    completion = connect(address).call("chat", "Where?", model=MODEL, temperature=0)
    assert completion == tc.Completion(
        text="Paris",
        token_ids=tuple(map(ord, "Paris")),
        finish_reason=tc.FinishReason.STOP,
        usage=tc.Usage(prompt_tokens=9, completion_tokens=5, cached_tokens=4),
        request_id="req-1",
    )
    (request,) = service.requests
    assert (request.model, request.messages[0].role, request.messages[0].content) == (MODEL, "user", "Where?")
    assert request.options.sampling.HasField("temperature")


def test_a_prompt_may_be_token_ids(connect, address, service):
    assert connect(address).call("generate", [1, 2, 3], model=MODEL, max_tokens=4).text == "Paris"
    (request,) = service.requests
    assert list(request.token_ids.ids) == [1, 2, 3]
    assert request.options.max_tokens == 4


def test_a_stream_gives_the_pieces_and_then_the_whole(connect, address):
    deltas, stream = connect(address).stream("stream_generate", "Where?", model=MODEL)
    assert [delta.text for delta in deltas] == ["Par", "is"]
    assert stream.completion.text == "Paris"
    assert stream.request_id == "req-1"


def test_logprobs_and_the_stop_string_are_reported(connect, address, service, steps):
    service.scripts = [(steps.Piece("ab", logprob=-0.5), steps.Done(stop="\n"))]
    completion = connect(address).call("generate", "x", model=MODEL, logprobs=2, stop="\n")
    assert completion.stop == "\n"
    top = (tc.TopToken(token_id=7, logprob=-1.0), tc.TopToken(token_id=8, logprob=-2.0))
    assert completion.logprobs == (tc.TokenLogprobs(logprob=-0.5, top=top),) * 2


def test_tokenize_and_list_models(connect, address):
    caller = connect(address)
    assert caller.call("tokenize", "ab", model=MODEL) == (97, 98)
    assert caller.call("list_models") == (tc.Model(id="tandem-tiny", max_context_tokens=64),)


def test_the_api_key_and_the_deadline_travel_with_the_call(connect, address, service):
    caller = connect(address, api_key="sk-1", timeout=tc.Timeouts(total_s=77))
    caller.call("chat", "x", model=MODEL)
    assert service.metadata[0]["authorization"] == "Bearer sk-1"
    assert 70 < service.time_remaining_s[0] < 78  # gRPC rounds it up


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (grpc.StatusCode.INVALID_ARGUMENT, tc.InvalidRequest),
        (grpc.StatusCode.NOT_FOUND, tc.NotFound),
        (grpc.StatusCode.UNAUTHENTICATED, tc.Unauthenticated),
        (grpc.StatusCode.PERMISSION_DENIED, tc.PermissionDenied),
        (grpc.StatusCode.FAILED_PRECONDITION, tc.Conflict),
        (grpc.StatusCode.DEADLINE_EXCEEDED, tc.DeadlineExceeded),
        (grpc.StatusCode.CANCELLED, tc.Cancelled),
        (grpc.StatusCode.INTERNAL, tc.ServerError),
        (grpc.StatusCode.DATA_LOSS, tc.ServerError),
    ],
)
def test_a_status_becomes_its_error_and_is_not_tried_again(connect, address, service, steps, code, kind):
    service.scripts = [(steps.Fail(code, "no such thing", request_id="req-9"),)]
    with pytest.raises(tc.TandemError) as caught:
        connect(address).call("chat", "x", model=MODEL)
    assert type(caught.value) is kind
    if code is not grpc.StatusCode.CANCELLED or caught.value.request_id:
        assert (caught.value.message, caught.value.request_id) == ("no such thing", "req-9")
    assert len(service.requests) == 1


def test_unavailable_is_tried_again_before_the_first_response(connect, address, service, steps):
    service.scripts = [
        (steps.Fail(grpc.StatusCode.UNAVAILABLE),),
        (steps.Fail(grpc.StatusCode.UNAVAILABLE),),
        steps.ANSWER,
    ]
    assert connect(address).call("chat", "x", model=MODEL).text == "Paris"
    assert len(service.requests) == 3


def test_attempts_are_bounded(connect, address, service, steps):
    service.scripts = [(steps.Fail(grpc.StatusCode.UNAVAILABLE),)]
    with pytest.raises(tc.Unavailable):
        connect(address).call("chat", "x", model=MODEL)
    assert len(service.requests) == QUICK.max_attempts


def test_an_answer_that_has_begun_is_never_tried_again(connect, address, service, steps):
    service.scripts = [(steps.Piece("Par"), steps.Fail(grpc.StatusCode.UNAVAILABLE)), steps.ANSWER]
    with pytest.raises(tc.Unavailable) as caught:
        connect(address).call("chat", "x", model=MODEL)
    assert caught.value.request_id == "req-1"
    assert len(service.requests) == 1


def test_overload_waits_as_long_as_the_server_says(connect, address, service, steps):
    service.scripts = [(steps.Fail(grpc.StatusCode.RESOURCE_EXHAUSTED, retry_after_s=0.6),), steps.ANSWER]
    started_s = time.monotonic()
    assert connect(address).call("chat", "x", model=MODEL).text == "Paris"
    assert time.monotonic() - started_s >= 0.6


def test_overload_without_advice_or_with_far_off_advice_is_the_callers_to_handle(
    connect, address, service, steps
):
    service.scripts = [
        (steps.Fail(grpc.StatusCode.RESOURCE_EXHAUSTED),),
        (steps.Fail(grpc.StatusCode.RESOURCE_EXHAUSTED, retry_after_s=90.25),),
        steps.ANSWER,
    ]
    caller = connect(address)
    with pytest.raises(tc.Overloaded) as without:
        caller.call("chat", "x", model=MODEL)
    with pytest.raises(tc.Overloaded) as far_off:
        caller.call("chat", "x", model=MODEL)
    assert (without.value.retry_after_s, far_off.value.retry_after_s) == (None, 90.25)


def test_idempotent_calls_are_tried_again_after_more_kinds_of_errors(connect, address, service, steps):
    service.scripts = [
        (steps.Fail(grpc.StatusCode.RESOURCE_EXHAUSTED),),
        (steps.Fail(grpc.StatusCode.INTERNAL),),
        (),
    ]
    assert connect(address).call("tokenize", "a", model=MODEL) == (97,)
    assert len(service.requests) == 3


def test_leaving_a_stream_early_cancels_the_call_on_the_server(connect, address, service, steps):
    service.scripts = [(steps.Piece("a"), steps.Piece("b"), steps.Hang())]
    deltas, stream = connect(address).stream("stream_chat", "x", model=MODEL, take=2)
    assert len(deltas) == 2
    assert service.client_gone.wait(5)
    with pytest.raises(tc.ServerError, match="not complete"):
        _ = stream.completion


@pytest.mark.parametrize(
    ("script", "timeouts", "named"),
    [
        ((), {"first_token_s": 0.5}, "first_token_s"),
        (("a",), {"between_tokens_s": 0.5}, "between_tokens_s"),
    ],
)
def test_a_silent_server_is_given_up_and_told_so(connect, address, service, steps, script, timeouts, named):
    service.scripts = [(*(steps.Piece(text) for text in script), steps.Hang())]
    with pytest.raises(tc.DeadlineExceeded, match=named):
        connect(address, timeout=tc.Timeouts(**timeouts)).call("chat", "x", model=MODEL)
    assert service.client_gone.wait(5)
    assert len(service.requests) == 1


def test_the_total_time_is_the_servers_deadline(connect, address, service, steps):
    service.scripts = [(steps.Piece("a"), steps.Hang())]
    with pytest.raises(tc.DeadlineExceeded):
        connect(address, timeout=tc.Timeouts(total_s=0.5)).call("chat", "x", model=MODEL)
    assert service.client_gone.wait(5)


def test_a_stream_that_ends_too_early_is_an_error(connect, address, service, steps):
    service.scripts = [(steps.Piece("a"),)]
    with pytest.raises(tc.ServerError, match="before it was complete"):
        connect(address).call("chat", "x", model=MODEL)


def test_a_failure_after_the_last_message_does_not_spoil_the_answer(connect, address, service, steps):
    service.scripts = [(*steps.ANSWER, steps.Fail(grpc.StatusCode.UNAVAILABLE))]
    assert connect(address).call("chat", "x", model=MODEL).text == "Paris"


def test_an_unknown_finish_reason_is_an_error(connect, address, service, steps):
    service.scripts = [(steps.Done(reason=generation_pb2.FINISH_REASON_UNSPECIFIED),)]
    with pytest.raises(tc.ServerError, match="does not know"):
        connect(address).call("chat", "x", model=MODEL)


def test_nobody_listening_is_unavailable(connect):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with pytest.raises(tc.Unavailable):
        connect(f"127.0.0.1:{port}").call("list_models")


def test_connecting_is_given_up_after_its_own_timeout(connect):
    # The kernel accepts the connection, and nobody ever speaks HTTP/2 on it.
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = f"127.0.0.1:{listener.getsockname()[1]}"
        caller = connect(address, timeout=tc.Timeouts(connect_s=0.5), retry=tc.RetryPolicy(max_attempts=1))
        started_s = time.monotonic()
        with pytest.raises(tc.Unavailable):
            caller.call("chat", "x", model=MODEL)
        assert time.monotonic() - started_s < 10


def test_a_dropped_sync_stream_cancels_its_call(address, service, steps):
    service.scripts = [(steps.Piece("a"), steps.Hang())]
    with tc.Client(address) as client:
        stream = client.stream_chat("x", model=MODEL)
        next(stream)
        del stream
        assert service.client_gone.wait(5)


def test_closing_a_sync_stream_from_another_thread_ends_its_iteration(address, service, steps):
    service.scripts = [(steps.Piece("a"), steps.Hang())]
    with tc.Client(address) as client, client.stream_chat("x", model=MODEL) as stream:
        next(stream)
        timer = threading.Timer(0.1, stream.close)
        timer.start()
        assert list(stream) == []
        timer.join()


async def test_cancelling_the_task_cancels_the_call_on_the_server(address, service, steps):
    service.scripts = [(steps.Piece("a"), steps.Hang())]
    async with tc.AsyncClient(address) as client:
        begun = asyncio.Event()

        async def consume() -> None:
            async with client.stream_chat("x", model=MODEL) as stream:
                async for _ in stream:
                    begun.set()

        task = asyncio.create_task(consume())
        await asyncio.wait_for(begun.wait(), 5)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await asyncio.to_thread(service.client_gone.wait, 5)


async def test_closing_an_async_stream_from_another_task_ends_its_iteration(address, service, steps):
    service.scripts = [(steps.Piece("a"), steps.Hang())]
    async with tc.AsyncClient(address) as client:
        stream = client.stream_chat("x", model=MODEL)
        await anext(stream)
        reader = asyncio.create_task(anext(stream, None))
        await asyncio.sleep(0.05)
        await stream.close()
        assert await asyncio.wait_for(reader, 5) is None


async def test_many_streams_of_one_client_do_not_mix(address):
    async with tc.AsyncClient(address) as client:
        answers: list[Callable[[], Any]] = await asyncio.gather(
            *(client.generate(f"prompt {i}", model=MODEL) for i in range(8))
        )
        assert {answer.text for answer in answers} == {"Paris"}
