"""What happens around every HTTP request: keys, limits, errors, headers, documentation."""

from __future__ import annotations

import asyncio
import json
from hashlib import sha256

import pytest
from tandem.v1 import inference_pb2, inference_pb2_grpc
from tandem_frontend.api_keys import ApiKeys
from tandem_frontend.openapi import ENDPOINTS

CHAT = {"model": "tandem-tiny", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 2}
KEYS = ApiKeys({sha256(b"sk-one").digest(): "one", sha256(b"sk-two").digest(): "two"})


async def raw(system, data: bytes, *, until_closed: bool = False) -> bytes:
    """Send bytes and read the answer's head (or all, when the server closes)."""
    host, port = system.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    try:
        async with asyncio.timeout(10):
            writer.write(data)
            return await (reader.read() if until_closed else reader.readuntil(b"\r\n\r\n"))
    finally:
        writer.close()


def routes(system) -> set[tuple[str, str]]:
    return set(system.frontend.app.routes)


async def test_every_route_is_documented(system):
    await system.start(ready=False)
    documented = {(e.method.upper(), e.path) for e in ENDPOINTS} | {("GET", "/")}
    assert routes(system) == documented


async def test_every_route_but_two_needs_a_key(system):
    await system.add_worker("w1")
    await system.start(keys=KEYS, ready=False)
    for method, path in routes(system):
        for headers in (
            {},
            {"Authorization": "Bearer sk-"},
            {"Authorization": "Basic sk-one"},
            {"Authorization": "sk-one"},
        ):
            async with system.http.request(method, path.format(model="x"), headers=headers) as response:
                assert (response.status == 401) is (path not in {"/health", "/live"}), path
                assert response.headers["X-Request-Id"]


@pytest.mark.parametrize(
    "target",
    [
        "/nothing", "//health", "/health/", "/v1/../health", "/%68ealth", "/HEALTH", "http://x/health",
        "/live%2f..%2fmetrics", "*",
    ],
)  # fmt: skip
async def test_only_the_exact_open_paths_are_open(system, target):
    await system.start(keys=KEYS, ready=False)
    head = await raw(system, b"GET %b HTTP/1.1\r\nhost: x\r\n\r\n" % target.encode())
    assert head.split()[1] in (b"401", b"400")


async def test_a_key_gives_its_tenant_a_namespace_of_its_own(system):
    worker = await system.add_worker("w1")
    await system.start(keys=KEYS)
    namespaces = []
    for key in ("sk-one", "sk-two", "sk-one"):
        headers = {"Authorization": f"Bearer {key}"}
        async with system.http.post("/v1/chat/completions", json=CHAT, headers=headers) as response:
            assert response.status == 200
        namespaces.append(worker.submits[-1].generation.namespace)
    assert namespaces[0] == namespaces[2] != namespaces[1]


async def test_grpc_needs_the_same_keys(system):
    await system.add_worker("w1")
    await system.start(keys=KEYS)
    stub = inference_pb2_grpc.InferenceServiceStub(system.channel)
    for call in (
        stub.Generate(inference_pb2.GenerateRequest(model="tandem-tiny", text="Hi"), timeout=5),
        stub.Chat(inference_pb2.ChatRequest(model="tandem-tiny"), timeout=5),
        stub.Tokenize(inference_pb2.TokenizeRequest(model="tandem-tiny", text="Hi"), timeout=5),
        stub.ListModels(
            inference_pb2.ListModelsRequest(), timeout=5, metadata=(("authorization", "Bearer no"),)
        ),
    ):
        assert (await call.code()).name == "UNAUTHENTICATED"
    metadata = (("authorization", "Bearer sk-two"),)
    models = await stub.ListModels(inference_pb2.ListModelsRequest(), timeout=5, metadata=metadata)
    assert len(models.models) == 1


async def test_a_body_that_is_too_large_is_refused(system):
    await system.add_worker("w1")
    await system.start(max_body_bytes=2000)
    body = CHAT | {"messages": [{"role": "user", "content": "x" * 3000}]}
    async with system.http.post("/v1/chat/completions", json=body) as response:
        assert (response.status, (await response.json())["error"]["type"]) == (413, "invalid_request_error")


async def test_an_endless_chunked_body_is_refused(system):
    await system.start(ready=False, max_body_bytes=2000)
    head = (
        b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
        b"transfer-encoding: chunked\r\n\r\n"
    )
    answer = await raw(system, head + (b"3e8\r\n%b\r\n" % (b" " * 1000)) * 5)
    assert answer.split()[1] == b"413"


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Content-Type": "application/json", "Content-Encoding": "gzip"}, 415),
        ({"Content-Type": "text/plain"}, 415),
        ({"Content-Type": "multipart/form-data; boundary=x"}, 415),
    ],
)
async def test_other_types_and_encodings_are_refused(system, headers, status):
    await system.start(ready=False)
    async with system.http.post("/v1/completions", data=b"{}", headers=headers) as response:
        assert response.status == status


