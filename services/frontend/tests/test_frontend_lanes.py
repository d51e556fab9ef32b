"""Sessions over a lane: the client sees what it sees over gRPC, also when the lane fails."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from tandem_common.lane import LaneServer

CHAT = {
    "model": "tandem-tiny",
    "messages": [{"role": "user", "content": "Tell me a story."}],
    "stream": True,
}


async def add_worker(system: Any, worker_id: str, **script: Any) -> Any:
    return await system.add_worker(worker_id, lanes=LaneServer("127.0.0.1"), **script)


async def stream_text(system: Any) -> str:
    async with system.http.post("/v1/chat/completions", json=CHAT) as response:
        lines = (await response.text()).split("\n\n")
    assert lines[-2:] == ["data: [DONE]", ""]
    choices = [json.loads(line.removeprefix("data: "))["choices"][0] for line in lines[:-2]]
    return "".join(choice["delta"].get("content") or "" for choice in choices)


async def test_all_but_the_opening_takes_the_lane(system, answer):
    worker = await add_worker(system, "w1")
    await system.start()
    assert await stream_text(system) == answer
    assert worker.num_over_grpc == 1
    await system.until(lambda: not worker.live)
    system.check_quiet()


async def test_a_client_that_leaves_stops_its_worker(system):
    worker = await add_worker(system, "w1", step_s=0.02)
    await system.start()
    async with system.http.post("/v1/chat/completions", json=CHAT) as response:
        await response.content.readline()
        response.close()
    await system.until(lambda: len(worker.cancelled) == 1)
    assert worker.num_over_grpc == 1


@pytest.mark.parametrize("trouble", ["ended", "cut", "nonsense"])
async def test_a_request_goes_on_on_another_worker_with_exactly_the_same_text(system, answer, trouble):
    first = await add_worker(system, "w1", step_s=0.02)
    second = await add_worker(system, "w2")
    await system.add_router()
    await system.start()
    streaming = asyncio.create_task(stream_text(system))
    await system.until(lambda: any(sent >= 3 for _, _, sent in first.live.values()))
    match trouble:
        case "ended":
            first.end_session_after = 3
        case "cut":
            first.lane._transport.abort()
        case "nonsense":
            first.lane.write(b"\xff\xff\xff")
    assert await streaming == answer
    resumed = second.submits[-1].generation
    assert len(resumed.token_ids) - resumed.num_prompt_tokens >= 3
    assert system.metric("migrations_total") == 1
