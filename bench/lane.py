"""What a message of a session costs its two ends, over grpc.aio and over a lane.

    .venv/bin/python bench/lane.py [--messages 500] [--tokens 64]

A worker's end sends a message of so many tokens every 4 ms, in a process of its own; the frontend's end reads it. CPU
is of each process with all its threads, less what the same pauses cost without messages.
"""

from __future__ import annotations

import argparse
import asyncio
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from typing import Any

import uvloop
from machine import describe_machine
from tandem.v1 import decode_pb2 as pb
from tandem.v1 import decode_pb2_grpc
from tandem_common.lane import Lane, LaneServer, take_lane
from tandem_common.rpc import RpcServer, open_channel

PAUSE_S = 0.004
WARM_UP = 50


class Worker(decode_pb2_grpc.DecodeServiceServicer):
    """Sends messages to whoever opens a session, then tells what that cost."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self._arguments = arguments
        self._lanes = LaneServer("127.0.0.1")

    async def Session(  # type: ignore[override]  # noqa: N802
        self, requests: AsyncIterator[pb.SessionRequest], context: Any
    ) -> None:
        """One session."""
        lane = Lane(lambda message: None, lambda: None)
        await context.send_initial_metadata(await self._lanes.offer(lane))
        await anext(requests)
        num_tokens = self._arguments.tokens
        message = pb.SessionResponse(stream_ids=range(num_tokens), token_ids=range(1000, 1000 + num_tokens))

        async def write() -> None:
            if lane.is_open:
                lane.write(message.SerializeToString())
            else:
                await context.write(message)

        for _ in range(WARM_UP):
            await write()
            await asyncio.sleep(PAUSE_S)
        began_s = time.process_time()
        for _ in range(self._arguments.messages):
            await asyncio.sleep(PAUSE_S)
        pauses_s = time.process_time() - began_s
        began_s = time.process_time()
        for _ in range(self._arguments.messages):
            await write()
            await asyncio.sleep(PAUSE_S)
        cost_s = time.process_time() - began_s - pauses_s
        print(f"{1e6 * cost_s / self._arguments.messages:.0f}", flush=True)
        self._lanes.withdraw(lane)


async def serve(arguments: argparse.Namespace) -> None:
    """The worker's process."""
    rpc = RpcServer([])
    decode_pb2_grpc.add_DecodeServiceServicer_to_server(Worker(arguments), rpc.server)
    print(await rpc.start("127.0.0.1", 0), flush=True)
    await asyncio.Event().wait()


async def read(port: int, *, over_lane: bool, num_messages: int) -> float:
    """The frontend's end; microseconds per message."""
    seen, began_s = 0, 0.0

    def on_message(message: pb.SessionResponse) -> None:
        nonlocal seen, began_s
        seen += 1
        if seen == WARM_UP + 1:  # behind the pause in which nothing comes
            began_s = time.process_time()

    lane = Lane(lambda message: on_message(pb.SessionResponse.FromString(message)), lambda: None)
    async with open_channel(f"127.0.0.1:{port}") as channel:
        call = decode_pb2_grpc.DecodeServiceStub(channel).Session()
        if over_lane:
            await take_lane(lane, f"127.0.0.1:{port}", call)
            assert lane.is_open
        await call.write(pb.SessionRequest(open=pb.OpenSession(frontend_id="bench")))
        async for message in call:
            on_message(message)
        cost_s = time.process_time() - began_s
        lane.close()
    return 1e6 * cost_s / num_messages


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--messages", type=int, default=500)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        uvloop.run(serve(arguments))
        return
    print(describe_machine())
    for over_lane in (False, True, False, True):
        with subprocess.Popen(
            [sys.executable, __file__, *sys.argv[1:], "--serve"], stdout=subprocess.PIPE
        ) as process:
            assert process.stdout is not None
            port = int(process.stdout.readline())
            reader = uvloop.run(read(port, over_lane=over_lane, num_messages=arguments.messages))
            writer = float(process.stdout.readline())
            process.terminate()
        print(
            f"{'lane' if over_lane else 'grpc'}: writing {writer:.0f} us, reading {reader:.0f} us per message"
        )


if __name__ == "__main__":
    main()
