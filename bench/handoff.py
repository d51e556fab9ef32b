"""How fast blocks get from a prefill worker's pool into a decode worker's, and what a handoff adds.

    .venv/bin/python bench/handoff.py [--rounds 15] [--sizes 1 16 256] [--unpinned] [--windows]

Two processes with real engines' pools, transports, leases, tickets and checksums (blocks of Llama 3.2 1B). Handoffs of
1, 16 and 256 MiB over shared memory and TCP take turns with a plain copy of as many bytes between two buffers of this
process, and with a bare loop of `sock_sendall` here and `sock_recv_into` there. All of them walk through 512 MiB, so
that nothing is in a cache. "Alone" is one handoff from the call to its acknowledgement; "in a row" is four at a time,
as a busy worker has them. The "floor" is a bare process that is woken by a counter (eventfd), copies as many bytes out
of this one's pool, and wakes this one: what a handoff alone would take if nothing were checked and no Python ran. A
"bare trip" is a byte there and back through two event loops. Prints a table of medians and writes
bench/results/handoff.json.

Each process has a core to itself, as pinned workers have. Left to the scheduler of a machine with two cores
(`--unpinned`), both ends are on one core as often as not, and take turns. With `--windows` the prefill worker's pool
lies in memory of its own, as that of a worker in another role does, and blocks go through windows that are shared.
"""

from __future__ import annotations

import argparse
import asyncio
import ctypes
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median

import numpy as np
import uvloop
from handoff_worker import BLOCK_BYTES, NUM_BLOCKS, POOL_BYTES, requests, start_worker, stay_on
from machine import describe_machine
from rich.console import Console
from rich.table import Table
from tandem.v1 import cluster_pb2
from tandem_engine.api import PrefillMode
from tandem_engine.pool_memory import PoolMemory
from tandem_prefill.destination import Destination
from tandem_prefill.shipping import Shipping
from tandem_worker.assembly import make_connections
from tandem_worker.transports import Source, shm
from tandem_worker.worker import Worker

RESULTS = Path(__file__).resolve().parent / "results" / "handoff.json"
MIB = 1 << 20
NUM_AT_ONCE = 4


class Peer:
    """The receiving process."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self._asking = asyncio.Lock()

    async def ask(self, **command: object) -> dict[str, str]:
        """Send a command, read the answer."""
        assert self._process.stdout is not None
        async with self._asking:
            self.tell(**command)
            return dict(json.loads(await self._process.stdout.readline()))

    async def first_words(self) -> dict[str, object]:
        """What it says when it is ready."""
        assert self._process.stdout is not None
        return dict(json.loads(await self._process.stdout.readline()))

    def tell(self, **command: object) -> None:
        """Send a command that has no answer."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(command).encode() + b"\n")


