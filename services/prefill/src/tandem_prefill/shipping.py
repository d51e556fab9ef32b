"""Ships the blocks of one prompt, chunk by chunk."""

from __future__ import annotations

from tandem.v1 import transfer_pb2
from tandem_common.errors import TandemError, Unavailable
from tandem_common.logs import get_logger
from tandem_engine.api import Borrowed
from tandem_worker.lease import Lease
from tandem_worker.metrics import SHIPPED_BYTES
from tandem_worker.transports import OutgoingChunk
from tandem_worker.worker import Worker

from tandem_prefill.destination import Destination

_log = get_logger("shipping")


class Shipping:
    """The sender's side of one handoff, under a lease of this worker."""

    def __init__(self, worker: Worker, engine_id: str, destination: Destination, lease: Lease) -> None:
        self._worker = worker
        self._engine_id = engine_id
        self._destination = destination
        self._lease = lease
        self._num_chunk_blocks = worker.connections.max_payload_bytes // worker.engine.info.block_bytes
        self.shipped_bytes = 0
        self.transport = ""

    async def ship(self, first_block: int, end_block: int) -> None:
        """Return when the decode worker has blocks [first_block, end_block); Unavailable when that cannot be."""
        try:
            # One after another: a handoff takes one connection, and leaves the other to others.
            for start in range(first_block, end_block, self._num_chunk_blocks):
                await self._ship_chunk(start, min(self._num_chunk_blocks, end_block - start))
        except TandemError as error:
            _log.warning("blocks could not be shipped", code=error.code.name, error=error.message)
            raise Unavailable("the blocks could not be shipped") from error

    async def _ship_chunk(self, first_block: int, num_blocks: int) -> None:
        worker, info = self._worker, self._worker.engine.info
        lease, _ = worker.leases.begin(self._lease.lease_id, first_block, num_blocks)
        payload_bytes = num_blocks * info.block_bytes
        header = transfer_pb2.ChunkHeader(
            lease_id=self._destination.lease_id,
            ticket=self._destination.ticket,
            first_block=first_block,
            num_blocks=num_blocks,
            dtype=info.dtype,
            shape=info.block_shape,
            first_layer=0,
            num_layers=info.block_shape[0],
            payload_bytes=payload_bytes,
        )

        def lend(*, shared: bool) -> Borrowed:
            return worker.engine.blocks.reading(self._engine_id, first_block, num_blocks, shared=shared)

        acknowledged = False
        try:
            self.transport = await worker.connections.ship(
                self._destination.card,
                OutgoingChunk(header=header, lend=lend),
                worker.config.transfer_timeout_s,
            )
            acknowledged = True
        finally:
            worker.leases.finish(lease, first_block, num_blocks, copied=acknowledged)
        self.shipped_bytes += payload_bytes
        SHIPPED_BYTES.labels(self.transport).inc(payload_bytes)
