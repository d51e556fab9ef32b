"""Readiness means that a canary went through the real route: router, session, worker and back.

The canary runs until one has succeeded, and from then on whenever nothing else has succeeded for a while.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

from tandem.v1 import cluster_pb2 as pb
from tandem_common.errors import Overloaded, TandemError
from tandem_common.generation import SamplingParams
from tandem_common.logs import get_logger
from tandem_common.registry import ClusterWatcher

from tandem_frontend.frontend_metrics import FrontendMetrics
from tandem_frontend.generator import Generator
from tandem_frontend.http_messages import new_request_id
from tandem_frontend.models import ModelCatalog
from tandem_frontend.open_requests import OpenRequests
from tandem_frontend.options import GenerationOptions, TextPrompt
from tandem_frontend.preparation import Caller, Preparation
from tandem_frontend.text_stream import Delta

# Blocks of the canary's own tenant are shared with nobody.
CANARY_TENANT = "tandem-canary"
_TICK_S = 0.1
# Between canaries while the last one has failed.
_RETRY_S = 1.0

_log = get_logger("health")


class Canary:
    """Asks for one token through the real route. `failure` is None once it has come through."""

    def __init__(
        self,
        preparation: Preparation,
        generator: Generator,
        catalog: ModelCatalog,
        metrics: FrontendMetrics,
        *,
        interval_s: float,
        timeout_s: float,
    ) -> None:
        self._preparation = preparation
        self._generator = generator
        self._catalog = catalog
        self._metrics = metrics
        self._interval_s = interval_s
        self._timeout_s = timeout_s
        self.failure: str | None = "no canary has come through yet"

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            models = [m for m in self._catalog.served() if self._catalog.decode_workers(m.name)]
            last = self._generator.last_success_at
            proved_for_s = last + self._interval_s - time.monotonic() if last is not None else 0.0
            if self.failure is None and proved_for_s > 0:
                await asyncio.sleep(proved_for_s)
            elif not models:
                await asyncio.sleep(_TICK_S)
            else:
                await self.send(models[0].name)
                if self.failure is not None:
                    await asyncio.sleep(_RETRY_S)

    async def send(self, model: str) -> None:
        """One canary; sets `failure`."""
        failure = None
        outcome = "ok"
        try:
            async with asyncio.timeout(self._timeout_s):
                request = await self._preparation.prepare(
                    model,
                    TextPrompt("a"),
                    GenerationOptions(
                        sampling=SamplingParams(temperature=0.0), seeded=True, max_tokens=1, ignore_eos=True
                    ),
                    Caller(request_id=new_request_id(), tenant=CANARY_TENANT),
                )
                await self._generator.generate(request, _Nowhere(), canary=True)
        except Overloaded:
            # Refusing is what a working route does under overload; it says nothing new.
            outcome, failure = "overloaded", self.failure
        except TimeoutError:
            outcome, failure = "failed", f"the last canary took longer than {self._timeout_s:g} s"
        except TandemError as error:
            outcome, failure = "failed", f"the last canary failed: {error.message}"
        if failure is not None and failure != self.failure:
            _log.warning("not ready", reason=failure)
        self._metrics.canaries.labels(outcome).inc()
        self.failure = failure


class _Nowhere:
    """A DeltaSink for answers that nobody reads."""

    def on_delta(self, delta: Delta) -> None:
        """Drop it."""

    def text_writer(self) -> None:
        """There is none."""


@dataclass(frozen=True, kw_only=True)
class HealthReport:
    """What /health answers; no addresses, since it needs no key."""

    status: str  # "ok" or "unavailable"
    reason: str | None
    draining: bool
    models: Sequence[str]
    num_decode_workers: int
    num_prefill_workers: int
    num_routers: int
    num_open_requests: int
    registry_stale_ms: int

    @property
    def ready(self) -> bool:
        """Whether requests should be sent here."""
        return self.status == "ok"


class Health:
    """Puts the report together."""

    def __init__(
        self,
        watcher: ClusterWatcher,
        routers: Callable[[], Collection[str]],
        catalog: ModelCatalog,
        canary: Canary,
        open_requests: OpenRequests,
    ) -> None:
        """`routers`: addresses of those known now; requests are served without one, but by turns."""
        self._watcher = watcher
        self._routers = routers
        self._catalog = catalog
        self._canary = canary
        self._open = open_requests

    def report(self) -> HealthReport:
        """As of now."""
        models = [model.name for model in self._catalog.served()]
        num_decode = sum(len(self._catalog.decode_workers(name)) for name in models)
        num_prefill = sum(
            worker.card.role in (pb.ROLE_PREFILL, pb.ROLE_BOTH)
            and worker.card.status == pb.WORKER_STATUS_SERVING
            for worker in self._watcher.workers.values()
        )
        reason = self._canary.failure
        if self._open.draining:
            reason = "shutting down"
        elif num_decode == 0:
            reason = "no worker can serve"
        return HealthReport(
            status="ok" if reason is None else "unavailable",
            reason=reason,
            draining=self._open.draining,
            models=models,
            num_decode_workers=num_decode,
            num_prefill_workers=num_prefill,
            num_routers=len(self._routers()),
            num_open_requests=self._open.num_open,
            registry_stale_ms=self._watcher.stale_ms,
        )
