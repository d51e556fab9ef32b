"""How long the router takes to decide, what its index costs, and what a whole Route call takes.

    .venv/bin/python bench/router.py [--quick] [--no-large] [--rate R] [--repeats N]

Worlds are made from a seed. `choose` is measured from the packed hashes of 8,192 tokens to the decision: matching,
the choice itself, and what the last booking changed in the view, in processor time and by the clock; hashes hit a
worker's chain for a random part. Route is measured through a router process of its own with paced requests.
Prints a table and writes bench/results/router.json.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import random
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median, quantiles

from machine import describe_machine
from rich.console import Console
from rich.table import Table
from router_memory import measure_redis_memory
from router_rpc import measure_route
from tandem.v1 import cluster_pb2 as pb
from tandem_common.hashing import HASH_BYTES, pack_hashes
from tandem_common.keys import KV_ENTRY_FIELD
from tandem_common.registry import RegisteredWorker
from tandem_common.speed import DecodeSpeed, PrefillSpeed
from tandem_router.bookings import Bookings
from tandem_router.cluster import Cluster
from tandem_router.index import BlockIndex
from tandem_router.kv_records import parse_events
from tandem_router.policies import Predictive
from tandem_router.query import ROUTE_LIMITS, Query

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "bench" / "results" / "router.json"
CHAIN = 512  # blocks of a prompt of 8,192 tokens
BLOCK_SIZE = 16
# Between two decisions: 64 workers of this bench can serve no more prompts, and crowding is priced by that.
GAP_S = 0.025


def resident_bytes() -> int:
    """Memory that this process holds."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * 4096


