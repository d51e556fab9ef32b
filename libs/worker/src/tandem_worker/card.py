"""What a worker tells the cluster of itself: the card (what it is) and the beat (what it does now)."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from tandem.v1 import cluster_pb2 as pb
from tandem.v1 import worker_pb2

from tandem_worker.lease import Lease
from tandem_worker.worker import Worker

# Blocks as the torch and the simulated engine lay them out; layouts differ by their digest.
HANDOFF_FAMILY = "tandem"


@dataclass(kw_only=True, slots=True)
class Endpoints:
    """Where a worker can be reached."""

    address: str = ""  # gRPC host:port, once it listens
    metrics_port: int
    kv: Collection[pb.KvEndpoint]


def make_card(worker: Worker, endpoints: Endpoints) -> pb.WorkerCard:
    """The card as of now."""
    info = worker.engine.info
    return pb.WorkerCard(
        worker_id=worker.worker_id,
        epoch=worker.epoch,
        address=endpoints.address,
        model=worker.config.model_name,
        model_revision=worker.model_revision,
        role=worker.gate.role,
        supported_roles=worker.gate.supported,
        status=worker.gate.status,
        block_size=info.block_size,
        num_blocks=info.num_blocks,
        max_context_tokens=info.max_context_tokens,
        max_step_tokens=info.max_step_tokens,
        max_sequences=info.max_sequences,
        handoff_formats=[
            pb.HandoffFormat(
                family=HANDOFF_FAMILY, layout_digest=info.layout_digest, block_bytes=info.block_bytes
            )
        ],
        kv_endpoints=endpoints.kv,
        labels=worker.config.all_labels(),
        price_per_million_tokens=worker.config.price_per_million_tokens,
        engine=info.name,
        metrics_port=endpoints.metrics_port,
        vocab_size=info.vocab_size,
    )


def make_beat(worker: Worker, sequence: int, now_s: float) -> pb.WorkerBeat:
    """The beat as of now."""
    held = worker.engine.snapshot()
    speeds = worker.steps.speeds
    prefill, decode = speeds.prefill, speeds.decode
    return pb.WorkerBeat(
        worker_id=worker.worker_id,
        epoch=worker.epoch,
        sequence=sequence,
        num_running=held.num_running,
        num_waiting=held.num_waiting,
        queued_prefill_tokens=held.queued_prefill_tokens,
        queued_prefill_context=held.queued_prefill_context,
        passable=[pb.PassableTokens(**prompt._asdict()) for prompt in held.passable],
        num_reserved=held.num_reserved,
        reserved_tokens=held.reserved_tokens,
        decode_kv_tokens=held.decode_kv_tokens,
        num_decoding=held.num_decoding,
        num_used_blocks=held.num_used_blocks,
        num_cached_blocks=held.num_cached_blocks,
        num_awaited_blocks=held.num_awaited_blocks,
        prefill_speed=prefill.to_proto() if prefill else None,
        decode_speed=decode.to_proto() if decode else None,
        links=worker.links.to_proto(),
        accepted_request_ids=worker.accepted.recent(now_s),
    )


def make_state(
    worker: Worker, card: pb.WorkerCard, beat: pb.WorkerBeat, num_sessions: int
) -> worker_pb2.GetStateResponse:
    """Everything that the worker holds now."""
    held = worker.engine.snapshot()
    in_engine = {request.request_id for request in held.requests}
    total = worker.engine.info.num_blocks
    now_s = worker.leases.now_s
    return worker_pb2.GetStateResponse(
        card=card,
        beat=beat,
        requests=[
            *(
                worker_pb2.RequestState(
                    request_id=request.request_id,
                    phase=request.phase,
                    num_tokens=request.num_tokens,
                    num_computed_tokens=request.num_computed_tokens,
                    num_blocks=request.num_blocks,
                )
                for request in held.requests
            ),
            # Not in the engine yet, or any more, but somebody here still answers for them.
            *(
                worker_pb2.RequestState(request_id=request_id, phase="waiting")
                for request_id in worker.dispatcher.request_ids
                if request_id not in in_engine
            ),
        ],
        leases=[_lease_state(lease, now_s) for lease in worker.leases.table.leases()],
        blocks=worker_pb2.BlockCounts(
            total=total,
            used=held.num_used_blocks,
            cached=held.num_cached_blocks,
            free=total - held.num_used_blocks - held.num_cached_blocks,
        ),
        num_sessions=num_sessions,
    )


def _lease_state(lease: Lease, now_s: float) -> worker_pb2.LeaseState:
    return worker_pb2.LeaseState(
        lease_id=lease.lease_id,
        request_id=lease.request_id,
        phase=worker_pb2.LeasePhase.ValueType(lease.phase.value),
        peer_worker_id=lease.peer_worker_id,
        num_blocks=lease.num_wanted_blocks,
        expires_in_ms=max(0, round(1000 * (lease.deadline_s - now_s))),
    )
