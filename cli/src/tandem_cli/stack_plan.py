"""Which processes a stack consists of, and how each is started. Pure."""

from __future__ import annotations

import ipaddress
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path

from tandem_cli.redis_server import redis_spec, redis_url
from tandem_cli.stack_options import StackOptions
from tandem_cli.supervisor.process_spec import ProcessSpec

# Together below the 4 s after which stragglers are killed.
_FRONTEND_DRAIN_S = 1.0
_WORKER_DRAIN_S = 0.8
_ROUTER_DRAIN_S = 0.3


class Tier(IntEnum):
    """Stopping goes from the last to the first: nobody loses what it depends on while it finishes its work."""

    REDIS = 0
    PLANNER = 1
    ROUTER = 2
    WORKERS = 3
    FRONTEND = 4


@dataclass(frozen=True, kw_only=True)
class Machine:
    """What the plan needs to know of the place: cores, the environment, a private directory, a Redis program."""

    num_cores: int
    environ: Mapping[str, str]
    run_dir: Path
    redis_program: str | None


@dataclass(frozen=True, kw_only=True)
class StackPlan:
    """The processes; `redis` is None when an existing one is used, and is started before the others."""

    redis: ProcessSpec | None
    services: tuple[ProcessSpec, ...]
    redis_url: str


def plan_stack(options: StackOptions, machine: Machine) -> StackPlan:
    """All processes for these options on this machine."""
    if options.redis_url is None:
        if machine.redis_program is None:
            raise ValueError("a private Redis needs a program")
        url = redis_url(machine.run_dir)
        redis = redis_spec(machine.redis_program, machine.run_dir, machine.environ, tier=Tier.REDIS)
    else:
        url, redis = options.redis_url, None
    planner = _Planner(options, machine, url)
    return StackPlan(redis=redis, services=planner.services(), redis_url=url)


class _Planner:
    """Makes the specs of the services, which have much in common."""

    def __init__(self, options: StackOptions, machine: Machine, url: str) -> None:
        self._options = options
        self._machine = machine
        self._url = url

    def services(self) -> tuple[ProcessSpec, ...]:
        """Router, planner, workers and frontend."""
        options = self._options
        counts = (
            ("prefill", "prefill", options.num_prefill),
            ("decode", "decode", options.num_decode),
            ("aggregated", "both", options.num_aggregated),
        )
        workers = (
            self._worker(f"{kind}-{number}", role)
            for kind, role, count in counts
            for number in range(1, count + 1)
        )
        return (self._router(), self._planner(), *workers, self._frontend())

    def _router(self) -> ProcessSpec:
        settings = {"drain_s": f"{_ROUTER_DRAIN_S}", "policy": self._options.policy}
        return self._spec("router", "tandem_router", "router", settings, tier=Tier.ROUTER, stop_wait_s=0.5)

    def _planner(self) -> ProcessSpec:
        return self._spec("planner", "tandem_planner", "planner", {}, tier=Tier.PLANNER, stop_wait_s=0.3)

    def _frontend(self) -> ProcessSpec:
        options = self._options
        settings = {
            "model": str(options.model_dir),
            "http_port": str(options.http_port),
            "port": str(options.grpc_port),
            "drain_timeout_s": f"{_FRONTEND_DRAIN_S}",
        }
        return self._spec(
            "frontend", "tandem_frontend", "frontend", settings, tier=Tier.FRONTEND, stop_wait_s=1.6
        )

    def _worker(self, name: str, role: str) -> ProcessSpec:
        options = self._options
        threads = options.threads or max(1, self._machine.num_cores // options.num_workers)
        # A private Redis knows no other workers; in a shared one the name has to be unique.
        worker_id = name if options.redis_url is None else f"{self._machine.run_dir.name}-{name}"
        settings = {
            "role": role,
            "worker_id": worker_id,
            "model": str(options.model_dir),
            "served_model_name": options.served_model_name,
            "engine": options.engine,
            "threads": str(threads),
            "dtype": options.dtype,
            "block_size": _text(options.block_size),
            "kv_cache_mib": _text(options.kv_cache_mib),
            "drain_timeout_s": f"{_WORKER_DRAIN_S}",
        }
        module = "tandem_prefill" if role == "prefill" else "tandem_decode"
        environ = {"OMP_NUM_THREADS": str(threads), "TOKENIZERS_PARALLELISM": "false"}
        return self._spec(
            name, module, "worker", settings, tier=Tier.WORKERS, stop_wait_s=1.2, environ=environ
        )

    def _advertise_host(self) -> str | None:
        """A host that can be connected to, when services listen on all; None leaves it to the environment."""
        if _is_unspecified(self._options.host) and "TANDEM_ADVERTISE_HOST" not in self._machine.environ:
            return "127.0.0.1"
        return None

    def _spec(
        self,
        name: str,
        module: str,
        service: str,
        settings: Mapping[str, str | None],
        *,
        tier: Tier,
        stop_wait_s: float,
        environ: Mapping[str, str] | None = None,
    ) -> ProcessSpec:
        options = self._options
        all_settings = {
            "cluster": options.cluster,
            "advertise_host": self._advertise_host(),
            "host": options.host,
            "log_level": options.log_level,
            **settings,
            **options.settings.get(service, {}),
        }
        flags = (
            part
            for setting, value in all_settings.items()
            if value is not None
            for part in (f"--{setting.replace('_', '-')}", value)
        )
        secrets = {"TANDEM_CLUSTER_SECRET": options.cluster_secret, "TANDEM_REDIS_URL": self._url}
        return ProcessSpec(
            name=name,
            argv=(sys.executable, "-m", module, *flags),
            environ={**self._machine.environ, "PYTHONUNBUFFERED": "1", **(environ or {}), **secrets},
            tier=tier,
            stop_wait_s=stop_wait_s,
        )


def _is_unspecified(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_unspecified
    except ValueError:  # a name
        return False


def _text(value: int | None) -> str | None:
    return None if value is None else str(value)