class Walk:
    """Walks through the pool, a request at a time."""

    def __init__(self) -> None:
        self._next = 0

    def take(self, num_bytes: int) -> int:
        """Which of the requests of so many bytes is next."""
        self._next = (self._next + 1) % (POOL_BYTES // num_bytes)
        return self._next


@dataclass(frozen=True)
class Handoffs:
    """The sending end of one transport."""

    worker: Worker
    card: cluster_pb2.WorkerCard
    peer: Peer
    walk: Walk

    async def one(self, num_bytes: int) -> float:
        """Seconds that one handoff takes, alone."""
        return await self._timed(num_bytes, 1)

    async def in_a_row(self, num_bytes: int) -> float:
        """Seconds per handoff when `NUM_AT_ONCE` are on their way at any time."""
        rounds = max(2, (64 * MIB) // num_bytes // NUM_AT_ONCE)
        return await self._timed(num_bytes, rounds * NUM_AT_ONCE) / (rounds * NUM_AT_ONCE)

    async def _timed(self, num_bytes: int, num_handoffs: int) -> float:
        count = num_bytes // BLOCK_BYTES
        names = [f"req-{count}-{self.walk.take(num_bytes)}" for _ in range(num_handoffs)]
        leases = [await self.peer.ask(request_id=name, num_blocks=count) for name in names]
        gate = asyncio.Semaphore(NUM_AT_ONCE)

        async def ship(name: str, lease: dict[str, str]) -> None:
            async with gate:
                await self._ship(name, count, lease)

        start = time.perf_counter()
        if num_handoffs == 1:
            await self._ship(names[0], count, leases[0])
        else:
            await asyncio.gather(*map(ship, names, leases))
        duration = time.perf_counter() - start
        for lease in leases:
            self.peer.tell(release=lease["lease_id"])
        return duration

    async def _ship(self, name: str, count: int, granted: dict[str, str]) -> None:
        destination = Destination(
            card=self.card,
            lease_id=granted["lease_id"],
            ticket=bytes.fromhex(granted["ticket"]),
            first_block=0,
            num_blocks=count,
        )
        async with self.worker.leases.hold(
            lease_id=destination.lease_id,
            request_id=name,
            peer_worker_id="decode",
            first_block=0,
            num_blocks=count,
        ) as lease:
            await Shipping(self.worker, name, destination, lease).ship(0, count)


class Plain:
    """The same bytes, copied within this process, and sent over a bare socket."""

    def __init__(self, pool: memoryview, sock: socket.socket) -> None:
        self._pool = pool
        self._target = np.ones(POOL_BYTES, dtype=np.uint8).data
        self._sock = sock
        self._walk = Walk()

    async def copy(self, num_bytes: int) -> float:
        """Seconds of one memmove."""
        start = self._walk.take(num_bytes) * num_bytes
        source, target = (_address(memory[start:]) for memory in (self._pool, self._target))
        started = time.perf_counter()
        ctypes.memmove(target, source, num_bytes)
        return time.perf_counter() - started

    async def trip(self, num_bytes: int) -> float:
        """Seconds until the other end has got one byte, whatever the size, and said so."""
        return await self._send(self._pool[:1])

    async def send(self, num_bytes: int) -> float:
        """Seconds until the other end has everything and said so."""
        start = self._walk.take(num_bytes) * num_bytes
        return await self._send(self._pool[start : start + num_bytes])

    async def _send(self, view: memoryview) -> float:
        loop = asyncio.get_running_loop()
        started = time.perf_counter()
        await loop.sock_sendall(self._sock, len(view).to_bytes(8, "little"))
        await loop.sock_sendall(self._sock, view)
        await loop.sock_recv(self._sock, 1)
        return time.perf_counter() - started


class Floor:
    """A copy by a bare process, and the two wake-ups around it."""

    def __init__(self, memory: PoolMemory, core: int) -> None:
        self._asked, self._done = os.eventfd(0), os.eventfd(0)
        passed = (memory.descriptor, self._asked, self._done)
        program = Path(__file__).with_name("handoff_floor.py")
        self._process = subprocess.Popen(
            [sys.executable, str(program), *map(str, passed), str(core)], pass_fds=passed
        )

    async def copy(self, num_bytes: int) -> float:
        """Seconds until it is done."""
        started = time.perf_counter()
        os.eventfd_write(self._asked, num_bytes // MIB)
        os.eventfd_read(self._done)
        return time.perf_counter() - started

    def end(self) -> None:
        """Kill it."""
        self._process.kill()
        self._process.wait()
        os.close(self._asked)
        os.close(self._done)


def _address(view: memoryview) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(view))


def two_cores() -> tuple[int, int]:
    """One for each end; -1 where there are not two."""
    cores = sorted(os.sched_getaffinity(0))
    return (cores[0], cores[1]) if len(cores) > 1 else (-1, -1)


async def measure(
    sizes: list[int], rounds: int, cores: tuple[int, int], shared: bool
) -> dict[int, dict[str, list[float]]]:
    """Seconds by size and way, all ways in turn within each round; the sender's pool can be shared or not."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        str(Path(__file__).with_name("handoff_worker.py")),
        str(cores[1]),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    stay_on(cores[0])
    worker, runner = await start_worker("prefill", shared=shared)
    floor = Floor(PoolMemory(POOL_BYTES) if runner.memory is None else runner.memory, cores[1])
    peer = Peer(process)
    found = await peer.first_words()
    steps = worker.engine.steps()
    sock = socket.create_connection(("127.0.0.1", int(str(found["bare"]))))
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setblocking(False)
    views = runner.view_blocks(range(NUM_BLOCKS))
    assert views is not None
    plain = Plain(views[0], sock)
    by_shm, by_tcp = (handoffs(worker, kind, str(found[kind]), peer) for kind in ("shm", "tcp"))
    ways: dict[str, Callable[[int], Awaitable[float]]] = {
        "copy": plain.copy,
        "floor": floor.copy,
        "shm alone": by_shm.one,
        "shm in a row": by_shm.in_a_row,
        "bare trip": plain.trip,
        "bare TCP": plain.send,
        "tcp alone": by_tcp.one,
        "tcp in a row": by_tcp.in_a_row,
    }
    seconds: dict[int, dict[str, list[float]]] = {size: {way: [] for way in ways} for size in sizes}
    for size in sizes:
        prepared = requests(size * MIB // BLOCK_BYTES)
        await peer.ask(prepare=size * MIB // BLOCK_BYTES)
        for request in prepared:
            worker.engine.submit(request, PrefillMode.HOLD)
        num_ready = 0
        while num_ready < len(prepared):
            num_ready += len((await anext(steps)).tokens)
        for number in range(-2, rounds):  # the first two warm up
            for way, run in ways.items():
                duration = await run(size * MIB)
                if number >= 0:
                    seconds[size][way].append(duration)
        for request in prepared:
            worker.engine.cancel(request.request_id)
    floor.end()
    sock.close()
    for side in (by_shm, by_tcp):
        await side.worker.connections.close()
    assert process.stdin is not None
    process.stdin.close()
    await process.wait()
    await worker.engine.stop()
    return seconds


def handoffs(worker: Worker, kind: str, address: str, peer: Peer) -> Handoffs:
    """The sending end for one transport."""
    connections = make_connections(Source(worker_id="prefill", epoch=1), (kind,), worker.engine)
    endpoint = cluster_pb2.KvEndpoint(
        kind=cluster_pb2.TRANSPORT_KIND_SHM if kind == "shm" else cluster_pb2.TRANSPORT_KIND_TCP,
        address=address,
        host_id=shm.host_id() if kind == "shm" else "",
    )
    card = cluster_pb2.WorkerCard(worker_id="decode", epoch=1, kv_endpoints=[endpoint])
    return Handoffs(replace(worker, connections=connections), card, peer, Walk())


def report(seconds: dict[int, dict[str, list[float]]]) -> None:
    """The table."""
    table = Table(title="Handoffs between two processes (medians)")
    for column in ("MiB", "way", "ms", "GB/s", "of the limit", "added, ms"):
        table.add_column(column, justify="right")
    for size, ways in seconds.items():
        for way, samples in ways.items():
            limit = median(ways["copy" if way.startswith(("copy", "floor", "shm")) else "bare TCP"])
            took = median(samples)
            table.add_row(
                str(size),
                way,
                f"{took * 1e3:.2f} ({min(samples) * 1e3:.2f}–{max(samples) * 1e3:.2f})",
                *(("", "", "") if way == "bare trip" else _against(limit, took, size * MIB)),
            )
        table.add_section()
    Console(width=100).print(table)


def _against(limit_s: float, took_s: float, num_bytes: int) -> tuple[str, str, str]:
    return f"{num_bytes / took_s / 1e9:.1f}", f"{limit_s / took_s:.0%}", f"{(took_s - limit_s) * 1e3:+.2f}"


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description="Speed of handoffs between two workers on one host.")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--sizes", type=int, nargs="+", default=[1, 16, 256], help="MiB per handoff")
    parser.add_argument("--unpinned", action="store_true", help="leave the cores to the scheduler")
    parser.add_argument(
        "--windows", action="store_true", help="the sender's pool cannot be shared, as a GPU's"
    )
    options = parser.parse_args()
    machine = describe_machine()
    cores = (-1, -1) if options.unpinned else two_cores()
    seconds = uvloop.run(measure(options.sizes, options.rounds, cores, not options.windows))
    report(seconds)
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(
        json.dumps({"machine": machine, "cores": cores, "seconds": seconds}, indent=1), encoding="utf-8"
    )


if __name__ == "__main__":
    main()
