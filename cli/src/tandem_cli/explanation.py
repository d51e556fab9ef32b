"""A routing decision as tables, and the query for a dry run. Pure."""

from __future__ import annotations

import secrets
from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text
from tandem.v1 import cluster_pb2, router_pb2
from tandem_common.hashing import block_hashes, namespace_root, pack_hashes, tenant_salt

_MAX_ROWS = 32


def dry_run_query(
    card: cluster_pb2.WorkerCard, token_ids: Sequence[int], *, secret: str, tenant: str, max_tokens: int
) -> router_pb2.RouteQuery:
    """What a frontend would ask for this prompt. Without the cluster's secret, no block can be named."""
    hashes: list[bytes] = []
    if secret:
        root = namespace_root(card.model_revision, tenant_salt=tenant_salt(secret.encode(), tenant))
        hashes = block_hashes(root, token_ids, card.block_size)
    return router_pb2.RouteQuery(
        request_id=f"explain-{secrets.token_hex(8)}",
        model=card.model,
        num_tokens=len(token_ids),
        block_hashes=pack_hashes(hashes),
        max_tokens=max_tokens,
        tenant=tenant,
    )


def explanation(response: router_pb2.ExplainResponse) -> RenderableType:
    """The candidates with every term of their cost, cheapest first, and who was left out and why.

    "cached" are leading blocks that need not be computed: on the worker that computes the prompt, and on the other.
    """
    chosen = response.chosen
    prefill = chosen.prefill.worker_id if chosen.HasField("prefill") else ""
    how = f"prompt on {prefill}" if prefill else "prompt on the same worker"
    parts: list[RenderableType] = [
        Text(f"Chosen: {chosen.decode.worker_id}, {how} (policy {response.policy})", "bold"),
        Text(_prediction(chosen)),
        *([Text(_admission(response))] if response.HasField("admission") else []),
        Text(),
        _candidates(response),
    ]
    num_hidden = response.num_candidates - min(len(response.candidates), _MAX_ROWS)
    if num_hidden > 0:
        parts.append(Text(f"... and {num_hidden} dearer ones", "dim"))
    if response.excluded:
        parts.append(Text())
        parts.append(_excluded(response))
    return Group(*parts)


def _prediction(chosen: router_pb2.RouteResponse) -> str:
    first = (
        f"first token predicted after {chosen.predicted_ttft_ms:.1f} ms"
        if chosen.predicted_ttft_ms > 0
        else "no speeds are known yet"
    )
    return f"{first}; {chosen.predicted_cached_tokens} tokens of the prompt expected in its cache"


def _admission(response: router_pb2.ExplainResponse) -> str:
    """What the queue would make of the request; only a dry run has it."""
    admission = response.admission
    deadline = f" (deadline {admission.deadline_ms:.0f} ms)" if admission.deadline_ms else ""
    is_predicted = response.chosen.predicted_ttft_ms > 0
    bound = f"first token within {admission.ttft_bound_ms:.0f} ms" if is_predicted else "no time is predicted"
    bound += deadline
    error = f"first tokens lately took up to {admission.error_factor:.2f} times what was predicted"
    match admission.verdict:
        case "start":
            verdict = f"It would start now; {bound}"
        case "wait":
            verdict = (
                f"It would wait {admission.wait_ms:.0f} ms, beside {admission.num_waiting} others; {bound}"
            )
        case _:
            verdict = f"It would be refused: {admission.reason}"
    return f"{verdict}; {error}" if is_predicted else verdict


def _candidates(response: router_pb2.ExplainResponse) -> Table:
    # Terms that are nothing for everybody explain nothing.
    terms = sorted(
        {name for candidate in response.candidates for name, value in candidate.terms.items() if value}
    )
    table = Table(box=None, padding=(0, 1, 0, 0), header_style="bold")
    # Not "decode" and "prefill": two of the terms are called so.
    table.add_column("decodes", no_wrap=True)
    table.add_column("prefills", no_wrap=True)
    for heading in ("cached", *(term.replace("_", " ") for term in terms), f"cost ({response.unit})"):
        table.add_column(heading, justify="right")
    for candidate in response.candidates[:_MAX_ROWS]:
        table.add_row(
            Text(candidate.decode_worker_id),
            Text(candidate.prefill_worker_id or "-"),
            f"{candidate.prefill_cached_blocks} + {candidate.decode_cached_blocks}",
            *(f"{candidate.terms[term]:.2f}" if term in candidate.terms else "" for term in terms),
            f"{candidate.cost:.2f}",
        )
    return table


def _excluded(response: router_pb2.ExplainResponse) -> Table:
    table = Table(box=None, padding=(0, 1), header_style="bold")
    table.add_column("left out")
    table.add_column("because")
    for worker_id, reason in sorted(response.excluded.items()):
        table.add_row(Text(worker_id), Text(reason))
    return table
