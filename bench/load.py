"""Closed-loop load on a chat endpoint, and what it felt like from outside."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

import aiohttp
import orjson


@dataclass(frozen=True, kw_only=True)
class Answer:
    """One streamed answer; times in seconds since the request was sent."""

    first_token_s: float
    end_s: float
    num_prompt_tokens: int
    num_tokens: int
    longest_gap_s: float


@dataclass(frozen=True, kw_only=True)
class LoadResult:
    """A run of `num_streams` clients, each sending its next request when the last was answered."""

    num_streams: int
    prompt_tokens_mean: float
    ttft_ms_p50: float
    ttft_ms_max: float
    itl_ms_mean: float
    tokens_per_s: float
    requests_per_s: float


async def run_load(
    url: str, model: str, prompts: Sequence[str], num_streams: int, max_tokens: int
) -> LoadResult:
    """Answer all prompts, `num_streams` at a time. Raises on any error: a failed request is not a number."""
    queue = list(reversed(prompts))
    answers: list[Answer] = []

    async def client(session: aiohttp.ClientSession) -> None:
        while queue:
            answers.append(await ask(session, url, model, queue.pop(), max_tokens))

    timeout = aiohttp.ClientTimeout(total=600)
    async with aiohttp.ClientSession(timeout=timeout, connector=aiohttp.TCPConnector(limit=0)) as session:
        start = time.perf_counter()
        async with asyncio.TaskGroup() as group:
            for _ in range(num_streams):
                group.create_task(client(session))
        elapsed = time.perf_counter() - start
    gaps = [(a.end_s - a.first_token_s) / (a.num_tokens - 1) for a in answers if a.num_tokens > 1]
    return LoadResult(
        num_streams=num_streams,
        prompt_tokens_mean=sum(a.num_prompt_tokens for a in answers) / len(answers),
        ttft_ms_p50=1000 * median(a.first_token_s for a in answers),
        ttft_ms_max=1000 * max(a.first_token_s for a in answers),
        itl_ms_mean=1000 * sum(gaps) / len(gaps),
        tokens_per_s=sum(a.num_tokens for a in answers) / elapsed,
        requests_per_s=len(answers) / elapsed,
    )


async def ask(session: aiohttp.ClientSession, url: str, model: str, prompt: str, max_tokens: int) -> Answer:
    """One streamed chat completion that runs to `max_tokens`."""
    body = {
        "model": model,
        "messages": [{"role": "user", "content": prompt}],
        "max_tokens": max_tokens,
        "temperature": 0,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    start = last = time.perf_counter()
    first: float | None = None
    longest_gap = 0.0
    usage = {"prompt_tokens": 0, "completion_tokens": 0}
    async with session.post(f"{url}/v1/chat/completions", data=orjson.dumps(body), headers=_JSON) as response:
        if response.status != 200:
            raise RuntimeError(f"status {response.status}: {await response.text()}")
        async for line in response.content:
            if not line.startswith(b"data: {"):
                continue
            event = orjson.loads(line[6:])
            if "error" in event:
                raise RuntimeError(str(event["error"]))
            now = time.perf_counter()
            if event["choices"] and event["choices"][0]["delta"].get("content"):
                if first is None:
                    first = now - start
                else:
                    longest_gap = max(longest_gap, now - last)
                last = now
            if event.get("usage"):
                usage = event["usage"]
    if first is None:
        raise RuntimeError("the answer was empty")
    return Answer(
        first_token_s=first,
        end_s=last - start,
        num_prompt_tokens=usage["prompt_tokens"],
        num_tokens=usage["completion_tokens"],
        longest_gap_s=longest_gap,
    )


_JSON = {"Content-Type": "application/json"}
