"""`python -m tandem_frontend`: configure, run, drain."""

from __future__ import annotations

import asyncio
import os
import sys

from tandem_common.metrics import start_metrics_server
from tandem_common.model_source import model_revision, resolve_model, served_name
from tandem_common.redis_client import connect
from tandem_common.service import Lifecycle, run_service

from tandem_frontend.api_keys import ApiKeys
from tandem_frontend.config import FrontendConfig
from tandem_frontend.frontend import Frontend
from tandem_frontend.frontend_metrics import FrontendMetrics
from tandem_frontend.models import LocalModel
from tandem_frontend.siblings import Siblings, sibling_flags, stop_with_standard_input
from tandem_frontend.tokenizer import ModelTokenizer

# Threads that tokenize long prompts let the event loop go on after this long; Python's default is 5 ms.
_SWITCH_INTERVAL_S = 0.0005

# Beyond the time for draining, until a further process is killed.
_STOP_MARGIN_S = 5.0


async def serve(config: FrontendConfig, lifecycle: Lifecycle) -> None:
    """Serve until told to stop, then let open requests finish."""
    sys.setswitchinterval(_SWITCH_INTERVAL_S)
    # One prompt at a time has nothing to share out among the tokenizer's own threads.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    path = await asyncio.to_thread(resolve_model, config.model)
    local = LocalModel(
        name=served_name(config.model),
        revision=await asyncio.to_thread(model_revision, path),
        tokenizer=await asyncio.to_thread(ModelTokenizer, path),
    )
    api_keys = ApiKeys.from_file(config.api_keys_file) if config.api_keys_file else ApiKeys({})
    metrics = FrontendMetrics()
    client = connect(config.redis_url)
    frontend = Frontend(config, local, api_keys, client, metrics)
    siblings: Siblings | None = None
    try:
        await frontend.start()
        metrics_port = start_metrics_server(config.host, config.metrics_port)
        if config.joins:
            stop_with_standard_input(lifecycle)
        elif config.workers > 1:
            flags = sibling_flags(
                sys.argv[1:],
                http_port=frontend.http_port,
                port=frontend.port,
                metrics_port=config.metrics_port,
            )
            siblings = Siblings(
                config.workers - 1, flags, stop_timeout_s=config.drain_timeout_s + _STOP_MARGIN_S
            )
            await siblings.start()
        work = asyncio.create_task(frontend.run(metrics_port))
        stopping = asyncio.create_task(lifecycle.stopping())
        host = config.reachable_host
        lifecycle.ready(
            http_address=f"{host}:{frontend.http_port}",
            address=f"{host}:{frontend.port}",
            metrics_port=metrics_port,
        )
        try:
            await asyncio.wait((work, stopping), return_when=asyncio.FIRST_COMPLETED)
            if work.done():
                work.result()  # background work ends only by a defect; end the process rather than limp on
            stopped = asyncio.create_task(siblings.stop()) if siblings is not None else None
            await frontend.drain()
            if stopped is not None:
                await stopped
        finally:
            for task in (work, stopping):
                task.cancel()
            await asyncio.gather(work, stopping, return_exceptions=True)
    finally:
        if siblings is not None:
            await siblings.stop()
        await frontend.stop()
        await client.aclose()


def main() -> None:
    """Entry point of `tandem-frontend`."""
    run_service(FrontendConfig, "frontend", serve)


if __name__ == "__main__":
    main()
