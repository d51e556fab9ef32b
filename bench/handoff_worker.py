"""The two ends of `bench/handoff.py`: workers with real pools, transports, leases and tickets, and no model.

Run as a program, with the core to stay on, it is the receiving end: it answers commands on stdin with a line of JSON
each. With a second word, "streams", its engine decodes meanwhile.
"""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import socket
import sys
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack

import numpy as np
import redis.asyncio
import torch
import uvloop
from handoff_streams import STEP_S, Streams, num_stream_blocks
from tandem.v1 import cluster_pb2, transfer_pb2
from tandem_common.generation import Generation, StoppingParams
from tandem_engine.api import EngineInfo
from tandem_engine.batch import Batch, Draw
from tandem_engine.local_engine import LocalEngine
from tandem_engine.pool_memory import PoolMemory
from tandem_engine.torch_engine.kv_cache import KVCache
from tandem_engine.torch_engine.model_config import parse_model_config
from tandem_worker.assembly import make_receivers, make_worker
from tandem_worker.config import WorkerConfig
from tandem_worker.worker import Worker

# Llama 3.2 1B: a block of 16 tokens is 512 KiB in bfloat16.
MODEL = {
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 16,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 64,
    "vocab_size": 128256,
    "max_position_embeddings": 131072,
}
BLOCK_SIZE = 16
BLOCK_BYTES = 512 << 10
# Twice the largest handoff: what is copied comes from memory and goes there, not from and to a cache.
NUM_BLOCKS = 1024
POOL_BYTES = NUM_BLOCKS * BLOCK_BYTES


class PoolRunner:
    """A `Runner` whose steps only take time; its pool is that of the torch engine, with random content."""

    def __init__(self, shared: bool, num_blocks: int, step_s: float) -> None:
        self._step_s = step_s
        self.cache = KVCache(
            parse_model_config(MODEL),
            num_blocks=num_blocks,
            block_size=BLOCK_SIZE,
            dtype=torch.bfloat16,
            device="cpu",
            shared=shared,
        )
        self.cache.pool.view(torch.int16).random_()

    def load(self) -> EngineInfo:
        """What the pool is."""
        return EngineInfo(
            name="pool",
            vocab_size=MODEL["vocab_size"],  # type: ignore[arg-type]
            max_context_tokens=NUM_BLOCKS * BLOCK_SIZE,
            block_size=BLOCK_SIZE,
            num_blocks=self.cache.num_blocks,
            max_step_tokens=NUM_BLOCKS * BLOCK_SIZE,
            max_sequences=NUM_BLOCKS,
            dtype="bfloat16",
            block_shape=self.cache.block_shape,
            block_bytes=self.cache.block_bytes,
            layout_digest=b"bench",
        )

    def execute(self, batch: Batch) -> list[Draw]:
        """Compute nothing."""
        time.sleep(self._step_s)
        return [0 if row.draws_token else None for row in batch.sequences]

    @property
    def memory(self) -> PoolMemory | None:
        """What the pool lies in."""
        return self.cache.memory

    def view_blocks(self, block_ids: Sequence[int]) -> list[memoryview] | None:
        """The pool itself."""
        return self.cache.views(block_ids)

    def page_lock(self, memory: memoryview) -> None:
        """There is no device."""

    def host_memory(self, num_bytes: int) -> memoryview:
        """Never asked: the pool can be viewed."""
        raise NotImplementedError

    def read_blocks(self, block_ids: Sequence[int], out: memoryview) -> None:
        """For windows."""
        self.cache.read(block_ids, out)

    def write_blocks(self, block_ids: Sequence[int], payload: memoryview) -> None:
        """Never asked: the pool can be viewed."""
        raise NotImplementedError

    def poison_blocks(self, block_ids: Sequence[int]) -> None:
        """Nothing to test here."""

    def close(self) -> None:
        """The process ends."""


def stay_on(core: int) -> None:
    """Keep this process, all threads that it will start, on one core, unless it is negative."""
    if core >= 0:
        os.sched_setaffinity(0, {core})


