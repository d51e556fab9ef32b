"""What the parts of a request and of a token cost, each alone in a warm loop: where to look before cutting.

    .venv/bin/python bench/token_path_parts.py

Microseconds of CPU of one thread, the best of several rounds. In a service that wakes every few milliseconds the same
work costs about twice as much, because its code and data have left the caches meanwhile.
"""

from __future__ import annotations

import asyncio
import json
import secrets
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from frontend_prompts import PromptMaker, PromptShape, single_token_words
from machine import describe_machine
from prometheus_client import CollectorRegistry
from tandem.v1 import decode_pb2
from tandem_common.errors import TandemError
from tandem_common.generation import Generation, StoppingParams
from tandem_common.generation_proto import generation_from_proto, generation_to_proto
from tandem_common.hashing import block_hashes, pack_hashes
from tandem_decode.outbox import Outbox
from tandem_engine.api import PrefillProgress, TokenOutput
from tandem_engine.block_pool import BlockPool
from tandem_engine.config import EngineConfig
from tandem_engine.scheduler import Scheduler
from tandem_engine.simulated.runner import SimulatedRunner
from tandem_engine.step_cost import step_cost
from tandem_frontend.answer_format import ChatFormat, Envelope
from tandem_frontend.detokenizer import Detokenizer
from tandem_frontend.histogram import StepHistogram
from tandem_frontend.http_messages import HttpRequest
from tandem_frontend.http_reader import RequestReader
from tandem_frontend.openai_requests import parse_chat
from tandem_frontend.options import Conversation
from tandem_frontend.plain_stream import TokenTimes
from tandem_frontend.sse_stream import SseChoice, SseStream, StreamLimits
from tandem_frontend.text_stream import TextStream
from tandem_frontend.tokenizer import ModelTokenizer
from tandem_worker.dispatch import Dispatcher

MODEL = Path(__file__).resolve().parent.parent / "models" / "tandem-tiny"
NUM_STREAMS = 64
WORKLOADS = {
    "128 tokens, unique": PromptShape(prompt_tokens=128),
    "1,024 tokens, 960 of them seen before": PromptShape(
        prompt_tokens=1024, prefix_tokens=960, num_prefixes=8
    ),
}


def cost(work: Callable[[Any], Any], items: Sequence[Any], rounds: int = 5) -> float:
    """Microseconds per item, the best of some rounds."""
    best = float("inf")
    for _ in range(rounds):
        began_s = time.thread_time()
        for item in items:
            work(item)
        best = min(best, time.thread_time() - began_s)
    return 1e6 * best / len(items)


class _NoEngine:
    """Nothing is asked of it."""


class _Owner:
    """Takes what is not plain."""

    def on_tokens(self, output: TokenOutput) -> None:
        """Drop it."""

    def on_progress(self, progress: PrefillProgress) -> None:
        """Drop it."""

    def on_failure(self, error: TandemError) -> None:
        """Never."""


class _Nobody:
    """Stands for a transport."""

    def write(self, data: bytes) -> None:
        """Drop it."""

    def is_closing(self) -> bool:
        """Never."""
        return False

    def get_write_buffer_size(self) -> int:
        """It takes everything at once."""
        return 0


def request_parts(shape: PromptShape, tokenizer: ModelTokenizer) -> dict[str, float]:
    """Of a request, from its bytes to the worker's object."""
    words, template_tokens = single_token_words(MODEL)
    prompts = PromptMaker(words, template_tokens, shape, 1)
    bodies = [
        json.dumps(
            {
                "model": "tandem-tiny",
                "messages": [{"role": "user", "content": prompts.make()}],
                "max_tokens": 128,
                "stream": True,
            }
        ).encode()
        for _ in range(200)
    ]
    head = (
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: "
    )
    requests = [b"%b%d\r\n\r\n%b" % (head, len(body), body) for body in bodies]
    reader = RequestReader(_Nobody(), lambda request: None, 1 << 20)  # type: ignore[arg-type]

    def read(data: bytes) -> list[HttpRequest]:
        reader.feed(data)
        return reader.take()

    conversations = [prompt for body in bodies for prompt in parse_chat(body).prompts]
    turns = [prompt.turns for prompt in conversations if isinstance(prompt, Conversation)]
    token_ids = [tokenizer.encode_chat(each) for each in turns]
    namespace = secrets.token_bytes(16)
    generations = [
        Generation(
            request_id="r",
            token_ids=ids,
            num_prompt_tokens=len(ids),
            namespace=namespace,
            stopping=StoppingParams(max_tokens=128),
        )
        for ids in token_ids
    ]
    messages = [generation_to_proto(generation) for generation in generations]
    return {
        "HTTP, bytes to request": cost(read, requests),
        "body to checked fields": cost(parse_chat, bodies),
        "template and tokens": cost(tokenizer.encode_chat, turns),
        "block hashes": cost(lambda ids: pack_hashes(block_hashes(namespace, ids, 16)), token_ids),
        "message for the worker": cost(generation_to_proto, generations),
        "its bytes": cost(
            lambda message: decode_pb2.SessionRequest(
                submits=[decode_pb2.Submit(generation=message)]
            ).SerializeToString(),
            messages,
        ),
        "message to object": cost(generation_from_proto, messages),
    }


