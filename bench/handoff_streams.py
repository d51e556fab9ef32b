"""Requests that decode while blocks come in, and how regularly their tokens reach the event loop."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import threading
import time
from collections.abc import Iterator

from tandem_common.generation import Generation, StoppingParams
from tandem_engine.api import Engine

STEP_S = 0.005
NUM_STREAMS = 8
_NUM_TOKENS = 100
_NUM_PROMPT_TOKENS = 16
_ASK_INTERVAL_S = 0.002


def num_stream_blocks(block_size: int) -> int:
    """Enough for all streams and those that take their place."""
    return 2 * NUM_STREAMS * -(-(_NUM_PROMPT_TOKENS + _NUM_TOKENS) // block_size)


class Streams:
    """As many requests as there are streams, at any time; one that ends is followed by another."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._numbers = itertools.count()
        self._gaps_ms: list[float] = []
        self._lags_ms: list[float] = []

    async def run(self) -> None:
        """Decode, until cancelled."""
        with self._asking():
            for _ in range(NUM_STREAMS):
                self._submit()
            last_s = time.perf_counter()
            async for output in self._engine.steps():
                now_s = time.perf_counter()
                self._gaps_ms.append(1000 * (now_s - last_s))
                last_s = now_s
                for report in output.reports():
                    if report.finish_reason is not None:
                        self._submit()

    def take(self) -> dict[str, list[float]]:
        """Since the last call: ms between two steps' tokens, and ms until the event loop did what a thread wanted."""
        taken = {"gaps_ms": self._gaps_ms, "lags_ms": self._lags_ms}
        self._gaps_ms, self._lags_ms = [], []
        return taken

    def _submit(self) -> None:
        self._engine.submit(
            Generation(
                request_id=f"stream-{next(self._numbers)}",
                token_ids=[7] * _NUM_PROMPT_TOKENS,
                num_prompt_tokens=_NUM_PROMPT_TOKENS,
                namespace=bytes(16),
                stopping=StoppingParams(max_tokens=_NUM_TOKENS),
            )
        )

    @contextlib.contextmanager
    def _asking(self) -> Iterator[None]:
        """A thread that asks something of the event loop now and then, as an engine's does."""
        loop, ended = asyncio.get_running_loop(), threading.Event()

        def ask() -> None:
            while not ended.wait(_ASK_INTERVAL_S):
                loop.call_soon_threadsafe(self._answer, time.perf_counter())

        thread = threading.Thread(target=ask)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()

    def _answer(self, asked_s: float) -> None:
        self._lags_ms.append(1000 * (time.perf_counter() - asked_s))
