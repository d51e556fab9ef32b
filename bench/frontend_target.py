"""A server under load: where it is and which processes it consists of."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from tandem_cli.local_stack import LocalStack
from tandem_cli.stack_options import StackOptions

# Redis is part of the control plane only, but it is there, so it is accounted for.
_PROCESSES = {"frontend": "frontend", "router": "router", "aggregated-1": "worker", "planner": "planner"}


@dataclass(frozen=True, kw_only=True)
class Target:
    """One server; `pids` by the name that its processes have in the tables."""

    name: str
    host: str
    port: int
    model: str
    pids: Mapping[str, int]
    metrics_port: int = 0


@asynccontextmanager
async def running_tandem(
    model: Path, step_ms: float, max_sequences: int, log_dir: Path | None
) -> AsyncIterator[Target]:
    """Frontend, router, planner and one aggregated worker with a simulated engine of this step time."""
    worker = {
        "max_sequences": str(max_sequences),
        "max_step_tokens": "8192",
        "num_blocks": str(max(16_384, 96 * max_sequences)),
        "sim_decode_base_ms": str(step_ms),
    }
    options = StackOptions(
        model_dir=model,
        served_model_name=model.name,
        http_port=0,
        grpc_port=0,
        num_prefill=0,
        num_decode=0,
        num_aggregated=1,
        engine="simulated",
        cluster_secret=secrets.token_hex(16),
        threads=1,
        settings={"worker": worker},
    )
    async with LocalStack(options, log_dir=log_dir) as stack:
        host, _, port = stack.addresses.http_address.rpartition(":")
        yield Target(
            name="tandem",
            host=host,
            port=int(port),
            model=model.name,
            metrics_port=int(stack.processes["frontend"].facts["metrics_port"]),
            pids={shown: stack.processes[name].pid for name, shown in _PROCESSES.items()},
        )
