"""One HTTP/1.1 connection: several requests on it, pauses in its streams, and its socket."""

from __future__ import annotations

import asyncio
import json
import socket

import pytest

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
