"""The event loop answers rings from other threads."""

from __future__ import annotations

import asyncio
import contextlib
import threading

import pytest
import uvloop
from tandem_engine.doorbell import Doorbell


@contextlib.asynccontextmanager
async def doorbell(answers: asyncio.Queue[None]):
    bell = Doorbell(asyncio.get_running_loop(), lambda: answers.put_nowait(None))
    try:
        await asyncio.sleep(0.01)
        yield bell
    finally:
        bell.close()


@pytest.mark.parametrize("run", [asyncio.run, uvloop.run])
def test_every_ring_from_a_thread_is_answered(run):
    async def rings() -> None:
        answers: asyncio.Queue[None] = asyncio.Queue()
        async with doorbell(answers) as bell, asyncio.timeout(10):
            for _ in range(20):
                thread = threading.Thread(target=bell.ring)
                thread.start()
                await answers.get()
                thread.join()
            assert answers.empty()

    run(rings())


async def test_rings_before_the_answer_are_answered_once():
    answers: asyncio.Queue[None] = asyncio.Queue()
    async with doorbell(answers) as bell, asyncio.timeout(10):
        for _ in range(5):
            bell.ring()
        await answers.get()
        await asyncio.sleep(0.01)
        assert answers.empty()


async def test_nobody_answers_a_closed_one():
    answers: asyncio.Queue[None] = asyncio.Queue()
    async with doorbell(answers) as bell:
        bell.ring()
    await asyncio.sleep(0.01)
    assert answers.empty()


def test_ringing_for_a_closed_loop_says_so():
    loop = asyncio.new_event_loop()
    bell = Doorbell(loop, lambda: None)
    loop.run_until_complete(asyncio.sleep(0))
    bell.ring()
    loop.run_until_complete(asyncio.sleep(0))
    loop.close()
    with pytest.raises(RuntimeError, match="closed"):
        bell.ring()
