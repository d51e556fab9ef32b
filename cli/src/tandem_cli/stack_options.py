"""What `tandem up` was asked for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tandem_common.config import MIN_SECRET_CHARS, ConfigError


@dataclass(frozen=True, kw_only=True)
class StackOptions:
    """A stack on this machine; raises ConfigError for what cannot work. None leaves a setting to the service.

    `settings` are further settings by service ("frontend", "router", "planner" or "worker"), then by name.
    """

    model_dir: Path
    served_model_name: str
    http_port: int
    grpc_port: int
    num_prefill: int = 2
    num_decode: int = 2
    num_aggregated: int = 0
    engine: str = "torch"
    host: str = "127.0.0.1"
    redis_url: str | None = field(default=None, repr=False)
    cluster: str = "default"
    cluster_secret: str = field(repr=False)
    threads: int | None = None
    dtype: str | None = None
    block_size: int | None = None
    kv_cache_mib: int | None = None
    policy: str | None = None
    log_level: str = "info"
    settings: Mapping[str, Mapping[str, str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Check the numbers of workers: a request needs one that can write tokens."""
        for name in ("num_prefill", "num_decode", "num_aggregated"):
            if getattr(self, name) < 0:
                raise ConfigError(f"--{name.removeprefix('num_')} must not be negative")
        if self.num_decode + self.num_aggregated == 0:
            raise ConfigError("nobody would write tokens: pass --decode 1 or more, or --aggregated 1 or more")
        if self.threads is not None and self.threads < 1:
            raise ConfigError(
                f"--threads {self.threads}: must be at least 1; leave it out to share the cores evenly"
            )
        if len(self.cluster_secret) < MIN_SECRET_CHARS:
            raise ConfigError(f"TANDEM_CLUSTER_SECRET must have at least {MIN_SECRET_CHARS} characters")

    @property
    def num_workers(self) -> int:
        """Processes with an engine."""
        return self.num_prefill + self.num_decode + self.num_aggregated