class World:
    """Half of the workers prefill, half decode, all with different loads; their chains share first blocks by four."""

    def __init__(self, num_workers: int, num_blocks: int, seed: int = 7) -> None:
        """`num_blocks` different blocks in the index."""
        self.random = random.Random(seed)
        self.cluster = Cluster(Bookings(max_age_s=10, max_per_worker=4096), empty_grace_s=3)
        self.records = {f"w{i}": self._record(f"w{i}", i) for i in range(num_workers)}
        self.cluster.observe(self.records, 0.0)
        self.index = BlockIndex()
        for worker_id in self.records:
            self.index.load(worker_id, 1, ())
        gc.collect()
        before = resident_bytes()
        self.chain_seeds = range(num_blocks // CHAIN)
        ids = list(self.records)
        for number in self.chain_seeds:
            packed = random.Random(number).randbytes(CHAIN * HASH_BYTES)
            hashes = [packed[i : i + HASH_BYTES] for i in range(0, len(packed), HASH_BYTES)]
            for i, worker_id in enumerate(self.random.sample(ids, 4)):
                # One worker holds all of it, others the first part of it.
                held = hashes if i == 0 else hashes[: CHAIN // 8 * i]
                self.index.apply(worker_id, 1, removed=(), stored=held)
            del hashes
        gc.collect()
        self.bytes_per_block = (resident_bytes() - before) / max(1, self.index.num_hashes)

    def _record(self, worker_id: str, number: int) -> RegisteredWorker:
        prefill = number % 2 == 0
        draw = self.random
        card = pb.WorkerCard(
            worker_id=worker_id,
            epoch=1,
            address=f"{worker_id}:1",
            model="m",
            role=pb.ROLE_PREFILL if prefill else pb.ROLE_DECODE,
            status=pb.WORKER_STATUS_SERVING,
            block_size=BLOCK_SIZE,
            num_blocks=40_000,
            max_context_tokens=131_072,
            max_step_tokens=2048,
            max_sequences=256,
            handoff_formats=[pb.HandoffFormat(family="tandem", layout_digest=b"x", block_bytes=2 << 20)],
            labels={"host": f"h{number // 8}", "rack": f"r{number // 32}", "zone": f"z{number // 256}"},
        )
        speed = draw.uniform(0.8, 1.2)
        beat = pb.WorkerBeat(
            worker_id=worker_id,
            epoch=1,
            sequence=1,
            num_running=0 if prefill else draw.randrange(4, 60),
            num_decoding=0,
            queued_prefill_tokens=draw.randrange(0, 20_000) if prefill else 0,
            num_waiting=2 if prefill else 0,
            num_used_blocks=draw.randrange(0, 20_000),
            prefill_speed=PrefillSpeed(a_ms=3, b_ms=0.1 * speed, c_ms=2e-6, num_samples=99).to_proto(),
            decode_speed=DecodeSpeed(a_ms=8, b_ms=0.1 * speed, c_ms=1e-5, num_samples=99).to_proto(),
        )
        if not prefill:
            beat.num_decoding = beat.num_running
            beat.decode_kv_tokens = beat.num_running * draw.randrange(500, 4000)
        return RegisteredWorker(card, beat)

    def prompt(self) -> bytes:
        """Packed hashes of a prompt of which a part is known."""
        known = random.Random(self.random.choice(self.chain_seeds)).randbytes(CHAIN * HASH_BYTES)
        cut = self.random.randrange(0, CHAIN + 1) * HASH_BYTES
        return known[:cut] + self.random.randbytes(CHAIN * HASH_BYTES - cut)


def measure_choose(world: World, num_decisions: int) -> dict[str, float]:
    """Microseconds per decision: matching and choosing apart, and together with what the booking before changed."""
    policy = Predictive()
    match_us, choose_us, whole_us, book_us, wall_us = [], [], [], [], []
    gc.collect()
    gc.freeze()
    clock = time.thread_time_ns  # the machine is shared: other processes' time is not the router's
    for number in range(num_decisions):
        packed = world.prompt()
        began = time.perf_counter_ns()
        started = clock()
        cached = world.index.match_packed(packed)
        matched = clock()
        query = Query(
            request_id=f"r{number}",
            model="m",
            num_tokens=8192 + 7,
            max_tokens=256,
            cached_blocks=cached,
            tie_break=number * 7919,
            now_ms=1000 * number * GAP_S,
        )
        decision = policy.choose(query, world.cluster.view, ROUTE_LIMITS)
        ended = clock()
        wall_us.append((time.perf_counter_ns() - began) / 1000)
        world.cluster.book(query, decision, number * GAP_S)
        booked = clock()
        if number % 100 == 99:
            world.cluster.observe(world.records, number * GAP_S)
            world.cluster.bookings.expire(1e12 + number)
            world.cluster.observe(world.records, number * GAP_S)
            policy.prepare(world.cluster.view)
        match_us.append((matched - started) / 1000)
        choose_us.append((ended - matched) / 1000)
        whole_us.append((ended - started) / 1000)
        book_us.append((booked - ended) / 1000)
    gc.unfreeze()
    return {
        **percentiles("match_us", match_us),
        **percentiles("search_us", choose_us),
        **percentiles("choose_us", whole_us),
        **percentiles("choose_wall_us", wall_us),
        **percentiles("book_us", book_us),
    }


def percentiles(name: str, values: list[float]) -> dict[str, float]:
    """p50 and p99."""
    cuts = quantiles(values, n=100)
    return {f"{name}_p50": round(median(values), 1), f"{name}_p99": round(cuts[98], 1)}


def measure_events(num_blocks: int) -> float:
    """Blocks per second that events bring into the index, from the records as Redis gives them."""
    draw = random.Random(3)
    records: list[dict[bytes, bytes]] = []
    held: list[bytes] = []
    for _ in range(num_blocks // 64):
        stored = [draw.randbytes(HASH_BYTES) for _ in range(48)]
        removed, held = (held[:16], held[16:] + stored) if len(held) > 10_000 else ([], held + stored)
        events = pb.KvEvents(epoch=1, removed=pack_hashes(removed), stored=pack_hashes(stored))
        records.append({KV_ENTRY_FIELD: events.SerializeToString()})
    index = BlockIndex()
    index.load("w", 1, ())
    num_applied = 0
    started = time.perf_counter()
    for record in records:
        parsed = parse_events(record)
        index.apply("w", 1, removed=parsed.removed, stored=parsed.stored)
        num_applied += len(parsed.removed) + len(parsed.stored)
    return num_applied / (time.perf_counter() - started)


Rows = list[tuple[str, str, str]]


def choices(num_decisions: int, repeats: int, *, large: bool) -> tuple[dict[str, object], Rows]:
    """Decisions, and the memory of the index that they look into."""
    worlds = [("64 workers, 1 M blocks", 64, 1_000_000, "p50 ≤ 150 µs, p99 ≤ 500 µs")]
    if large:
        worlds.append(("1,024 workers, 10 M blocks", 1024, 10_000_000, "p99 ≤ 2 ms"))
    results: dict[str, object] = {}
    rows: Rows = []
    for name, num_workers, num_blocks, target in worlds:
        world = World(num_workers, num_blocks)
        measured = [measure_choose(world, num_decisions) for _ in range(repeats)]
        middle = {key: median(one[key] for one in measured) for key in measured[0]}
        results[name] = {
            "bytes_per_block": round(world.bytes_per_block, 1),
            "median": middle,
            "all": measured,
        }
        rows.append((f"choose, {name}", _shown(middle), target))
        rows.append((f"index, {name}", f"{world.bytes_per_block:.0f} bytes per block", "≤ 120"))
        del world
        gc.collect()
    return results, rows


def events_and_memory(repeats: int) -> tuple[dict[str, object], Rows]:
    """Block events applied, and what Redis takes."""
    events = [measure_events(640_000) for _ in range(repeats)]
    memory = measure_redis_memory(1_000_000)
    held, streamed = memory["snapshot_mib_per_million"], memory["stream_mib_per_million"]
    return {"kv_event_blocks_per_s": [round(one) for one in events], "redis_memory": memory}, [
        ("KV events applied", f"{median(events):,.0f} blocks/s", "≥ 200,000"),
        ("Redis, per million blocks", f"{held} MiB held, {streamed} MiB of events", "stated"),
    ]


def routes(rate: float, duration_s: float, repeats: int) -> tuple[dict[str, object], Rows]:
    """Calls to a router process."""
    route, refusals = asyncio.run(measure_route(rate, duration_s, repeats))
    middle = {key: median(one[key] for one in route) for key in route[0]}
    return {"route": route, "refusals": refusals}, [
        (
            f"Route at {middle['rate']:.0f} requests/s",
            (
                f"p50 {middle['p50_ms']:.2f} ms, p99 {middle['p99_ms']:.2f} ms, "
                f"router {middle['router_cpu_share']:.0%} of a core"
            ),
            "p50 ≤ 1 ms",
        ),
        (
            f"refusal at {refusals['rate']:.0f} requests/s",
            f"p50 {refusals['p50_ms']:.2f} ms, p99 {refusals['p99_ms']:.2f} ms",
            "≤ 50 ms",
        ),
    ]


def main() -> None:
    """Measure and report."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="a tenth of the decisions")
    parser.add_argument(
        "--no-large", action="store_true", help="without 1,024 workers and 10 M blocks (2 GiB)"
    )
    parser.add_argument("--rate", type=float, default=500.0, help="Route calls per second")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--only", default="choose,events,route", help="parts to measure")
    options = parser.parse_args()
    parts: dict[str, Callable[[], tuple[dict[str, object], Rows]]] = {
        "choose": lambda: choices(
            500 if options.quick else 5000, options.repeats, large=not options.no_large
        ),
        "events": lambda: events_and_memory(options.repeats),
        "route": lambda: routes(options.rate, 2.0 if options.quick else 10.0, options.repeats),
    }
    results: dict[str, object] = {"machine": describe_machine()}
    table = Table("measured", "figure", "to reach")
    for name in options.only.split(","):
        measured, rows = parts[name]()
        results |= measured
        for row in rows:
            table.add_row(*row)
    Console(width=120).print(table)
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


def _shown(middle: dict[str, float]) -> str:
    return (
        f"p50 {middle['choose_us_p50']:.0f} µs, p99 {middle['choose_us_p99']:.0f} µs "
        f"(matching {middle['match_us_p50']:.0f}, search {middle['search_us_p50']:.0f}); "
        f"by the clock p50 {middle['choose_wall_us_p50']:.0f}, p99 {middle['choose_wall_us_p99']:.0f}"
    )


if __name__ == "__main__":
    main()
