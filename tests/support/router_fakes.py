"""Small worlds for the router's tests: workers, views and queries with sensible defaults."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tandem.v1 import cluster_pb2 as pb
from tandem_common.registry import RegisteredWorker
from tandem_common.speed import DecodeSpeed, PrefillSpeed
from tandem_router.query import Query
from tandem_router.view import ClusterView, Link, Links, WorkerFacts, WorkerLoad, WorkerRole, WorkerView

FORMAT = ("tandem", b"layout")
PREFILL_SPEED = PrefillSpeed(a_ms=2.0, b_ms=0.1, c_ms=1e-5, num_samples=100)
DECODE_SPEED = DecodeSpeed(a_ms=5.0, b_ms=0.2, c_ms=1e-4, num_samples=100)


def make_facts(worker_id: str, role: WorkerRole, **changes: Any) -> WorkerFacts:
    defaults: dict[str, Any] = {
        "epoch": 1,
        "address": f"{worker_id}:1",
        "model": "tiny",
        "block_size": 16,
        "num_blocks": 1000,
        "max_context_tokens": 8192,
        "max_step_tokens": 512,
        "max_sequences": 64,
        "formats": {FORMAT: 100_000},
    }
    return WorkerFacts(worker_id=worker_id, role=role, **(defaults | changes))


def make_worker(
    worker_id: str,
    role: WorkerRole = WorkerRole.DECODE,
    *,
    load: WorkerLoad | None = None,
    prefill_speed: PrefillSpeed | None = PREFILL_SPEED,
    decode_speed: DecodeSpeed | None = DECODE_SPEED,
    links: Mapping[str, Link] | None = None,
    seen_ms: float = 0.0,
    **facts: Any,
) -> WorkerView:
    return WorkerView(
        facts=make_facts(worker_id, role, **facts),
        load=load or WorkerLoad(),
        prefill_speed=prefill_speed,
        decode_speed=decode_speed,
        links=Links(links or {}),
        seen_ms=seen_ms,
    )


def prefill_worker(worker_id: str, **changes: Any) -> WorkerView:
    return make_worker(worker_id, WorkerRole.PREFILL, **changes)


def decode_worker(worker_id: str, **changes: Any) -> WorkerView:
    return make_worker(worker_id, WorkerRole.DECODE, **changes)


def busy(num_decoding: int, context: int = 200, **changes: Any) -> WorkerLoad:
    """The load of a worker that decodes this many sequences of `context` tokens."""
    defaults: dict[str, Any] = {
        "num_sequences": num_decoding,
        "num_decoding": num_decoding,
        "decode_kv_tokens": num_decoding * context,
        "num_used_blocks": num_decoding * -(-context // 16),
    }
    return WorkerLoad(**(defaults | changes))


def queued(num_tokens: int, num_prompts: int = 1) -> WorkerLoad:
    """The load of a worker that has these prompts to compute."""
    return WorkerLoad(num_sequences=num_prompts, num_prefilling=num_prompts, queued_prefill_tokens=num_tokens)


def make_query(num_tokens: int = 1000, **changes: Any) -> Query:
    defaults: dict[str, Any] = {"request_id": "req-1", "model": "tiny", "max_tokens": 100}
    return Query(num_tokens=num_tokens, **(defaults | changes))


def view_of(*workers: WorkerView) -> ClusterView:
    return ClusterView.of(workers)


def make_card(worker_id: str, role: pb.Role = pb.ROLE_DECODE, **changes: Any) -> pb.WorkerCard:
    defaults: dict[str, Any] = {
        "epoch": 1,
        "address": f"{worker_id}:1",
        "model": "tiny",
        "status": pb.WORKER_STATUS_SERVING,
        "block_size": 16,
        "num_blocks": 1000,
        "max_context_tokens": 8192,
        "max_step_tokens": 512,
        "max_sequences": 64,
        "handoff_formats": [pb.HandoffFormat(family=FORMAT[0], layout_digest=FORMAT[1], block_bytes=100_000)],
        "labels": {"host": "here"},
    }
    return pb.WorkerCard(worker_id=worker_id, role=role, **(defaults | changes))


def make_beat(worker_id: str, **changes: Any) -> pb.WorkerBeat:
    defaults: dict[str, Any] = {
        "epoch": 1,
        "sequence": 1,
        "prefill_speed": PREFILL_SPEED.to_proto(),
        "decode_speed": DECODE_SPEED.to_proto(),
    }
    return pb.WorkerBeat(worker_id=worker_id, **(defaults | changes))


def registry_of(*cards: pb.WorkerCard, beats: Sequence[pb.WorkerBeat] = ()) -> dict[str, RegisteredWorker]:
    by_id = {beat.worker_id: beat for beat in beats}
    return {card.worker_id: RegisteredWorker(card, by_id.get(card.worker_id)) for card in cards}
