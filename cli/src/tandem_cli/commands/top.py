"""`tandem top`: the workers, live."""

from __future__ import annotations

import asyncio
from typing import Annotated

import typer
from rich.console import Console
from rich.live import Live
from tandem.v1 import router_pb2
from tandem_common.config import ConfigError

from tandem_cli.cluster_table import cluster_table
from tandem_cli.router_access import RPC_TIMEOUT_S, local_stack_record, place_of_router, router_stub


def top(
    once: Annotated[bool, typer.Option("--once", help="Print the table once and end.")] = False,
    router: Annotated[
        str | None,
        typer.Option(help="gRPC HOST:PORT of the router.", show_default="of the stack on this machine"),
    ] = None,
    redis: Annotated[
        str | None,
        typer.Option(envvar="TANDEM_REDIS_URL", help="URL of the Redis that the router is registered in."),
    ] = None,
    cluster: Annotated[
        str, typer.Option(envvar="TANDEM_CLUSTER", help="Name of the cluster in that Redis.")
    ] = "default",
) -> None:
    """Show what every worker does, holds and how fast it is, until Ctrl-C.

    run, wait: requests; to read: prompt tokens that are not computed yet; booked: requests sent to it that it has
    not reported yet; KV, cached: share of its blocks that requests hold, and that only the prefix cache holds;
    tok/s: fitted speed of reading prompts; ms/tok: fitted time of one more token for everybody on it.
    """
    place = place_of_router(router, redis, cluster, local_stack_record())
    console = Console()

    async def watch() -> None:
        async with router_stub(place) as stub:
            # The contract gives the stream no deadline; a look at it needs one.
            views = stub.WatchCluster(
                router_pb2.WatchClusterRequest(), timeout=RPC_TIMEOUT_S if once else None
            )
            if once:
                async for view in views:
                    console.print(cluster_table(view))
                    return
            with Live(console=console, auto_refresh=False, screen=console.is_terminal) as live:
                async for view in views:
                    live.update(cluster_table(view), refresh=True)
            raise ConfigError("the router ended the stream; is the stack stopping?")

    asyncio.run(watch())