def frontend_token_parts(tokenizer: ModelTokenizer) -> dict[str, float]:
    """Of a token, from the session's message to the event."""
    token_ids = [300 + i % 3000 for i in range(NUM_STREAMS)]
    response = decode_pb2.SessionResponse(stream_ids=range(NUM_STREAMS), token_ids=token_ids)
    data = response.SerializeToString()
    table = tokenizer.token_bytes
    request = HttpRequest(_Nobody(), "POST", "/", {})  # type: ignore[arg-type]
    stream = SseStream(
        request, StreamLimits(buffer_bytes=1 << 18, buffer_age_s=10, keepalive_s=10), lambda: None
    )
    chat = ChatFormat(Envelope(id="chatcmpl-0", created=0, model="tandem-tiny"), table)
    text = TextStream(Detokenizer(table), (), SseChoice(stream, chat, 0))
    times = TokenTimes(StepHistogram("gaps", "", (0.005, 0.01, 0.02), CollectorRegistry()))

    def take_generally(_: int) -> None:
        times.note(1.0)
        text.accept((401,), ())

    take_generally(0)
    plain = text.plain(times)
    assert plain is not None, "401 is a word"
    rounds = range(2000)
    parts = {
        "bytes to message": cost(lambda _: decode_pb2.SessionResponse.FromString(data), rounds) / NUM_STREAMS,
        "token to event, the quick way": cost(lambda _: plain.take(401, 1.0), rounds),
        "token to event, the general way": cost(take_generally, rounds),
    }
    stream.close()
    return parts


def worker_token_parts() -> dict[str, float]:
    """Of a token in the simulated engine and on its way to the session's message."""
    config = EngineConfig(
        engine="simulated", num_blocks=8192, max_sequences=NUM_STREAMS, max_step_tokens=8192
    )
    runner = SimulatedRunner(config)
    info = runner.load()
    scheduler = Scheduler(info, BlockPool(info.num_blocks, info.block_size))
    outbox, dispatcher = Outbox(), Dispatcher(_NoEngine())  # type: ignore[arg-type]
    for index in range(NUM_STREAMS):
        scheduler.submit(
            Generation(
                request_id=f"r{index}",
                token_ids=[1 + (index * 131 + i) % 4000 for i in range(128)],
                num_prompt_tokens=128,
                namespace=bytes(16),
                stopping=StoppingParams(max_tokens=1000),
            )
        )
        dispatcher.claim(f"r{index}", _Owner())
        dispatcher.send_plain(f"r{index}", outbox, index)
    parts = dict.fromkeys(("schedule", "execute (simulated)", "postprocess", "to the session's bytes"), 0.0)
    num_steps, warm_up = 200, 20
    for step in range(warm_up + num_steps):
        times = [time.thread_time()]
        batch = scheduler.schedule()
        times.append(time.thread_time())
        drawn = runner.execute(batch)
        times.append(time.thread_time())
        output = scheduler.postprocess(batch, drawn, step_cost(batch, 1.0))
        times.append(time.thread_time())
        dispatcher.deliver(output)
        outbox.take().SerializeToString()
        times.append(time.thread_time())
        if step >= warm_up:
            for name, begin, end in zip(parts, times, times[1:], strict=False):
                parts[name] += 1e6 * (end - begin) / num_steps / NUM_STREAMS
    return parts


async def main() -> None:
    """Measure and print."""
    print(describe_machine())
    tokenizer = ModelTokenizer(MODEL)
    for name, shape in WORKLOADS.items():
        print(f"request, {name}:")
        for part, microseconds in request_parts(shape, tokenizer).items():
            print(f"  {part}: {microseconds:.1f} us")
    print(f"token, {NUM_STREAMS} streams:")
    for part, microseconds in {**frontend_token_parts(tokenizer), **worker_token_parts()}.items():
        print(f"  {part}: {microseconds:.2f} us")


if __name__ == "__main__":
    asyncio.run(main())
