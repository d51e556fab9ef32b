"""A small OpenAI-compatible server in a thread, for tests of what loads such servers."""

from __future__ import annotations

import contextlib
import json
import ssl
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


def event(payload: Any) -> bytes:
    """One server-sent event."""
    return b"data: " + (payload if isinstance(payload, bytes) else json.dumps(payload).encode()) + b"\n\n"


def text_event(text: str, **choice: Any) -> bytes:
    """A chunk of a chat completion."""
    return event(
        {"id": "c", "choices": [{"index": 0, "delta": {"content": text}, "finish_reason": None, **choice}]}
    )


def usage_event(prompt_tokens: int, completion_tokens: int) -> bytes:
    """The chunk that counts."""
    return event(
        {"choices": [], "usage": {"prompt_tokens": prompt_tokens, "completion_tokens": completion_tokens}}
    )


DONE = event(b"[DONE]")

# The same on the wire.
STREAM_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
STREAM_END = b"0\r\n\r\n"


def chunked(*parts: bytes) -> bytes:
    """Each part a chunk of a body."""
    return b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in parts)


@dataclass
class Reply:
    """What a request gets; `breaks_off` ends the connection where the answer should go on."""

    parts: list[bytes] = field(default_factory=list)
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    breaks_off: bool = False
    holds: threading.Event | None = None  # waited for before the last part


def error(status: int, message: str, **headers: str) -> Reply:
    """A refusal as OpenAI writes it."""
    body = json.dumps({"error": {"message": message}}).encode()
    return Reply([body], status, {"Content-Type": "application/json", **headers})


def answer(body: dict[str, Any]) -> Reply:
    """As many tokens as were asked for: the role, one token an event, a comment, the reason, usage."""
    words = " ".join(message["content"] for message in body.get("messages", [])) or body.get("prompt", "")
    num_tokens = body.get("max_tokens") or body["max_completion_tokens"]
    parts = [
        event({"id": "c", "choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}}]}),
        b": keep-alive\n\n",
        *(text_event(f" t{i}") for i in range(num_tokens)),
        event({"id": "c", "choices": [{"index": 0, "delta": {}, "finish_reason": "length"}]}),
    ]
    if body.get("stream_options", {}).get("include_usage"):
        parts.append(usage_event(7 + 2 * len(words.split()), num_tokens))
    return Reply([*parts, DONE])


class OpenAIServer:
    """`respond` makes each reply from the request's body; `bodies` and `keys` are what came."""

    def __init__(self, scheme: str) -> None:
        self.scheme = scheme
        self.respond: Callable[[dict[str, Any]], Reply] = answer
        self.bodies: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        self.models: Reply | list[str] = ["fake"]
        self.port = 0

    @property
    def url(self) -> str:
        """Without the version."""
        return f"{self.scheme}://127.0.0.1:{self.port}"


@contextlib.contextmanager
def running_openai_server(tls: ssl.SSLContext | None = None) -> Iterator[OpenAIServer]:
    """The server, on a free port, until the context ends."""
    server = OpenAIServer("http" if tls is None else "https")

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            pass

        def do_GET(self) -> None:
            self.take_key()
            if isinstance(server.models, Reply):
                self.send(server.models)
            else:
                listed = {"data": [{"id": name} for name in server.models]}
                self.send(Reply([json.dumps(listed).encode()], headers={"Content-Type": "application/json"}))

        def do_POST(self) -> None:
            self.take_key()
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            server.bodies.append(body)
            with contextlib.suppress(ConnectionError):
                self.send(server.respond(body))

        def take_key(self) -> None:
            server.keys.append(self.headers.get("Authorization"))

        def send(self, reply: Reply) -> None:
            self.send_response(reply.status)
            for name, value in {"Content-Type": "text/event-stream", **reply.headers}.items():
                self.send_header(name.replace("_", "-"), value)
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            for number, part in enumerate(reply.parts, start=1):
                if reply.holds is not None and number == len(reply.parts):
                    reply.holds.wait(30)
                self.wfile.write(chunked(part))
                self.wfile.flush()
            if reply.breaks_off:
                self.close_connection = True
            else:
                self.wfile.write(STREAM_END)

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        http.daemon_threads = True
        if tls is not None:
            http.socket = tls.wrap_socket(http.socket, server_side=True, do_handshake_on_connect=False)
        server.port = http.server_address[1]
        thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        try:
            yield server
        finally:
            http.shutdown()
            thread.join()
