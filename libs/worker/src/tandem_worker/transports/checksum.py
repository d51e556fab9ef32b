"""CRC-32 of payloads, without holding up the event loop."""

from __future__ import annotations

import asyncio
import zlib

# zlib does about 2 GB/s: this much takes some 0.25 ms, about what handing it to a thread costs.
_INLINE_BYTES = 512 << 10


async def checksum(payload: memoryview) -> int:
    """CRC-32 of `payload`; large ones in a thread (zlib releases the interpreter lock)."""
    if len(payload) <= _INLINE_BYTES:
        return zlib.crc32(payload)
    return await asyncio.to_thread(zlib.crc32, payload)