async def start_worker(
    worker_id: str, *, shared: bool, num_more_blocks: int = 0, step_s: float = 0.0
) -> tuple[Worker, PoolRunner]:
    """A worker with a started engine, whose pool can be shared or not. Redis is never asked."""
    config = WorkerConfig(
        engine="simulated",
        block_size=BLOCK_SIZE,
        num_blocks=NUM_BLOCKS,
        max_step_tokens=NUM_BLOCKS * BLOCK_SIZE,
        max_sequences=NUM_BLOCKS,
        cluster_secret="a secret of the bench",
    )
    runner = PoolRunner(shared, NUM_BLOCKS + num_more_blocks, step_s)
    engine = LocalEngine(config, runner)
    await engine.start()
    client = redis.asyncio.Redis()
    duties = [cluster_pb2.ROLE_PREFILL, cluster_pb2.ROLE_DECODE]
    return (
        make_worker(config, engine, client, worker_id=worker_id, epoch=1, revision="", duties=duties),
        runner,
    )


def requests(num_blocks: int) -> list[Generation]:
    """Requests of so many blocks each that fill the pool together."""
    num_tokens = num_blocks * BLOCK_SIZE
    return [
        Generation(
            request_id=f"req-{num_blocks}-{index}",
            token_ids=[index] * num_tokens,
            num_prompt_tokens=num_tokens,
            namespace=bytes(16),
            stopping=StoppingParams(max_tokens=1),
        )
        for index in range(NUM_BLOCKS // num_blocks)
    ]


async def receive(commands: asyncio.StreamReader, has_streams: bool) -> None:
    """Give leases as long as stdin is open; decode meanwhile, or not."""
    worker, _ = await start_worker(
        "decode",
        shared=False,
        num_more_blocks=num_stream_blocks(BLOCK_SIZE) if has_streams else 0,
        step_s=STEP_S if has_streams else 0.0,
    )
    streams = Streams(worker.engine)
    bare = socket.create_server(("127.0.0.1", 0))
    bare.setblocking(False)
    async with AsyncExitStack() as stack:
        receivers = make_receivers(worker)
        tasks = [asyncio.create_task(receiver.serve()) for receiver in receivers]
        tasks.append(asyncio.create_task(receive_bare(bare)))
        stack.callback(lambda: [task.cancel() for task in tasks])
        say(
            bare=bare.getsockname()[1],
            **{receiver.kind: receiver.address for receiver in receivers},
        )
        if has_streams:
            tasks.append(asyncio.create_task(streams.run()))
        held: dict[str, AsyncExitStack] = {}
        reserved: list[Generation] = []
        while line := await commands.readline():
            command = json.loads(line)
            if lease_id := command.get("release"):
                await held.pop(lease_id).aclose()
                continue
            if command.get("streams"):
                say(**streams.take())
                continue
            if num_blocks := command.get("prepare"):
                for request in reserved:
                    worker.engine.cancel(request.request_id)
                reserved = requests(num_blocks)
                for request in reserved:
                    await worker.engine.blocks.reserve(request)
                say()
                continue
            request_id, num_blocks = command["request_id"], command["num_blocks"]
            lease_id = secrets.token_hex(16)
            held[lease_id] = AsyncExitStack()
            await held[lease_id].enter_async_context(
                worker.leases.hold(
                    lease_id=lease_id,
                    request_id=request_id,
                    peer_worker_id="prefill",
                    first_block=0,
                    num_blocks=num_blocks,
                )
            )
            ticket = worker.tickets.sign(
                transfer_pb2.TicketClaims(
                    request_id=request_id,
                    lease_id=lease_id,
                    source_worker_id="prefill",
                    destination_worker_id="decode",
                    destination_epoch=1,
                    first_block=0,
                    num_blocks=num_blocks,
                )
            )
            say(lease_id=lease_id, ticket=ticket.hex())
    await worker.engine.stop()


async def receive_bare(listener: socket.socket) -> None:
    """The bare loop: a length, then so many bytes into memory that is there already, then one byte back."""
    loop = asyncio.get_running_loop()
    memory = np.ones(POOL_BYTES, dtype=np.uint8).data
    sock, _ = await loop.sock_accept(listener)
    sock.setblocking(False)
    start = 0
    while length := int.from_bytes(await loop.sock_recv(sock, 8), "little"):
        start = start if start + length <= POOL_BYTES else 0
        view = memory[start : start + length]
        while view:
            view = view[await loop.sock_recv_into(sock, view) :]
        start += length
        await loop.sock_sendall(sock, b"k")


def say(**facts: object) -> None:
    """A line for the other end."""
    print(json.dumps(facts), flush=True)


async def main() -> None:
    """The receiving end."""
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), sys.stdin
    )
    await receive(reader, has_streams="streams" in sys.argv[2:])


if __name__ == "__main__":
    stay_on(int(sys.argv[1]))
    uvloop.run(main())
