"""An InferenceService that answers by script, in this process."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from types import SimpleNamespace

import grpc
import pytest
from google.protobuf import any_pb2, duration_pb2
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status
from tandem.v1 import generation_pb2, inference_pb2, inference_pb2_grpc


@dataclass(frozen=True)
class Fail:
    """End the call with a status."""

    code: grpc.StatusCode
    message: str = "scripted"
    retry_after_s: float | None = None
    request_id: str = ""


@dataclass(frozen=True)
class Hang:
    """Say nothing more until the client is gone."""


@dataclass(frozen=True)
class Piece:
    """A TextDelta with one token per character."""

    text: str
    logprob: float | None = None


@dataclass(frozen=True)
class Done:
    """The last message."""

    reason: int = generation_pb2.FINISH_REASON_STOP
    stop: str | None = None


Step = Fail | Hang | Piece | Done
ANSWER: tuple[Step, ...] = (Piece("Par"), Piece("is"), Done())


@dataclass
class Scripted(inference_pb2_grpc.InferenceServiceServicer):
    """Plays the next script with each call, the last one for ever; remembers what it saw."""

    scripts: list[tuple[Step, ...]] = field(default_factory=lambda: [ANSWER])
    requests: list[object] = field(default_factory=list)
    metadata: list[dict[str, str | bytes]] = field(default_factory=list)
    time_remaining_s: list[float] = field(default_factory=list)
    client_gone: threading.Event = field(default_factory=threading.Event)

    def Generate(self, request, context):  # noqa: N802 - gRPC names it so
        yield from self._play(request, context, inference_pb2.GenerateResponse)

    def Chat(self, request, context):  # noqa: N802 - gRPC names it so
        yield from self._play(request, context, inference_pb2.ChatResponse)

    def Tokenize(self, request, context):  # noqa: N802 - gRPC names it so
        list(self._play(request, context, inference_pb2.GenerateResponse))
        return inference_pb2.TokenizeResponse(token_ids=[ord(c) for c in request.text])

    def ListModels(self, request, context):  # noqa: N802 - gRPC names it so
        list(self._play(request, context, inference_pb2.GenerateResponse))
        return inference_pb2.ListModelsResponse(
            models=[inference_pb2.Model(id="tandem-tiny", max_context_tokens=64)]
        )

    def _play(self, request, context, response_type) -> Iterator[object]:
        self.requests.append(request)
        self.metadata.append(dict(context.invocation_metadata()))
        self.time_remaining_s.append(context.time_remaining())
        gone = threading.Event()
        context.add_callback(gone.set)
        script = self.scripts.pop(0) if len(self.scripts) > 1 else self.scripts[0]
        complete = False
        try:
            num_tokens = 0
            for step in script:
                match step:
                    case Piece(text, logprob):
                        num_tokens += len(text)
                        logprobs = (
                            []
                            if logprob is None
                            else [
                                generation_pb2.TokenLogprobs(
                                    logprob=logprob, top_token_ids=[7, 8], top_logprobs=[-1.0, -2.0]
                                )
                                for _ in text
                            ]
                        )
                        delta = inference_pb2.TextDelta(
                            text=text, token_ids=map(ord, text), logprobs=logprobs
                        )
                        yield response_type(request_id="req-1", delta=delta)
                    case Done(reason, stop):
                        usage = inference_pb2.Usage(
                            prompt_tokens=9, completion_tokens=num_tokens, cached_tokens=4
                        )
                        completed = inference_pb2.Completed(reason=reason, usage=usage, stop=stop)
                        yield response_type(request_id="req-1", completed=completed)
                    case Hang():
                        gone.wait(20)
                        return
                    case Fail():
                        _fail(context, step)
            complete = True
        finally:
            # gRPC drops the generator, wherever it is, when the client leaves.
            if not complete:
                self.client_gone.set()


def _fail(context: grpc.ServicerContext, fail: Fail) -> None:
    if fail.request_id:
        named = (("x-request-id", fail.request_id),)
        context.set_trailing_metadata(named)
        context.send_initial_metadata(named)
    if fail.retry_after_s is None:
        context.abort(fail.code, fail.message)
    detail = any_pb2.Any()
    nanos = round(fail.retry_after_s * 1e9)
    delay = duration_pb2.Duration(seconds=nanos // 10**9, nanos=nanos % 10**9)
    detail.Pack(error_details_pb2.RetryInfo(retry_delay=delay))
    status = status_pb2.Status(code=fail.code.value[0], message=fail.message, details=[detail])
    context.abort_with_status(rpc_status.to_status(status))


@pytest.fixture
def service() -> Scripted:
    return Scripted()


@pytest.fixture
def steps() -> SimpleNamespace:
    """What scripts are made of."""
    return SimpleNamespace(Fail=Fail, Hang=Hang, Piece=Piece, Done=Done, ANSWER=ANSWER)


@pytest.fixture
def address(service: Scripted) -> Iterator[str]:
    server = grpc.server(ThreadPoolExecutor(8), options=[("grpc.so_reuseport", 0)])
    inference_pb2_grpc.add_InferenceServiceServicer_to_server(service, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield f"127.0.0.1:{port}"
    server.stop(0.2).wait(5)
