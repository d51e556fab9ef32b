"""Where the blocks of a prompt go: checked against the registry, never taken from the request alone."""

from __future__ import annotations

from dataclasses import dataclass

from tandem.v1 import cluster_pb2, prefill_pb2
from tandem_common.errors import Conflict, InvalidRequest, PermissionDenied
from tandem_common.generation import Generation
from tandem_worker.ticket import MAX_TICKET_BYTES
from tandem_worker.worker import Worker

_MAX_LEASE_ID_CHARS = 128


@dataclass(frozen=True, kw_only=True)
class Destination:
    """Blocks [first_block, num_blocks) of the sequence go to this worker, under this lease."""

    card: cluster_pb2.WorkerCard
    lease_id: str
    ticket: bytes
    first_block: int
    num_blocks: int


async def check_destination(
    worker: Worker, request: prefill_pb2.PrefillRequest, generation: Generation
) -> Destination:
    """The destination that a request names.

    InvalidRequest when it makes no sense, PermissionDenied when it is not in the registry in that incarnation,
    Conflict when its blocks are laid out in another way than ours.
    """
    if request.WhichOneof("destination") != "blocks":
        raise InvalidRequest("this worker ships blocks; the request wants another kind of handoff")
    wanted = request.blocks
    info = worker.engine.info
    if wanted.worker_id == worker.worker_id:
        raise InvalidRequest("a worker cannot hand blocks to itself")
    if not 0 < len(wanted.lease_id) <= _MAX_LEASE_ID_CHARS or len(wanted.ticket) > MAX_TICKET_BYTES:
        raise InvalidRequest("the lease or the ticket is missing or too long")
    num_blocks = -(-len(generation.token_ids) // info.block_size)
    if wanted.num_blocks != num_blocks or wanted.first_block >= num_blocks:
        raise InvalidRequest(
            f"blocks {wanted.first_block} to {wanted.num_blocks} are wanted; the sequence has {num_blocks}"
        )
    card = await worker.find_peer(wanted.worker_id, wanted.epoch)
    if card is None:
        raise PermissionDenied("the destination is not a registered worker")
    if not any(layout.layout_digest == info.layout_digest for layout in card.handoff_formats):
        raise Conflict("the destination lays its blocks out in another way")
    return Destination(
        card=card,
        lease_id=wanted.lease_id,
        ticket=wanted.ticket,
        first_block=wanted.first_block,
        num_blocks=num_blocks,
    )
