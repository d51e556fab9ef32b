from __future__ import annotations

import asyncio

from tandem_common.batch_writer import BatchWriter


class Gathered:
    def __init__(self) -> None:
        self.entries: list[int] = []
        self.written: list[list[int]] = []
        self.may_write = asyncio.Event()
        self.may_write.set()
        self.writer: BatchWriter[list[int]] = BatchWriter(self.take)

    def add(self, entry: int) -> None:
        self.entries.append(entry)
        self.writer.wake()

    def take(self) -> list[int] | None:
        entries, self.entries = self.entries, []
        return entries or None

    async def write(self, message: list[int]) -> None:
        await self.may_write.wait()
        self.written.append(message)


async def test_what_gathers_in_one_turn_or_during_a_write_is_one_message():
    gathered = Gathered()
    running = asyncio.create_task(gathered.writer.run(gathered.write))
    gathered.add(1)
    gathered.add(2)
    for _ in range(5):
        await asyncio.sleep(0)
    assert gathered.written == [[1, 2]]
    gathered.may_write.clear()
    gathered.add(3)
    for _ in range(5):
        await asyncio.sleep(0)
    gathered.add(4)
    gathered.add(5)
    for _ in range(5):
        await asyncio.sleep(0)
    gathered.may_write.set()
    for _ in range(5):
        await asyncio.sleep(0)
    assert gathered.written == [[1, 2], [3], [4, 5]]
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
