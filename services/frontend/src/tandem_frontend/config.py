"""What a frontend can be told."""

from __future__ import annotations

from dataclasses import dataclass

from tandem_common.config import ConfigError, ServiceConfig, setting


@dataclass(frozen=True, kw_only=True)
class FrontendConfig(ServiceConfig):
    """Tandem's frontend: OpenAI over HTTP, typed API over gRPC."""

    http_port: int = setting(8000, "HTTP port; 0: any free one", minimum=0, maximum=65535)
    workers: int = setting(
        1, "processes that share the ports: one event loop uses one core", minimum=1, maximum=256
    )
    joins: bool = setting(
        False, "share the ports with the frontend that started this one, and stop when standard input ends"
    )
    model: str = setting("", "directory or Hugging Face hub id of the model that is served")
    api_keys_file: str = setting(
        "",
        "file with one line per API key: SHA-256 of the key in hex, then the tenant; empty: no keys needed",
    )
    routers: tuple[str, ...] = setting((), "gRPC host:port of routers; empty: those in the registry")
    max_body_bytes: int = setting(8 << 20, "largest HTTP request body", minimum=1024, maximum=1 << 30)
    max_connections: int = setting(4096, "HTTP connections at a time; more get 503", minimum=1)
    header_timeout_s: float = setting(
        10.0, "how long a client may take to send a request's headers", minimum=0.1
    )
    body_timeout_s: float = setting(30.0, "how long a client may take to send a request's body", minimum=0.1)
    request_timeout_s: float = setting(600.0, "longest time for one request", minimum=1, maximum=86_400)
    first_token_timeout_s: float = setting(
        60.0, "a worker that sends no first token for so long is left for another", minimum=0.1
    )
    token_timeout_s: float = setting(
        10.0, "a worker that sends no further token for so long is left for another", minimum=0.1
    )
    max_migrations: int = setting(3, "how often one request may go on elsewhere", minimum=0, maximum=16)
    stream_buffer_bytes: int = setting(
        256 << 10, "a stream whose client leaves more than this unread is ended", minimum=4096
    )
    stream_buffer_age_s: float = setting(
        10.0, "a stream whose client leaves something unread for longer is ended", minimum=0.1
    )
    stream_keepalive_s: float = setting(
        10.0, "a stream that has nothing to say sends a comment about this often", minimum=0.05
    )
    canary_interval_s: float = setting(10.0, "when idle, check the whole route this often", minimum=0.1)
    canary_timeout_s: float = setting(30.0, "how long a canary may take", minimum=0.1)
    drain_timeout_s: float = setting(30.0, "how long open streams may go on after SIGTERM", minimum=0)

    def __post_init__(self) -> None:
        """Check what one field cannot say."""
        super().__post_init__()
        if self.joins and not (self.http_port and self.port):
            raise ConfigError(
                "joins needs the http_port and port of the frontend that it joins; leave it to --workers"
            )
        if not self.model:
            raise ConfigError("model is not set: pass --model with a directory or a Hugging Face hub id")

    @property
    def shares_ports(self) -> bool:
        """Whether other frontend processes listen on the same ports."""
        return self.joins or self.workers > 1