async def test_unknown_paths_and_methods_are_answered_in_openais_shape(system):
    await system.start(ready=False)
    async with system.http.get("/nothing") as response:
        assert (response.status, (await response.json())["error"]["type"]) == (404, "not_found_error")
    async with system.http.get("/v1/completions") as response:
        assert (response.status, response.headers["Allow"]) == (405, "POST")
        assert "error" in await response.json()


async def test_slow_headers_are_cut_off(system):
    await system.start(ready=False, header_timeout_s=0.3)
    answer = await raw(system, b"GET /live HTTP/1.1\r\nhost:", until_closed=True)
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["type"] == "timeout_error"


async def test_the_second_request_of_a_connection_has_the_same_limits(system):
    await system.start(ready=False, header_timeout_s=0.3)
    whole = b"GET /live HTTP/1.1\r\nhost: x\r\n\r\n"
    host, port = system.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    async with asyncio.timeout(10):
        for _ in range(2):
            writer.write(whole)
            assert b" 200 " in await reader.readuntil(b"}")
            await asyncio.sleep(0.5)  # an idle connection is not a slow one
        writer.write(whole[:10])
        assert (await reader.read()).startswith(b"HTTP/1.1 408 ")
    writer.close()


async def test_a_slow_body_is_cut_off(system):
    await system.start(ready=False, body_timeout_s=0.3)
    head = b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 50\r\n\r\n{"
    assert (await raw(system, head)).startswith(b"HTTP/1.1 408 ")


async def test_connections_past_the_limit_are_refused_and_room_comes_back(system):
    await system.start(ready=False, max_connections=2)
    host, port = system.url.removeprefix("http://").split(":")
    held = [await asyncio.open_connection(host, int(port)) for _ in range(2)]
    await asyncio.sleep(0.05)
    assert (await raw(system, b"", until_closed=True)).startswith(b"HTTP/1.1 503 ")
    for _, writer in held:
        writer.close()
        await writer.wait_closed()
    await asyncio.sleep(0.05)
    assert b" 200 " in await raw(system, b"GET /live HTTP/1.1\r\nhost: x\r\n\r\n")


@pytest.mark.parametrize(
    "data",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(64),
        b"*1\r\n$4\r\nPING\r\n\r\n",
        b"GET / HTTP/1.1\r\nhost: a\r\nhost: b\r\n\r\n",
        b"POST /v1/completions HTTP/1.1\r\nhost: a\r\ncontent-length: 2\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        b"GET / HTTP/1.1\r\nhost: a\r\nx: " + b"y" * 20_000 + b"\r\n\r\n",
    ],
)
async def test_what_is_not_http_is_refused_and_others_are_served(system, data):
    await system.start(ready=False)
    assert b" 200 " not in (await raw(system, data + b"\r\n\r\n"))[:20]
    async with system.http.get("/live") as response:
        assert response.status == 200


async def test_a_request_id_of_the_clients_is_not_taken_over(system):
    await system.start(ready=False)
    async with system.http.get("/live", headers={"X-Request-Id": "10.0.0.1:99"}) as response:
        assert response.headers["X-Request-Id"].startswith("req-")
        assert len(response.headers["X-Request-Id"]) == 36


async def test_the_documents_describe_the_api_and_need_nothing_else(system):
    await system.start(ready=False)
    async with system.http.get("/openapi.json") as response:
        document = await response.json()
    fields = document["components"]["schemas"]["ChatCompletionBody"]["properties"]
    assert {"messages", "temperature", "max_completion_tokens", "stream_options"} <= fields.keys()
    async with system.http.get("/docs") as response:
        page = await response.text()
    assert "max_completion_tokens" in page
    assert "/v1/chat/completions" in page
    assert "<script" not in page
    assert "src=" not in page
    async with system.http.get("/") as response:
        assert "/docs" in await response.text()


async def test_an_http_1_0_client_gets_a_stream_that_ends_with_the_connection(system):
    await system.add_worker("w1")
    await system.start()
    body = json.dumps(CHAT | {"stream": True}).encode()
    answer = await raw(
        system,
        b"POST /v1/chat/completions HTTP/1.0\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b"
        % (len(body), body),
        until_closed=True,
    )
    assert b"chunked" not in answer.lower().partition(b"\r\n\r\n")[0]
    assert answer.endswith(b"data: [DONE]\n\n")
