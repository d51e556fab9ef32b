"""Blocking work on a socket in a thread of the connection's own, owned by a task of the event loop."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TypeVar

T = TypeVar("T")


class SocketThread:
    """One thread for one connected socket; it starts with the first call."""

    def __init__(self, sock: socket.socket, name: str) -> None:
        self._sock = sock
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix=name)

    async def run(self, function: Callable[[], T]) -> T:
        """Run `function` in the thread; cancelling shuts the socket down, which ends it, and waits for that end."""
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[T] = loop.create_future()

        def work() -> None:
            try:
                result = function()
            except BaseException as error:  # noqa: BLE001 - whoever waits for the answer is told
                loop.call_soon_threadsafe(_tell, answer, partial(answer.set_exception, error))
            else:
                loop.call_soon_threadsafe(_tell, answer, partial(answer.set_result, result))

        working = self._executor.submit(work)
        try:
            return await answer
        except asyncio.CancelledError:
            self.shut_down()
            while not working.done():
                with contextlib.suppress(asyncio.CancelledError):
                    await asyncio.wait([asyncio.wrap_future(working)])
            raise

    def shut_down(self) -> None:
        """End whatever goes on on the socket, at both ends."""
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Close the socket; the thread ends. Nothing may be running."""
        self._executor.shutdown(wait=False)
        self._sock.close()


def _tell(answer: asyncio.Future[T], tell: Callable[[], None]) -> None:
    """In the event loop, unless nobody waits any more."""
    if not answer.done():
        tell()
