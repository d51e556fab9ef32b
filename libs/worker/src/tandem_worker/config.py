"""Configuration of a worker: the service's, the engine's, and its own, in one flat class."""

from __future__ import annotations

import platform
import socket
from dataclasses import dataclass

from tandem_common.config import ConfigError, ServiceConfig, setting
from tandem_common.model_source import served_name
from tandem_engine.config import EngineConfig

ROLES = ("prefill", "decode", "both")


@dataclass(frozen=True, kw_only=True)
class WorkerConfig(ServiceConfig, EngineConfig):
    """A worker of Tandem: one engine in one role."""

    role: str = setting("both", "what the worker does at first", choices=ROLES)
    worker_id: str = setting("", "name of the worker, unique in the cluster; empty: a random one")
    served_model_name: str = setting(
        "", "name that clients ask for; empty: the last part of the model's path"
    )
    labels: tuple[str, ...] = setting(
        (), "KEY=VALUE,... shown in the registry: rack, zone, region (host and hardware are found out)"
    )
    price_per_million_tokens: float = setting(
        0.0, "price of this worker's tokens, which requests can set a limit to", minimum=0, maximum=1e9
    )
    kv_host: str = setting("", "address on which blocks are received over TCP; empty: the same as host")
    kv_port: int = setting(0, "port for blocks over TCP; 0: any free one", minimum=0, maximum=65535)
    transports: tuple[str, ...] = setting(
        ("shm", "tcp"), "ways that blocks may travel, best first", choices=("shm", "tcp")
    )
    heartbeat_s: float = setting(0.25, "seconds between heartbeats", minimum=0.05, maximum=10)
    lease_timeout_s: float = setting(60.0, "a handoff ends after so long without a sign of life", minimum=0.1)
    prefill_timeout_s: float = setting(
        60.0, "a remote prefill may take so long; then the prompt is computed here", minimum=0.1
    )
    transfer_timeout_s: float = setting(10.0, "one chunk of blocks may travel for so long", minimum=0.1)
    request_timeout_s: float = setting(3600.0, "longest that any request may take", minimum=1)
    drain_timeout_s: float = setting(30.0, "requests may finish for so long after SIGTERM", minimum=0)

    def __post_init__(self) -> None:
        """Check the values of all three parts."""
        ServiceConfig.__post_init__(self)
        EngineConfig.__post_init__(self)
        self.secret_bytes()
        if not self.transports:
            raise ConfigError("transports is empty: allow at least one of shm, tcp")
        allowed = self.worker_id.replace("-", "").replace("_", "").replace(".", "")
        if self.worker_id and (not allowed.isalnum() or len(self.worker_id) > 64):
            raise ConfigError(
                f"worker_id = {self.worker_id!r}: use up to 64 letters, digits, '-', '_' and '.'"
            )
        for label in self.labels:
            if not all(label.partition("=")):
                raise ConfigError(f"labels: {label!r} must have the form KEY=VALUE")

    @property
    def model_name(self) -> str:
        """Name that clients ask for."""
        return self.served_model_name or (served_name(self.model) if self.model else "simulated")

    @property
    def shares_pool(self) -> bool:
        """For workers whose task is to ship blocks. Others, when they come to it, copy them once more."""
        return "shm" in self.transports and self.role == "prefill"

    def all_labels(self) -> dict[str, str]:
        """Labels for the card: what is known of this machine, and what was configured."""
        found = {"host": socket.gethostname(), "hardware": platform.machine()}
        return found | dict(label.split("=", 1) for label in self.labels)
