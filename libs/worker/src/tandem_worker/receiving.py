"""Blocks that come in: checked against ticket, lease and layout, then written into the engine's pool."""

from __future__ import annotations

import contextlib
import time
from collections.abc import AsyncIterator

from tandem.v1 import transfer_pb2 as pb
from tandem_common.errors import InvalidRequest, PermissionDenied
from tandem_engine.api import Engine

from tandem_worker.incarnation import Incarnation
from tandem_worker.lease import LeasePhase, Verdict
from tandem_worker.lease_keeper import LeaseKeeper
from tandem_worker.links import LinkSpeeds
from tandem_worker.metrics import RECEIVED_BYTES, RECEIVED_CHUNKS
from tandem_worker.ticket import TicketOffice
from tandem_worker.transports import Room, Source
from tandem_worker.transports.shm import MAX_SPANS

# Large enough that what surrounds a chunk costs little; a network of 30 MB/s still ships one within its time-out.
CHUNK_BYTES = 256 << 20


def chunk_bytes(block_bytes: int) -> int:
    """Most bytes of one chunk: whole blocks, at most 256 MiB or MAX_SPANS blocks. Equal on both ends, as the layout is.

    Each block may lie by itself, and one span is the least that a chunk can have.
    """
    return max(1, min(CHUNK_BYTES // block_bytes, MAX_SPANS)) * block_bytes


class ReceivedBlocks:
    """The BlockSink of a worker. `worker_id` and `incarnation` are its own."""

    def __init__(
        self,
        engine: Engine,
        leases: LeaseKeeper,
        tickets: TicketOffice,
        links: LinkSpeeds,
        *,
        worker_id: str,
        incarnation: Incarnation,
    ) -> None:
        self._engine = engine
        self._leases = leases
        self._tickets = tickets
        self._links = links
        self._worker_id = worker_id
        self._incarnation = incarnation

    @property
    def max_payload_bytes(self) -> int:
        """No chunk may be larger."""
        return chunk_bytes(self._engine.info.block_bytes)

    @contextlib.asynccontextmanager
    async def room(self, source: Source, header: pb.ChunkHeader) -> AsyncIterator[Room | None]:
        """Room in the blocks that were reserved for this handoff.

        PermissionDenied for a wrong ticket or lease, InvalidRequest for a wrong layout or range; PermissionDenied at
        the end when the handoff has ended meanwhile.
        """
        started_s = time.monotonic()
        self._check(source, header)
        first_block, num_blocks = header.first_block, header.num_blocks
        lease, verdict = self._leases.begin(header.lease_id, first_block, num_blocks)
        if verdict is Verdict.DUPLICATE:
            RECEIVED_CHUNKS.labels("duplicate").inc()
            yield None
            return
        copied = counts = False
        try:
            async with self._engine.blocks.writing(lease.request_id, first_block, num_blocks) as views:
                yield Room(views=views, is_wanted=lambda: lease.phase is not LeasePhase.RELEASED)
            copied = True
        finally:
            counts = self._leases.finish(lease, first_block, num_blocks, copied=copied)
            if not counts:
                RECEIVED_CHUNKS.labels("discarded").inc()
        if not counts:
            raise PermissionDenied("the handoff has ended")
        RECEIVED_CHUNKS.labels("copied").inc()
        RECEIVED_BYTES.inc(header.payload_bytes)
        duration_ms = 1000 * (time.monotonic() - started_s)
        self._links.observe(source.worker_id, header.payload_bytes, duration_ms)

    def _check(self, source: Source, header: pb.ChunkHeader) -> None:
        claims = self._tickets.verify(header.ticket)
        if (
            claims.lease_id != header.lease_id
            or claims.source_worker_id != source.worker_id
            or claims.destination_worker_id != self._worker_id
            or claims.destination_epoch != self._incarnation.epoch
        ):
            raise PermissionDenied("the ticket is for another handoff")
        end = header.first_block + header.num_blocks
        if not claims.first_block <= header.first_block < end <= claims.num_blocks:
            raise InvalidRequest("blocks outside of the ticket")
        info = self._engine.info
        if header.dtype != info.dtype or tuple(header.shape) != info.block_shape:
            raise InvalidRequest("the blocks have another layout than this worker's")
        if header.first_layer != 0 or header.num_layers != info.block_shape[0]:
            raise InvalidRequest("all layers of a block travel together")
        if header.payload_bytes != header.num_blocks * info.block_bytes:
            raise InvalidRequest("the payload has another size than its blocks")
        lease = self._leases.table.check(
            header.lease_id, header.first_block, header.num_blocks, self._leases.now_s
        )
        if lease.request_id != claims.request_id:
            raise PermissionDenied("the ticket is for another request")
