"""A server that costs next to nothing: every request gets the same streamed answer, one event per stream and step.

    python bench/canned_server.py STEP_MS NUM_TOKENS

Prints its port. For measuring load generators, whose reading is then nearly all that the machine does.
"""

from __future__ import annotations

import json
import select
import socket
import sys
import time

_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"


def _event(choices: list[object], usage: object = None) -> bytes:
    body = {
        "id": "chatcmpl-0123456789abcdef01234567",
        "object": "chat.completion.chunk",
        "created": 1_764_000_000,
        "model": "canned",
        "choices": choices,
        "usage": usage,
    }
    return b"data: " + json.dumps(body, separators=(",", ":")).encode() + b"\n\n"


def _choice(delta: dict[str, str], reason: str | None = None) -> list[object]:
    return [{"index": 0, "delta": delta, "logprobs": None, "finish_reason": reason}]


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def serve(step_s: float, num_tokens: int) -> None:
    """Until the process is killed."""
    first = _HEAD + _chunk(_event(_choice({"role": "assistant", "content": ""})))
    token = _chunk(_event(_choice({"content": " token"})))
    usage = {"prompt_tokens": 100, "completion_tokens": num_tokens}
    last = _chunk(_event(_choice({}, "length")) + _event([], usage) + b"data: [DONE]\n\n") + b"0\r\n\r\n"
    listener = socket.create_server(("127.0.0.1", 0), backlog=4096)
    print(listener.getsockname()[1], flush=True)
    epoll = select.epoll()
    epoll.register(listener, select.EPOLLIN)
    sockets: dict[int, socket.socket] = {}
    asked: dict[int, bytes] = {}
    left: dict[int, int] = {}
    next_step = time.monotonic()
    while True:
        now = time.monotonic()
        if left and now >= next_step:
            for descriptor in list(left):
                left[descriptor] -= 1
                sockets[descriptor].send(token if left[descriptor] else token + last)
                if not left[descriptor]:
                    del left[descriptor]
            next_step = max(next_step + step_s, time.monotonic() - step_s)
        for descriptor, _ in epoll.poll(max(0.0, next_step - time.monotonic()) if left else 1.0):
            if descriptor == listener.fileno():
                connection, _ = listener.accept()
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                sockets[connection.fileno()] = connection
                epoll.register(connection, select.EPOLLIN)
                continue
            data = sockets[descriptor].recv(1 << 16)
            if not data:
                epoll.unregister(descriptor)
                sockets.pop(descriptor).close()
                left.pop(descriptor, None)
                continue
            asked[descriptor] = asked.get(descriptor, b"") + data
            head, found, body = asked[descriptor].partition(b"\r\n\r\n")
            if found and len(body) >= int(head.lower().partition(b"content-length:")[2].split()[0]):
                del asked[descriptor]
                sockets[descriptor].send(first)
                left[descriptor] = num_tokens


if __name__ == "__main__":
    serve(float(sys.argv[1]) / 1e3, int(sys.argv[2]))
