"""Prometheus metrics over HTTP, on by default in every service."""

from __future__ import annotations

import socket
import threading
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from prometheus_client import make_wsgi_app
from prometheus_client.exposition import ThreadingWSGIServer

from tandem_common.config import ConfigError

# The server thread looks so often whether it should end, which it never should: a connection wakes it anyway.
_POLL_S = 3600.0


def start_metrics_server(host: str, port: int) -> int:
    """Serve /metrics from a daemon thread; returns the port, or 0 when `port` is -1 (off)."""
    if port < 0:
        return 0
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        server_class = type("Server", (ThreadingWSGIServer,), {"address_family": family})
        server: WSGIServer = make_server(str(address[0]), port, make_wsgi_app(), server_class, _Handler)
    except OSError as error:
        raise ConfigError(
            f"metrics_port = {port}: cannot listen on {host}:{port} ({error.strerror}); choose another, or 0 for any"
        ) from None
    threading.Thread(target=server.serve_forever, args=(_POLL_S,), name="metrics", daemon=True).start()
    return int(server.server_port)


class _Handler(WSGIRequestHandler):
    """Logs no requests."""

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - its name in the standard library
        """Nothing."""
