"""A prefill worker that writes down when it computed and shipped what: run by `bench/handoff_overlap.py`."""

from __future__ import annotations

import json
import os
import time

import tandem_prefill.call
from tandem_common.service import Lifecycle, run_service
from tandem_engine.batch import Batch, Draw
from tandem_engine.config import EngineConfig
from tandem_engine.local_engine import LocalEngine
from tandem_engine.torch_engine import TorchRunner
from tandem_prefill.__main__ import PrefillConfig
from tandem_prefill.shipping import Shipping
from tandem_worker.config import WorkerConfig
from tandem_worker.host import WorkerHost

LOG = open(os.environ["BENCH_HANDOFF_LOG"], "a", buffering=1, encoding="utf-8")  # noqa: SIM115 - as long as the process


def note(**facts: object) -> None:
    """A line with the time."""
    LOG.write(json.dumps({"at_s": time.perf_counter(), **facts}) + "\n")


class TimedRunner(TorchRunner):
    """Notes the end of every step."""

    def execute(self, batch: Batch) -> list[Draw]:
        """Compute, then note how many tokens."""
        drawn = super().execute(batch)
        note(event="computed", num_tokens=sum(row.num_new_tokens for row in batch.sequences))
        return drawn


class TimedShipping(Shipping):
    """Notes when each stretch of blocks was sent off, and when the decode worker held it."""

    async def ship(self, first_block: int, end_block: int) -> None:
        """Ship and note."""
        note(event="shipping", num_blocks=end_block - first_block)
        await super().ship(first_block, end_block)
        note(event="shipped", num_blocks=end_block - first_block, transport=self.transport)


def make_engine(config: EngineConfig) -> LocalEngine:
    """The torch engine, timed."""
    return LocalEngine(config, TimedRunner(config))


async def serve(config: WorkerConfig, lifecycle: Lifecycle) -> None:
    """The worker as it always is, but for the engine."""
    await WorkerHost(config, make_engine).serve(lifecycle)


if __name__ == "__main__":
    vars(tandem_prefill.call)["Shipping"] = TimedShipping
    run_service(PrefillConfig, "worker", serve)
