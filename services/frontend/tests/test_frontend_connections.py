"""One HTTP/1.1 connection: several requests on it, pauses in its streams, and its socket."""

from __future__ import annotations

import asyncio
import json
import socket
import time

import pytest
import uvloop

CHAT = {"model": "tandem-tiny", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 8}


def post(body: dict[str, object], *headers: str) -> bytes:
    content = json.dumps(body).encode()
    lines = ["POST /v1/chat/completions HTTP/1.1", "host: x", "content-type: application/json", *headers]
    return "\r\n".join([*lines, f"content-length: {len(content)}", "", ""]).encode() + content


async def connect(system):
    host, port = system.url.removeprefix("http://").split(":")
    return await asyncio.open_connection(host, int(port))


async def read_answer(reader) -> tuple[bytes, bytes]:
    """Head and body of the next answer; chunks joined."""
    head = (await reader.readuntil(b"\r\n\r\n")).lower()
    if b"transfer-encoding: chunked" not in head:
        length = int(head.split(b"content-length: ")[1].split(b"\r\n")[0])
        return head, await reader.readexactly(length)
    body = b""
    while size := int(await reader.readline(), 16):
        body += (await reader.readexactly(size + 2))[:-2]
    await reader.readline()
    return head, body


async def test_pipelined_requests_are_answered_in_order_on_one_connection(system):
    await system.add_worker("w1")
    await system.start()
    reader, writer = await connect(system)
    writer.write(
        post(CHAT | {"stream": True})
        + post(CHAT)
        + b"GET /live HTTP/1.1\r\nhost: x\r\n\r\n"
        + post(CHAT | {"stream": True}, "connection: close")
    )
    async with asyncio.timeout(20):
        streamed, whole, live, last = [await read_answer(reader) for _ in range(4)]
        assert await reader.read() == b"", "closed, as asked for"
    writer.close()
    assert streamed[1].endswith(b"data: [DONE]\n\n")
    assert last[1].endswith(b"data: [DONE]\n\n")
    assert json.loads(whole[1])["object"] == "chat.completion"
    assert b" 200 " in live[0]
    assert b"connection: close" not in streamed[0] + whole[0] + live[0]
    assert b"connection: close" in last[0]


async def test_accepted_sockets_send_at_once(system):
    await system.start(ready=False)
    reader, writer = await connect(system)
    writer.write(b"GET /live HTTP/1.1\r\nhost: x\r\n\r\n")
    await reader.readuntil(b"\r\n\r\n")
    (connection,) = system.frontend._http._connections
    accepted = connection.transport.get_extra_info("socket")
    assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
    writer.close()


@pytest.mark.parametrize("hang_after", [0, 3])
async def test_a_stream_with_nothing_to_say_sends_comments(system, hang_after):
    await system.add_worker("w1")
    await system.start(stream_keepalive_s=0.1, token_timeout_s=30)
    system.workers[0].hang_after = hang_after
    reader, writer = await connect(system)
    writer.write(post(CHAT | {"stream": True}))
    async with asyncio.timeout(10):
        assert b" 200 " in await reader.readuntil(b"\r\n\r\n")
        assert b": keep-alive\n\n" in await reader.readuntil(b": keep-alive\n\n")
        await reader.readuntil(b": keep-alive\n\n")
    writer.close()


async def test_a_request_that_is_refused_by_its_head_leaves_the_connection_usable(system):
    await system.start(ready=False, max_body_bytes=2000)
    reader, writer = await connect(system)
    writer.write(
        b"POST /nothing HTTP/1.1\r\nhost: x\r\ncontent-length: 5\r\n\r\nhello"
        b"DELETE /live HTTP/1.1\r\nhost: x\r\n\r\nHEAD /live HTTP/1.1\r\nhost: x\r\n\r\n"
    )
    async with asyncio.timeout(10):
        assert b" 404 " in (await read_answer(reader))[0]
        assert b" 405 " in (await read_answer(reader))[0]
        head = await reader.readuntil(b"\r\n\r\n")
        assert b" 200 " in head
        assert b"Content-Length: 15\r\n" in head, "of the body that GET would send"
        writer.write(b"GET /live HTTP/1.1\r\nhost: x\r\n\r\n")
        assert json.loads((await read_answer(reader))[1]) == {"status": "ok"}
    writer.close()


async def test_an_answer_in_the_middle_of_a_body_arrives_and_ends_the_connection(system):
    await system.start(ready=False, max_body_bytes=2000)
    reader, writer = await connect(system)
    writer.write(b"GET /live HTTP/1.1\r\nhost: x\r\n\r\n")
    writer.write(
        b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 9000000\r\n\r\n" + bytes(100_000)
    )
    async with asyncio.timeout(10):
        assert b" 200 " in (await read_answer(reader))[0]
        head, body = await read_answer(reader)
        assert b" 413 " in head
        assert b"connection: close" in head
        assert json.loads(body)["error"]["type"] == "invalid_request_error"
        assert await reader.read() == b""
    writer.close()


async def test_requests_sent_ahead_are_read_when_their_turn_comes(system):
    worker = await system.add_worker("w1", step_s=0.01)
    await system.start()
    reader, writer = await connect(system)
    writer.write(post(CHAT | {"stream": True}))
    await reader.readuntil(b"content")
    writer.write(post(CHAT) * 3)
    await asyncio.sleep(0.01)
    assert len(worker.submits) <= 2, "the canary and the first"
    async with asyncio.timeout(20):
        await reader.readuntil(b"\r\n0\r\n\r\n")
        for _ in range(3):
            assert json.loads((await read_answer(reader))[1])["object"] == "chat.completion"
    writer.close()


async def test_an_answer_that_nobody_reads_ends_its_connection(system):
    await system.start(ready=False, stream_buffer_age_s=0.2, header_timeout_s=0.4)
    _, writer = await connect(system)
    writer.transport.pause_reading()
    writer.write(b"GET /openapi.json HTTP/1.1\r\nhost: x\r\n\r\n" * 400)
    connections = system.frontend._http._connections
    await system.until(lambda: len(connections) == 1)
    await system.until(lambda: not connections)
    writer.close()


async def test_the_event_loops_lag_is_a_metric(system):
    await system.start(ready=False)
    await system.until(lambda: system.metric("event_loop_lag_seconds_count") >= 2)
    time.sleep(0.3)
    await system.until(
        lambda: (
            system.metric("event_loop_lag_seconds_count")
            > system.metric("event_loop_lag_seconds_bucket", le="0.1")
        )
    )


def test_sockets_send_at_once_on_the_event_loop_that_services_run_on():
    async def accepted() -> list[int]:
        made: list[asyncio.Transport] = []

        class Keeping(asyncio.Protocol):
            def connection_made(self, transport):
                made.append(transport)

        loop = asyncio.get_running_loop()
        server = await loop.create_server(Keeping, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        transport, _ = await loop.create_connection(Keeping, "127.0.0.1", port)
        while len(made) < 2:
            await asyncio.sleep(0.001)
        values = [
            each.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) for each in made
        ]
        transport.close()
        server.close()
        return values

    assert all(uvloop.run(accepted()))
