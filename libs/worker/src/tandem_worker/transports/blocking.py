"""Blocking work on a socket in a thread of the connection's own, owned by a task of the event loop."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")


class SocketThread:
    """One thread for one connected socket; it starts with the first call."""

    def __init__(self, sock: socket.socket, name: str) -> None:
        self._sock = sock
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix=name)

    async def run(self, function: Callable[[], T]) -> T:
        """Run `function` in the thread; cancelling shuts the socket down, which ends it, and waits for that end."""
        future = asyncio.get_running_loop().run_in_executor(self._executor, function)
        try:
            return await asyncio.shield(future)
        except asyncio.CancelledError:
            self.shut_down()
            while not future.done():
                with contextlib.suppress(asyncio.CancelledError):
                    await asyncio.wait([future])
            if not future.cancelled():
                future.exception()  # retrieved: nobody else will ask
            raise

    def shut_down(self) -> None:
        """End whatever goes on on the socket, at both ends."""
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Close the socket; the thread ends. Nothing may be running."""
        self._executor.shutdown(wait=False)
        self._sock.close()
