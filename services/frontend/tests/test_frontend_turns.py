"""Work that comes together is spread over turns of the event loop, in order."""

from __future__ import annotations

import asyncio
import time

from tandem_frontend.turns import Turns


async def spread(turns: Turns, num_pieces: int, took_s: float) -> list[int]:
    """In which turn each piece was done, in the order in which they were."""
    turn, done = 0, []

    async def piece(number: int) -> None:
        await turns.mine()
        with turns.work():
            until_s = time.perf_counter() + took_s
            while time.perf_counter() < until_s:
                pass
        done.append((number, turn))

    pieces = asyncio.gather(*(piece(number) for number in range(num_pieces)))
    while not pieces.done():
        await asyncio.sleep(0)
        turn += 1
    await pieces
    assert [number for number, _ in done] == list(range(num_pieces))
    return [turn for _, turn in done]


async def test_what_fits_into_a_turn_is_done_in_it() -> None:
    assert len(set(await spread(Turns(budget_s=60.0), 50, 0.0))) == 1


async def test_what_takes_a_whole_turn_gets_one_of_its_own() -> None:
    turns = Turns(budget_s=1e-9)
    assert len(set(await spread(turns, 6, 0.001))) == 6
    assert len(set(await spread(turns, 6, 0.001))) == 6


async def test_a_turn_is_filled_with_as_many_as_are_likely_to_fit() -> None:
    turns = Turns(budget_s=0.02)
    in_turn = await spread(turns, 60, 0.002)
    assert 4 <= len(set(in_turn)) <= 30  # ten or eleven fit


async def test_who_gave_up_keeps_nobody_waiting() -> None:
    turns = Turns(budget_s=1e-9)
    with turns.work():
        pass
    waiting = [asyncio.create_task(turns.mine()) for _ in range(4)]
    await asyncio.sleep(0)
    assert not any(task.done() for task in waiting)
    for task in waiting[1:3]:
        task.cancel()
    async with asyncio.timeout(5):
        await waiting[0]
        await waiting[3]
