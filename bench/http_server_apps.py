"""The servers of `http_servers.py`: `python http_server_apps.py NAME` prints its port and serves."""

from __future__ import annotations

import asyncio
import json
import logging
import socket
import sys
from collections.abc import Callable
from importlib import import_module
from typing import Any

import uvloop

STEP_S = 0.006
EVENT = b'data: {"id":"chatcmpl-0123456789abcdef0123456789abcdef","object":"chat.completion.chunk","created":1764000000,"model":"tandem-tiny","choices":[{"index":0,"delta":{"content":" word"},"logprobs":null,"finish_reason":null}],"usage":null}\n\n'  # fmt: skip # noqa: E501
LAST = b'data: {"choices":[],"usage":{"completion_tokens":%d}}\n\ndata: [DONE]\n\n'
HEADERS = {
    "Content-Type": "text/event-stream; charset=utf-8",
    "Cache-Control": "no-cache",
    "X-Accel-Buffering": "no",
}


class Ticker:
    """One event for every stream every STEP_S, as from an engine; `on_event` is told whether it was the last."""

    def __init__(self) -> None:
        self._streams: dict[Callable[[bool], None], int] = {}
        self._running: asyncio.Task[None] | None = None

    def add(self, on_event: Callable[[bool], None], num_events: int) -> None:
        """Begin a stream."""
        self._streams[on_event] = num_events
        if self._running is None:
            self._running = asyncio.create_task(self._run())

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(STEP_S)
            for on_event, num_left in list(self._streams.items()):
                if num_left == 1:
                    del self._streams[on_event]
                else:
                    self._streams[on_event] = num_left - 1
                on_event(num_left == 1)


def chunk(data: bytes) -> bytes:
    """HTTP's framing."""
    return b"%x\r\n%b\r\n" % (len(data), data)


async def serve_tandem() -> None:
    """The frontend's own."""
    from prometheus_client import CollectorRegistry
    from tandem_frontend.api_keys import ApiKeys
    from tandem_frontend.frontend_metrics import FrontendMetrics
    from tandem_frontend.http_app import HttpApp
    from tandem_frontend.http_connection import ConnectionLimits
    from tandem_frontend.http_messages import HttpRequest
    from tandem_frontend.http_server import HttpServer
    from tandem_frontend.sse_stream import SseStream, StreamLimits

    ticker, limits = Ticker(), StreamLimits(buffer_bytes=1 << 18, buffer_age_s=10, keepalive_s=10)

    async def chat(request: HttpRequest) -> None:
        count = json.loads(request.body)["max_tokens"]
        stream, ended = SseStream(request, limits, lambda: None), asyncio.get_running_loop().create_future()

        def on_event(is_last: bool) -> None:
            stream.send(EVENT)
            if is_last:
                ended.set_result(None)

        ticker.add(on_event, count)
        await ended
        stream.finish(LAST % count)

    app = HttpApp({("POST", "/v1/chat/completions"): chat}, api_keys=ApiKeys({}), metrics=FrontendMetrics(CollectorRegistry()))  # fmt: skip # noqa: E501
    of_connections = ConnectionLimits(
        header_timeout_s=10, body_timeout_s=10, max_body_bytes=1 << 20, unread_timeout_s=10
    )
    print(await HttpServer(app, of_connections, max_connections=4096).start("127.0.0.1", 0), flush=True)
    await asyncio.Event().wait()


async def serve_aiohttp() -> None:
    """Its headers and body, our writes to the transport."""
    from aiohttp import web

    ticker = Ticker()

    async def chat(request: web.Request) -> web.StreamResponse:
        count = json.loads(await request.read())["max_tokens"]
        response = web.StreamResponse(headers=HEADERS)
        response.enable_chunked_encoding()
        await response.prepare(request)
        transport, ended = request.transport, asyncio.get_running_loop().create_future()
        assert transport is not None

        def on_event(is_last: bool) -> None:
            transport.write(chunk(EVENT))
            if is_last:
                ended.set_result(None)

        ticker.add(on_event, count)
        await ended
        await response.write(LAST % count)
        await response.write_eof()
        return response

    app = web.Application()
    app.router.add_post("/v1/chat/completions", chat)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    print(runner.addresses[0][1], flush=True)
    await asyncio.Event().wait()


async def asgi(scope: Any, receive: Any, send: Any) -> None:
    """For uvicorn."""
    if scope["type"] != "http":
        return
    body = b""
    while True:
        message = await receive()
        body += message.get("body", b"")
        if not message.get("more_body"):
            break
    count, events = json.loads(body)["max_tokens"], asyncio.Queue[bool]()
    _TICKER.add(events.put_nowait, count)
    headers = [(name.lower().encode(), value.encode()) for name, value in HEADERS.items()]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    is_last = False
    while not is_last:
        is_last = await events.get()
        await send({"type": "http.response.body", "body": EVENT, "more_body": True})
    await send({"type": "http.response.body", "body": LAST % count})


async def rsgi(scope: Any, protocol: Any) -> None:
    """For granian."""
    count, events = json.loads(await protocol())["max_tokens"], asyncio.Queue[bool]()
    _TICKER.add(events.put_nowait, count)
    transport = protocol.response_stream(200, list(HEADERS.items()))
    is_last = False
    while not is_last:
        is_last = await events.get()
        await transport.send_bytes(EVENT)
    await transport.send_bytes(LAST % count)


_TICKER = Ticker()


def main() -> None:
    """Serve until terminated."""
    name = sys.argv[1]
    if name in ("tandem", "aiohttp"):
        logging.disable()  # clients that leave at the end of the window are no news
        uvloop.run(serve_tandem() if name == "tandem" else serve_aiohttp())
        return
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    print(port, flush=True)
    if name == "uvicorn":
        import_module("uvicorn").run(
            asgi, port=port, loop="uvloop", http="httptools", log_level="error", access_log=False
        )
    else:

        async def serve() -> None:
            rsgi_of = import_module("granian.constants").Interfaces.RSGI
            server_class = import_module("granian.server.embed").Server
            await server_class(rsgi, address="127.0.0.1", port=port, interface=rsgi_of).serve()

        uvloop.run(serve())


if __name__ == "__main__":
    main()
