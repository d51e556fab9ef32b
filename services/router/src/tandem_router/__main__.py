"""`python -m tandem_router`."""

from __future__ import annotations

from tandem_common.metrics import start_metrics_server
from tandem_common.service import Lifecycle, run_service

from tandem_router.app import RouterApp
from tandem_router.config import RouterConfig


async def serve(config: RouterConfig, lifecycle: Lifecycle) -> None:
    """Serve until told to stop."""
    metrics_port = start_metrics_server(config.host, config.metrics_port)
    await RouterApp(config, metrics_port=metrics_port).run(lifecycle)


def main() -> None:
    """The `tandem-router` command."""
    run_service(RouterConfig, "router", serve)


if __name__ == "__main__":
    main()
