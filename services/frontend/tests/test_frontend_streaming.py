"""The whole frontend against scripted workers: streams, migration, cancelling, draining."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import aiohttp
import pytest
from tandem.v1 import cluster_pb2, decode_pb2, generation_pb2, inference_pb2, inference_pb2_grpc
from tandem_common.errors import Overloaded
from tandem_common.token_ids import unpack_token_ids

CHAT = {"model": "tandem-tiny", "messages": [{"role": "user", "content": "Tell me a story."}]}


async def events(response: aiohttp.ClientResponse) -> list[Any]:
    """All events of a stream; the last one is "[DONE]" when it ended well."""
    seen: list[Any] = []
    async for line in response.content:
        text = line.decode().strip()
        if text:
            assert text.startswith("data: ")
            data = text.removeprefix("data: ")
            seen.append(data if data == "[DONE]" else json.loads(data))
    return seen


def text_of(chunks: list[Any]) -> str:
    return "".join(
        choice["delta"].get("content") or ""
        for chunk in chunks
        if chunk != "[DONE]"
        for choice in chunk["choices"]
    )


async def stream_chat(system: Any, **fields: Any) -> list[Any]:
    async with system.http.post("/v1/chat/completions", json=CHAT | {"stream": True} | fields) as response:
        assert response.status == 200, await response.text()
        assert response.headers["X-Request-Id"].startswith("req-")
        return await events(response)


async def test_a_chat_streams_its_text_and_ends_with_done(system, answer):
    await system.add_worker("w1", num_cached_tokens=3)
    await system.start()
    chunks = await stream_chat(system, stream_options={"include_usage": True})
    assert chunks[-1] == "[DONE]"
    assert chunks[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert text_of(chunks) == answer
    assert chunks[-3]["choices"][0]["finish_reason"] == "stop"
    usage = chunks[-2]["usage"]
    assert chunks[-2]["choices"] == []
    assert usage["completion_tokens"] == len(system.answer)
    assert usage["prompt_tokens_details"] == {"cached_tokens": 3}
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
    await system.until(lambda: not system.workers[0].live)
    system.check_quiet()


async def test_a_chat_can_be_had_whole(system, answer):
    await system.add_worker("w1")
    await system.start()
    async with system.http.post("/v1/chat/completions", json=CHAT | {"max_tokens": 7}) as response:
        body = await response.json()
    choice = body["choices"][0]
    assert body["object"] == "chat.completion"
    assert choice["finish_reason"] == "length"
    assert answer.startswith(choice["message"]["content"])
    assert body["usage"]["completion_tokens"] == 7
    submit = system.workers[0].submits[-1]
    assert submit.generation.stopping.max_tokens == 7
    assert submit.generation.sampling.HasField("seed")
    assert submit.generation.request_id == response.headers["X-Request-Id"]


async def test_a_completion_has_sixteen_tokens_unless_told_otherwise(system):
    await system.add_worker("w1")
    await system.start()
    body = {"model": "tandem-tiny", "prompt": "Once"}
    async with system.http.post("/v1/completions", json=body) as response:
        assert (await response.json())["usage"]["completion_tokens"] == 16


async def test_several_prompts_and_answers_come_as_choices_with_seeds_of_their_own(system):
    await system.add_worker("w1")
    await system.start()
    body = {"model": "tandem-tiny", "prompt": ["One", "Two"], "n": 2, "max_tokens": 3, "seed": 5}
    async with system.http.post("/v1/completions", json=body) as response:
        answered = await response.json()
    assert [choice["index"] for choice in answered["choices"]] == [0, 1, 2, 3]
    assert answered["usage"]["completion_tokens"] == 12
    generations = [submit.generation for submit in system.workers[0].submits[-4:]]
    assert [generation.sampling.seed for generation in generations] == [5, 6, 5, 6]
    assert len({generation.request_id for generation in generations}) == 4
    prompt_tokens = sum(generation.num_prompt_tokens for generation in generations[::2])
    assert answered["usage"]["prompt_tokens"] == prompt_tokens


async def test_a_streamed_completion_of_two_prompts_interleaves_its_choices(system, answer):
    await system.add_worker("w1")
    await system.start()
    body = {"model": "tandem-tiny", "prompt": ["One", "Two"], "stream": True, "max_tokens": 5}
    async with system.http.post("/v1/completions", json=body) as response:
        chunks = await events(response)
    assert chunks[-1] == "[DONE]"
    texts = {0: "", 1: ""}
    reasons = {}
    for chunk in chunks[:-1]:
        (choice,) = chunk["choices"]
        texts[choice["index"]] += choice["text"]
        reasons[choice["index"]] = choice["finish_reason"] or reasons.get(choice["index"])
    assert texts[0] == texts[1] != ""
    assert answer.startswith(texts[0])
    assert reasons == {0: "length", 1: "length"}


async def test_several_tokens_in_one_step_are_one_event(system, answer):
    await system.add_worker("w1", tokens_per_step=4)
    await system.start()
    chunks = await stream_chat(system)
    assert text_of(chunks) == answer
    assert len(chunks) < 4 + len(system.answer) / 4 + 1


async def test_a_stop_string_ends_the_text_before_it_and_stops_the_worker(system, answer):
    worker = await system.add_worker("w1", step_s=0.01)
    await system.start()
    chunks = await stream_chat(system, stop=["old owl", "never"])
    assert text_of(chunks) == answer.partition("old owl")[0]
    assert chunks[-2]["choices"][0]["finish_reason"] == "stop"
    await system.until(lambda: len(worker.cancelled) == 1)
    await system.until(lambda: not worker.live)
    system.check_quiet()


@pytest.mark.parametrize("trouble", ["end_session_after", "hang_after"])
async def test_a_request_goes_on_on_another_worker_with_exactly_the_same_text(system, answer, trouble):
    await system.add_worker("w1", **{trouble: 4})
    good = await system.add_worker("w2")
    router = await system.add_router()
    await system.start(token_timeout_s=0.3)
    assert text_of(await stream_chat(system)) == answer
    resumed = good.submits[-1].generation
    assert unpack_token_ids(resumed.token_ids).tolist()[resumed.num_prompt_tokens :] == system.answer[:4]
    assert list(router.queries[-1].excluded_worker_ids) == ["w1"]
    assert router.queries[-1].request_id == resumed.request_id
    first = system.workers[0].submits[-1].generation
    assert (first.sampling, first.stopping) == (resumed.sampling, resumed.stopping)
    assert system.metric("migrations_total") == 1


async def test_a_retryable_error_moves_the_request_and_others_do_not(system, answer):
    bad = await system.add_worker("w1")
    await system.add_worker("w2")
    await system.add_router()
    await system.start()
    bad.fail_after = (2, decode_pb2.StreamError(code=14, message="draining", retryable=True))
    assert text_of(await stream_chat(system)) == answer
    bad.fail_after = (2, decode_pb2.StreamError(code=3, message="not that one", retryable=False))
    chunks = await stream_chat(system)
    assert chunks[-1]["error"]["message"] == "not that one"
    assert chunks[-1]["error"]["type"] == "invalid_request_error"


async def test_a_worker_that_dies_without_another_ends_the_stream_with_an_error(system):
    worker = await system.add_worker("w1", step_s=0.02)
    await system.start()
    worker.end_session_after = 3
    chunks = await stream_chat(system)
    assert chunks[-1]["error"]["type"] == "service_unavailable_error"


async def test_an_error_before_the_first_token_has_a_status_of_its_own(system):
    worker = await system.add_worker("w1")
    await system.start()
    worker.fail_after = (
        0,
        decode_pb2.StreamError(code=8, message="full", retryable=False, retry_after_ms=2500),
    )
    async with system.http.post("/v1/chat/completions", json=CHAT | {"stream": True}) as response:
        body = await response.json()
        assert (response.status, response.headers["Retry-After"]) == (429, "3")
    assert body["error"]["type"] == "rate_limit_error"


async def test_migrations_are_bounded(system):
    for name in ("w1", "w2", "w3", "w4"):
        await system.add_worker(name)
    await system.add_router()
    await system.start(max_migrations=2)
    for worker in system.workers:
        worker.fail_after = (0, decode_pb2.StreamError(code=14, message="no", retryable=True))
    async with system.http.post("/v1/chat/completions", json=CHAT) as response:
        assert response.status == 503
    tried = [worker.worker_id for worker in system.workers if len(worker.submits)]
    assert tried == ["w1", "w2", "w3"]


async def test_a_client_that_leaves_stops_its_worker(system):
    worker = await system.add_worker("w1", step_s=0.02)
    await system.start()
    for fields in ({"stream": True}, {"stream": False}):
        before = len(worker.cancelled)
        task = asyncio.create_task(system.http.post("/v1/chat/completions", json=CHAT | fields).__aenter__())
        await system.until(lambda: bool(worker.live))
        if fields["stream"]:
            response = await task
            await response.content.readline()
            response.close()
        else:
            task.cancel()
        await system.until(lambda before=before: len(worker.cancelled) == before + 1)
        await system.until(lambda: system.frontend.health.report().num_open_requests == 0)
    system.check_quiet()


async def test_a_slow_reader_is_ended_and_its_neighbour_is_not(system, answer):
    worker = await system.add_worker("w1", answer=system.answer * 400, tokens_per_step=5)
    await system.register(worker, max_context_tokens=100_000)
    await system.start(stream_buffer_bytes=32 << 10)
    host, port = system.url.removeprefix("http://").split(":")
    body = json.dumps(CHAT | {"stream": True, "logprobs": True, "top_logprobs": 20}).encode()
    _, writer = await asyncio.open_connection(host, int(port), limit=1024)
    writer.transport.pause_reading()  # type: ignore[attr-defined]
    writer.write(
        b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
        b"content-length: %d\r\n\r\n%b" % (len(body), body)
    )
    neighbour = await stream_chat(system, max_tokens=len(system.answer))
    assert text_of(neighbour) == answer
    try:
        await system.until(lambda: system.metric("slow_readers_total") == 1)
        await system.until(lambda: system.frontend.health.report().num_open_requests == 0)
        await system.until(lambda: not worker.live)
    finally:
        writer.close()


async def test_requests_are_served_without_any_router(system, answer):
    await system.add_worker("w1")
    await system.add_worker("w2")
    router = await system.add_router()
    await system.start()
    await router.stop()
    for _ in range(4):
        assert text_of(await stream_chat(system)) == answer
    assert all(worker.submits for worker in system.workers)


async def test_a_router_that_answers_too_late_is_passed_over(system, answer):
    await system.add_worker("w1")
    await system.add_router(delay_s=30)
    good = await system.add_router()
    await system.start()
    assert text_of(await stream_chat(system)) == answer
    assert good.queries


async def test_a_routers_refusal_is_passed_on(system):
    await system.add_worker("w1")
    router = await system.add_router()
    await system.start()
    router.error = Overloaded("too much to do", retry_after_ms=7000)
    async with system.http.post("/v1/chat/completions", json=CHAT) as response:
        assert (response.status, response.headers["Retry-After"]) == (429, "7")
    call = inference_pb2_grpc.InferenceServiceStub(system.channel).Chat(
        inference_pb2.ChatRequest(
            model="tandem-tiny", messages=[inference_pb2.ChatMessage(role="user", content="Hi")]
        )
    )
    assert (await call.code()).name == "RESOURCE_EXHAUSTED"


async def test_grpc_streams_the_same_text_tokens_and_usage(system, answer):
    await system.add_worker("w1", num_cached_tokens=2)
    await system.start()
    stub = inference_pb2_grpc.InferenceServiceStub(system.channel)
    request = inference_pb2.GenerateRequest(
        model="tandem-tiny",
        text="Once",
        options=inference_pb2.GenerationOptions(
            sampling=generation_pb2.SamplingParams(temperature=0, logprobs=2), stop=["old owl"]
        ),
    )
    call = stub.Generate(request, timeout=10)
    responses = [response async for response in call]
    metadata = dict(await call.initial_metadata())
    deltas = [response.delta for response in responses[:-1]]
    assert {response.request_id for response in responses} == {metadata["x-request-id"]}
    assert "".join(delta.text for delta in deltas) == answer.partition("old owl")[0]
    token_ids = [token_id for delta in deltas for token_id in delta.token_ids]
    assert token_ids == system.answer[: len(token_ids)]
    assert all(len(delta.logprobs) == len(delta.token_ids) for delta in deltas)
    completed = responses[-1].completed
    assert (completed.reason, completed.stop) == (generation_pb2.FINISH_REASON_STOP, "old owl")
    assert completed.usage.completion_tokens == len(token_ids)
    assert completed.usage.cached_tokens == 2


async def test_grpc_metadata_says_what_a_request_requires_as_http_headers_do(system):
    await system.add_worker("w1")
    router = await system.add_router()
    await system.start()
    stub = inference_pb2_grpc.InferenceServiceStub(system.channel)
    request = inference_pb2.GenerateRequest(model="tandem-tiny", text="Once")
    wishes = (("x-tandem-labels", "region=eu"), ("x-tandem-workers", "w1"), ("x-tandem-max-price", "0.5"))
    async for _ in stub.Generate(request, timeout=10, metadata=wishes):
        pass
    query = router.queries[-1]
    assert (dict(query.required_labels), list(query.pinned_worker_ids)) == ({"region": "eu"}, ["w1"])
    assert query.max_price_per_million_tokens == 0.5
    call = stub.Generate(request, timeout=10, metadata=(("x-tandem-max-price", "cheap"),))
    assert (await call.code()).name == "INVALID_ARGUMENT"


async def test_a_grpc_client_that_cancels_stops_its_worker(system):
    worker = await system.add_worker("w1", step_s=0.02)
    await system.start()
    request = inference_pb2.GenerateRequest(model="tandem-tiny", text="Once")
    call = inference_pb2_grpc.InferenceServiceStub(system.channel).Generate(request, timeout=10)
    await call.read()
    call.cancel()
    await system.until(lambda: len(worker.cancelled) == 1)
    await system.until(lambda: system.frontend.health.report().num_open_requests == 0)
    system.check_quiet()


async def test_a_grpc_client_that_does_not_read_is_ended(system):
    worker = await system.add_worker("w1", answer=system.answer * 2000, tokens_per_step=100)
    await system.register(worker, max_context_tokens=100_000)
    await system.start(stream_buffer_age_s=0.5)
    request = inference_pb2.GenerateRequest(
        model="tandem-tiny",
        text="Once",
        options=inference_pb2.GenerationOptions(sampling=generation_pb2.SamplingParams(logprobs=20)),
    )
    call = inference_pb2_grpc.InferenceServiceStub(system.channel).Generate(request, timeout=20)
    await call.read()
    await system.until(lambda: system.metric("slow_readers_total") == 1, timeout_s=15)
    await system.until(lambda: not worker.live)
    system.check_quiet()
    call.cancel()


async def test_grpc_tokenizes_and_lists_models(system):
    await system.add_worker("w1")
    await system.start()
    stub = inference_pb2_grpc.InferenceServiceStub(system.channel)
    models = await stub.ListModels(inference_pb2.ListModelsRequest(), timeout=5)
    assert [(model.id, model.max_context_tokens) for model in models.models] == [("tandem-tiny", 512)]
    request = inference_pb2.TokenizeRequest(model="tandem-tiny", text="Once upon")
    answered = await stub.Tokenize(request, timeout=5)
    assert list(answered.token_ids) == system.local.tokenizer.encode_text("Once upon").tolist()


async def test_draining_finishes_open_streams_and_refuses_new_ones(system, answer):
    await system.add_worker("w1", step_s=0.02)
    await system.start()
    open_stream = asyncio.create_task(stream_chat(system))
    await system.until(lambda: bool(system.workers[0].live))
    drain = asyncio.create_task(system.frontend.drain())
    await system.until(lambda: system.frontend.health.report().draining)
    async with system.http.get("/health") as response:
        assert response.status == 503
    async with system.http.get("/live") as response:
        assert response.status == 200
    async with system.http.post("/v1/chat/completions", json=CHAT) as response:
        assert (response.status, "Retry-After" in response.headers) == (503, True)
    assert text_of(await open_stream) == answer
    await drain


async def test_health_says_why_it_is_not_ready(system):
    await system.start(ready=False)
    async with system.http.get("/health") as response:
        body = await response.json()
        assert (response.status, body["reason"]) == (503, "no worker can serve")
    async with system.http.post("/v1/chat/completions", json=CHAT) as response:
        assert response.status == 503
    worker = await system.add_worker("w1", hang_after=0)
    await system.until(lambda: system.frontend.health.report().num_decode_workers == 1)
    async with system.http.get("/health") as response:
        assert (response.status, (await response.json())["reason"]) == (
            503,
            "no canary has come through yet",
        )
    worker.hang_after = None
    await system.until(lambda: system.frontend.health.report().ready)
    await system.register(worker, status=cluster_pb2.WORKER_STATUS_DRAINING)
    await system.until(lambda: not system.frontend.health.report().ready)


async def test_workers_with_other_files_are_not_used(system):
    worker = await system.add_worker("w1")
    await system.register(worker, model_revision="other")
    await system.start(ready=False)
    await system.until(lambda: bool(system.frontend.catalog._view.workers))
    async with system.http.post("/v1/chat/completions", json=CHAT) as response:
        body = await response.json()
    assert response.status == 503
    assert "other files" in body["error"]["message"]


async def test_a_restarted_worker_gets_a_new_session(system, answer):
    worker = await system.add_worker("w1")
    await system.start()
    await worker.stop()
    worker.epoch = 2
    await worker.start()
    await system.register(worker)
    await system.until(lambda: {w.card.epoch for w in system.frontend.catalog._view.workers.values()} == {2})
    assert text_of(await stream_chat(system)) == answer
    assert [opened.epoch for opened in worker.opened] == [1, 2]


async def test_serving_goes_on_while_redis_is_away(system, redis_server, answer):
    await system.add_worker("w1")
    await system.start()
    redis_server.stop()
    assert text_of(await stream_chat(system)) == answer


async def test_metrics_tell_what_happened_and_hold_no_text(system):
    await system.add_worker("w1")
    await system.start()
    await stream_chat(system)
    async with system.http.get("/metrics") as response:
        text = await response.text()
    assert 'tandem_frontend_requests_total{route="/v1/chat/completions",status="200"} 1.0' in text
    assert "tandem_frontend_itl_seconds_bucket" in text
    assert "tandem_frontend_event_loop_lag_seconds_count" in text
    assert "story" not in text
    assert system.metric("ttft_seconds_count") >= 1
