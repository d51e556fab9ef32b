"""Prometheus metrics over HTTP, on by default in every service."""

from __future__ import annotations

from prometheus_client import start_http_server

from tandem_common.config import ConfigError


def start_metrics_server(host: str, port: int) -> int:
    """Serve /metrics from a daemon thread; returns the port, or 0 when `port` is -1 (off)."""
    if port < 0:
        return 0
    try:
        server, _ = start_http_server(port, addr=host)
    except OSError as error:
        raise ConfigError(
            f"metrics_port = {port}: cannot listen on {host}:{port} ({error.strerror}); choose another, or 0 for any"
        ) from None
    return int(server.server_port)
