"""Tasks that run for as long as their owner."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from types import TracebackType
from typing import Any, NoReturn, Self


class LoopEnded(Exception):
    """A loop that should run for ever has returned."""


class Crew:
    """Owns background loops: they are cancelled and awaited when the block ends."""

    def __init__(self) -> None:
        self._tasks: list[asyncio.Task[Any]] = []

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def start(self, name: str, loop: Coroutine[Any, Any, None]) -> None:
        """Run `loop` until the block ends."""
        self._tasks.append(asyncio.create_task(loop, name=name))

    async def failure(self) -> NoReturn:
        """Wait until a loop ends, and raise what ended it."""
        ended, _ = await asyncio.wait(self._tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in ended:
            task.result()
        raise LoopEnded(", ".join(sorted(task.get_name() for task in ended)))
