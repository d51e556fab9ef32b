"""A process of its own that ships one chunk: run by `test_worker_shm.py` with an address and a number of bytes."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from tandem.v1 import transfer_pb2
from tandem_engine.pool_memory import PoolMemory
from tandem_worker.transports import OutgoingChunk, Source, shm


async def main(address: str, num_bytes: int) -> None:
    """Ship, and say so."""
    memory = PoolMemory(num_bytes)
    memory.view[:] = (bytes(range(251)) * (num_bytes // 251 + 1))[:num_bytes]

    @asynccontextmanager
    async def lend(*, shared: bool) -> AsyncIterator[Sequence[memoryview]]:
        assert shared
        yield [memory.view]

    header = transfer_pb2.ChunkHeader(num_blocks=1, payload_bytes=num_bytes)
    connection = await shm.connect(address, Source(worker_id="p", epoch=1), memory, num_bytes, 5.0)
    await connection.ship(OutgoingChunk(header=header, lend=lend), 30.0)
    print("shipped", flush=True)
    await connection.close()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], int(sys.argv[2])))
