import asyncio

import pytest
from tandem_engine.staging import NUM_WINDOWS, WINDOW_BYTES, StagingWindows


def test_a_window_holds_whole_blocks_and_at_least_one() -> None:
    assert StagingWindows(3000).window_bytes == WINDOW_BYTES // 3000 * 3000
    assert StagingWindows(WINDOW_BYTES + 1).window_bytes == WINDOW_BYTES + 1


async def test_what_is_larger_than_a_window_is_refused() -> None:
    windows = StagingWindows(100)
    with pytest.raises(ValueError, match="too many"):
        async with windows.window(windows.window_bytes + 1):
            pass


async def test_nobody_has_the_window_of_another_and_who_waits_longest_gets_the_next() -> None:
    windows, got = StagingWindows(100), []
    may_end = [asyncio.Event() for _ in range(NUM_WINDOWS + 2)]

    async def borrow(number: int) -> None:
        async with windows.window(100) as window:
            got.append(number)
            window[:] = bytes([number]) * 100
            await may_end[number].wait()
            assert window == bytes([number]) * 100

    async with asyncio.timeout(5), asyncio.TaskGroup() as tasks:
        for number in range(NUM_WINDOWS + 2):
            tasks.create_task(borrow(number))
        while len(got) < NUM_WINDOWS:
            await asyncio.sleep(0)
        for end in reversed(may_end):
            await asyncio.sleep(0.01)
            end.set()
    assert got == list(range(NUM_WINDOWS + 2))


async def test_who_gives_up_waiting_takes_no_window_along() -> None:
    windows = StagingWindows(100)
    for _ in range(2 * NUM_WINDOWS):
        async with asyncio.timeout(5), windows.window(1):
            pass

        async def borrow() -> None:
            async with windows.window(1):
                await asyncio.sleep(60)

        tasks = [asyncio.create_task(borrow()) for _ in range(NUM_WINDOWS + 3)]
        await asyncio.sleep(0)
        for task in reversed(tasks):
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
