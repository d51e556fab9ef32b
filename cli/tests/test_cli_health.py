"""When a frontend counts as ready for a stack that was asked for."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest
from tandem_cli.health import health_problem

READY = {"status": "ok", "num_prefill_workers": 1, "num_decode_workers": 2, "num_routers": 1}


@contextmanager
def answering(status: int, report: dict[str, Any]) -> Iterator[str]:
    """A server whose /health answers this."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = json.dumps(report).encode()
            self.send_response(status)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - its name there
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


def test_ready_with_all_workers_and_a_router() -> None:
    with answering(200, READY) as address:
        assert health_problem(address, num_prefill=1, num_decode=2) is None


@pytest.mark.parametrize(
    ("missing", "problem"),
    [
        ({"num_decode_workers": 1}, "it sees 1 of 2 decode workers"),
        ({"num_prefill_workers": 0}, "it sees 0 of 1 prefill workers"),
        # Its canary goes to any worker then; requests would too, whatever the policy.
        ({"num_routers": 0}, "it sees no router"),
    ],
)
def test_says_what_is_missing(missing: dict[str, int], problem: str) -> None:
    with answering(200, {**READY, **missing}) as address:
        assert health_problem(address, num_prefill=1, num_decode=2) == problem


def test_the_frontends_own_reason_is_passed_on() -> None:
    with answering(503, {"status": "unavailable", "reason": "no canary has come through yet"}) as address:
        assert health_problem(address, num_prefill=1, num_decode=1) == "no canary has come through yet"
