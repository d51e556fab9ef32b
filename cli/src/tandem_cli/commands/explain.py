"""`tandem explain`: why a request went where it went, or where one would go."""

from __future__ import annotations

import asyncio
from typing import Annotated

import typer
from rich.console import Console
from tandem.v1 import cluster_pb2, router_pb2, router_pb2_grpc
from tandem_client import AsyncClient, ChatMessage, TandemError
from tandem_common.config import ConfigError

from tandem_cli.explanation import dry_run_query, explanation
from tandem_cli.router_access import (
    RPC_TIMEOUT_S,
    explain_request,
    local_stack_record,
    place_of_router,
    router_stub,
)
from tandem_cli.run_file import RunRecord


def explain(
    request_id: Annotated[
        str | None, typer.Argument(help="A request, by the x-request-id that its answer came with.")
    ] = None,
    prompt: Annotated[str | None, typer.Option(help="Instead: a question that was not asked yet.")] = None,
    model: Annotated[
        str | None, typer.Option(help="Model for --prompt.", show_default="the first that is served")
    ] = None,
    max_tokens: Annotated[int, typer.Option(min=1, help="Length of the answer to --prompt.")] = 256,
    tenant: Annotated[str, typer.Option(help="Whose cached blocks --prompt could use.")] = "public",
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
    address: Annotated[
        str | None,
        typer.Option(
            help="gRPC HOST:PORT of a frontend, for --prompt.", show_default="of the stack on this machine"
        ),
    ] = None,
    api_key: Annotated[
        str | None, typer.Option(envvar="TANDEM_CLI_API_KEY", help="Key that the frontend asks for.")
    ] = None,
) -> None:
    """Show every candidate of a routing decision, with every term of its cost.

    The router remembers its latest decisions by request id; a --prompt is tried without being run.
    """
    if (request_id is None) == (prompt is None):
        raise ConfigError("pass either a REQUEST_ID or --prompt TEXT")
    stack = local_stack_record()
    place = place_of_router(router, redis, cluster, stack)
    frontend = address or (stack.grpc_address if stack else "")
    if prompt is not None and not frontend:
        raise ConfigError("--prompt needs a frontend to tokenize it: pass --address HOST:PORT")

    async def ask() -> router_pb2.ExplainResponse:
        if prompt is None:
            return await explain_request(place, request_id or "")
        async with router_stub(place) as stub:
            card = await _card(stub, model)
            token_ids = await _tokenize(frontend, api_key, card.model, prompt)
            query = dry_run_query(
                card, token_ids, secret=_secret(stack), tenant=tenant, max_tokens=max_tokens
            )
            return await stub.Explain(router_pb2.ExplainRequest(query=query), timeout=RPC_TIMEOUT_S)

    Console().print(explanation(asyncio.run(ask())))


async def _card(stub: router_pb2_grpc.RouterServiceAsyncStub, model: str | None) -> cluster_pb2.WorkerCard:
    """A worker of the model: all of them share revision and block size."""
    async for view in stub.WatchCluster(router_pb2.WatchClusterRequest(), timeout=RPC_TIMEOUT_S):
        for worker in view.workers:
            if model is None or worker.card.model == model:
                return worker.card
        break
    raise ConfigError("no worker is registered" + (f" for model {model!r}" if model else ""))


async def _tokenize(address: str, api_key: str | None, model: str, prompt: str) -> tuple[int, ...]:
    try:
        async with AsyncClient(address, api_key=api_key or None) as client:
            return await client.tokenize([ChatMessage("user", prompt)], model=model)
    except (TandemError, ValueError) as error:
        raise ConfigError(f"the frontend at {address}: {error}") from None


def _secret(stack: RunRecord | None) -> str:
    return stack.cluster_secret if stack is not None else ""
