"""Where and how a client connects: the address, the key and the channel's options. Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

import grpc

from tandem_client.timeouts import Timeouts

# An answer of a long context with log-probabilities stays far below this.
_MAX_MESSAGE_BYTES = 64 * 1024 * 1024
_KEEPALIVE_TIME_MS = 30_000
_PING_TIMEOUT_MS = 10_000


@dataclass(frozen=True, kw_only=True)
class Connection:
    """A frontend's gRPC address ("host:port"), the API key it asks for, and TLS credentials if it speaks TLS."""

    address: str
    api_key: str | None = field(default=None, repr=False)
    credentials: grpc.ChannelCredentials | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        """Check the address: gRPC itself would accept anything, and fail later without naming it."""
        port = re.fullmatch(r"(?:\[[0-9a-fA-F:.]+\]|[^\s:/\[\]]+):(\d{1,5})", self.address)
        if port is None or not 0 < int(port[1]) < 65536:
            raise ValueError(f"address must be HOST:PORT, such as 127.0.0.1:8001, got {self.address!r}")
        if self.api_key is not None and not self.api_key:
            raise ValueError("api_key is empty; leave it out if the server asks for none")

    def metadata(self) -> tuple[tuple[str, str | bytes], ...]:
        """What goes with every call."""
        return (("authorization", f"Bearer {self.api_key}"),) if self.api_key is not None else ()

    @property
    def is_local(self) -> bool:
        """Whether the server is on this machine."""
        host = self.address.rpartition(":")[0]
        return host in ("localhost", "[::1]") or host.startswith("127.")

    def channel_options(self, timeouts: Timeouts) -> list[tuple[str, int]]:
        """Options of the channel; a dead server is noticed within about 40 s of silence, even without a reset."""
        options = _channel_options(timeouts)
        if self.is_local:  # a proxy meant for the outside would lead away from it
            options.append(("grpc.enable_http_proxy", 0))
        return options


def _channel_options(timeouts: Timeouts) -> list[tuple[str, int]]:
    connect_ms = max(1, round(timeouts.connect_s * 1000))
    return [
        # gRPC's connection time-out goes by this name.
        ("grpc.min_reconnect_backoff_ms", connect_ms),
        ("grpc.initial_reconnect_backoff_ms", 200),
        ("grpc.max_reconnect_backoff_ms", 5000),
        ("grpc.keepalive_time_ms", _KEEPALIVE_TIME_MS),
        ("grpc.keepalive_timeout_ms", _PING_TIMEOUT_MS),
        # keepalive_timeout_ms alone has no effect: the answer to a ping is waited for by this one (60 s if unset).
        ("grpc.http2.ping_timeout_ms", _PING_TIMEOUT_MS),
        # A ping is sent at most every 30 s while an answer is being made, however silent the stream is.
        ("grpc.http2.max_pings_without_data", 0),
        ("grpc.max_receive_message_length", _MAX_MESSAGE_BYTES),
        ("grpc.max_send_message_length", _MAX_MESSAGE_BYTES),
        # Clients of one process do not share the state of their connections.
        ("grpc.use_local_subchannel_pool", 1),
    ]
