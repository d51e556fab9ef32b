"""Cards and beats as the core sees them. What makes no sense is left out, so that no record can break a decision."""

from __future__ import annotations

import math

from tandem.v1 import cluster_pb2 as pb
from tandem_common.speed import DecodeSpeed, PrefillSpeed

from tandem_router.bookings import BookedLoad
from tandem_router.view import Link, Links, Passable, Place, WorkerFacts, WorkerLoad, WorkerRole

_ROLES = {
    pb.ROLE_PREFILL: WorkerRole.PREFILL,
    pb.ROLE_DECODE: WorkerRole.DECODE,
    pb.ROLE_BOTH: WorkerRole.BOTH,
}


def facts_from_card(card: pb.WorkerCard) -> WorkerFacts | None:
    """What a worker is; None for a card that nobody could be routed to."""
    role = _ROLES.get(card.role)
    sizes = (card.block_size, card.num_blocks, card.max_context_tokens, card.max_step_tokens)
    if role is None or not (card.worker_id and card.address and card.model and all(sizes)):
        return None
    labels = card.labels
    return WorkerFacts(
        worker_id=card.worker_id,
        epoch=card.epoch,
        address=card.address,
        model=card.model,
        role=role,
        draining=card.status == pb.WORKER_STATUS_DRAINING,
        block_size=card.block_size,
        num_blocks=card.num_blocks,
        max_context_tokens=card.max_context_tokens,
        max_step_tokens=card.max_step_tokens,
        max_sequences=card.max_sequences,
        formats={(f.family, f.layout_digest): f.block_bytes for f in card.handoff_formats},
        place=Place(
            host=labels.get("host", ""),
            rack=labels.get("rack", ""),
            zone=labels.get("zone", ""),
            region=labels.get("region", ""),
        ),
        hardware=labels.get("hardware", ""),
        labels=dict(labels),
        price=price if math.isfinite(price := card.price_per_million_tokens) and price >= 0 else math.inf,
    )


def load_from_beat(beat: pb.WorkerBeat | None, booked: BookedLoad) -> WorkerLoad:
    """What a worker has to do: its last beat, if there was one, and the bookings since."""
    beat = beat or pb.WorkerBeat()
    num_prefilling = max(0, beat.num_running - beat.num_decoding) + beat.num_waiting
    return WorkerLoad(
        num_sequences=beat.num_running + beat.num_waiting + beat.num_reserved + booked.num_sequences,
        num_decoding=beat.num_decoding,
        decode_kv_tokens=beat.decode_kv_tokens + beat.reserved_tokens + booked.decode_kv_tokens,
        num_prefilling=num_prefilling + booked.num_prefilling,
        queued_prefill_tokens=beat.queued_prefill_tokens + booked.queued_prefill_tokens,
        queued_prefill_context=beat.queued_prefill_context + booked.queued_prefill_context,
        passable=tuple(Passable(p.below_tokens, p.tokens, p.context) for p in beat.passable),
        booked_prefill_tokens=booked.queued_prefill_tokens,
        num_used_blocks=beat.num_used_blocks + beat.num_awaited_blocks + booked.num_blocks,
        num_cached_blocks=beat.num_cached_blocks,
    )


def speeds_from_beat(beat: pb.WorkerBeat | None) -> tuple[PrefillSpeed | None, DecodeSpeed | None]:
    """The worker's own fits, as far as it has them."""
    if beat is None:
        return None, None
    return (
        PrefillSpeed.from_proto(beat.prefill_speed) if beat.HasField("prefill_speed") else None,
        DecodeSpeed.from_proto(beat.decode_speed) if beat.HasField("decode_speed") else None,
    )


def links_from_beat(beat: pb.WorkerBeat | None) -> Links:
    """Measured links to this worker."""
    measured = {}
    for link in beat.links if beat is not None else ():
        rate, latency = link.bytes_per_ms, link.latency_ms
        if math.isfinite(rate) and rate > 0 and math.isfinite(latency) and latency >= 0:
            measured[link.source_worker_id] = Link(bytes_per_ms=rate, latency_ms=latency)
    return Links(measured)
