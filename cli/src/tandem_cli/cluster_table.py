"""The router's view of the cluster as a table. Pure."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text
from tandem.v1 import cluster_pb2, router_pb2

_STALE_MS = 2000
_ROLES = {
    cluster_pb2.ROLE_PREFILL: "prefill",
    cluster_pb2.ROLE_DECODE: "decode",
    cluster_pb2.ROLE_BOTH: "both",
}


def cluster_table(response: router_pb2.WatchClusterResponse) -> RenderableType:
    """One row per worker: what it is, what it does, what it holds, and how fast it is."""
    table = Table(box=None, padding=(0, 1, 0, 0), header_style="bold")
    for heading in ("worker", "role", "status"):
        table.add_column(heading, no_wrap=True)
    for heading in ("run", "wait", "to read", "booked", "KV", "cached", "tok/s", "ms/tok"):
        table.add_column(heading, justify="right", no_wrap=True)
    for view in sorted(response.workers, key=lambda view: (view.card.role, view.card.worker_id)):
        table.add_row(*(Text(cell) for cell in _cells(view)))
    parts: list[RenderableType] = [table]
    if not response.workers:
        parts = [Text("no worker is registered")]
    if response.stale_ms > _STALE_MS:
        parts.append(
            Text(f"Redis last answered {response.stale_ms / 1000:.1f} s ago; this view is old", "yellow")
        )
    return Group(*parts)


def _cells(view: router_pb2.WorkerView) -> tuple[str, ...]:
    card, beat = view.card, view.beat
    is_draining = card.status == cluster_pb2.WORKER_STATUS_DRAINING
    blocks = max(1, card.num_blocks)
    return (
        card.worker_id,
        _ROLES.get(card.role, "?"),
        "draining" if is_draining else "serving" if view.index_ready else "loading",
        str(beat.num_running),
        str(beat.num_waiting),
        str(beat.queued_prefill_tokens),
        str(view.num_bookings),
        f"{100 * beat.num_used_blocks / blocks:.0f}%",
        f"{100 * beat.num_cached_blocks / blocks:.0f}%",
        _prefill_speed(beat),
        _decode_speed(beat),
    )


def _prefill_speed(beat: cluster_pb2.WorkerBeat) -> str:
    """Tokens per second of a prompt, the fixed cost of a step aside."""
    if not beat.HasField("prefill_speed") or beat.prefill_speed.b_ms <= 0:
        return "-"
    return f"{1000 / beat.prefill_speed.b_ms:,.0f}"


def _decode_speed(beat: cluster_pb2.WorkerBeat) -> str:
    """Time of a step with one sequence more than now."""
    if not beat.HasField("decode_speed"):
        return "-"
    speed = beat.decode_speed
    step_ms = speed.a_ms + speed.b_ms * (beat.num_decoding + 1) + speed.c_ms * beat.decode_kv_tokens
    return f"{step_ms:.1f}"
