"""Messages between two processes of one host: a Unix socket, and a counter (eventfd) that says when to look at it.

A socket wakes its reader on the writer's own processor, as if the writer were about to wait for the answer; here both
ends have work to do, and would take turns on one processor beside an idle one. A counter wakes its reader anywhere. So
nobody waits on the socket, but for its end.
"""

from __future__ import annotations

import array
import asyncio
import contextlib
import os
import select
import socket
from typing import TypeVar

from tandem.v1 import transfer_pb2 as pb

from tandem_worker.transports.framing import (
    LENGTH,
    FramingError,
    PeerClosed,
    body_length,
    frame,
    parse,
    read_message_body,
)

_NUM_DESCRIPTORS = 3  # come with the hello: of what is shared, and the two counters
_READ_BYTES = 64 << 10

M = TypeVar("M", pb.ChunkHeader, pb.ChunkAck)


class Line:
    """One end. Writing is for any thread; the rest is for the event loop."""

    def __init__(self, sock: socket.socket, hears: int, rings: int) -> None:
        """Takes over a connected socket that does not block, and the two counters' descriptors."""
        self._sock = sock
        self._hears, self._rings = hears, rings
        self._loop = asyncio.get_running_loop()
        self._buffer = bytearray()
        self._waiting: asyncio.Future[None] | None = None
        self._hang_up = select.epoll()
        self._hang_up.register(sock, select.EPOLLRDHUP)
        self._loop.add_reader(hears, self._on_ring)
        self._loop.add_reader(self._hang_up.fileno(), self._on_hang_up)

    def write(self, content: bytes) -> None:
        """Send a message's bytes and ring; OSError when the peer is gone.

        Each side has at most a header and a sum on their way, so that they always fit into the socket's buffer.
        """
        if self._sock.send(content) != len(content):
            raise FramingError("the peer does not read")
        with contextlib.suppress(BlockingIOError):  # it has been rung for often enough
            os.eventfd_write(self._rings, 1)

    async def read(self, num_bytes: int) -> bytes:
        """The next `num_bytes`; PeerClosed when there are none, FramingError when the peer leaves amid them.

        What has come is kept when the wait is cancelled.
        """
        while len(self._buffer) < num_bytes:
            await self._more()
        content = bytes(self._buffer[:num_bytes])
        del self._buffer[:num_bytes]
        return content

    async def read_message(self, kind: type[M]) -> M:
        """The next message; raises like `read`, and FramingError for anything but a `kind`."""
        while len(self._buffer) < LENGTH.size:
            await self._more()
        content = await self.read(LENGTH.size + body_length(self._buffer[: LENGTH.size]))
        return parse(memoryview(content)[LENGTH.size :], kind)

    def shut_down(self) -> None:
        """Make whoever reads fail, here and there."""
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Close everything. Idempotent."""
        if self._hang_up.closed:
            return
        self._loop.remove_reader(self._hears)
        self._loop.remove_reader(self._hang_up.fileno())
        self._hang_up.close()
        self._sock.close()
        os.close(self._hears)
        os.close(self._rings)

    async def _more(self) -> None:
        """Take what has come into the buffer, or wait until something may have."""
        try:
            content = self._sock.recv(_READ_BYTES)
        except BlockingIOError:
            self._waiting = self._loop.create_future()
            try:
                await self._waiting
            finally:
                self._waiting = None
            return
        if not content:
            raise (
                FramingError("the peer left amid a message") if self._buffer else PeerClosed("the peer left")
            )
        self._buffer += content

    def _on_ring(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self._hears)
        self._wake()

    def _on_hang_up(self) -> None:
        self._loop.remove_reader(self._hang_up.fileno())
        self._wake()

    def _wake(self) -> None:
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_result(None)


def open_line(sock: socket.socket, hello: pb.TransferHello, shared: int) -> Line:
    """The caller's end, on a new connection: says hello, and passes a descriptor and the line's two counters."""
    flags = os.EFD_CLOEXEC | os.EFD_NONBLOCK
    counters = [os.eventfd(0, flags), os.eventfd(0, flags)]
    try:
        # Small enough to fit into the empty buffer of a new socket: it never blocks and is never cut.
        socket.send_fds(sock, [frame(hello)], [shared, *counters])
        return Line(sock, *counters)
    except BaseException:
        for counter in counters:
            os.close(counter)
        raise


async def answer_line(sock: socket.socket) -> tuple[pb.TransferHello, Line, int]:
    """The other end: the hello, the line, and the descriptor that was passed, now the caller's.

    FramingError unless all that comes.
    """
    prefix, descriptors = await _receive_descriptors(sock)
    try:
        hello = await read_message_body(sock, prefix, pb.TransferHello)
        if len(descriptors) != _NUM_DESCRIPTORS or not all(map(_is_counter, descriptors[1:])):
            raise FramingError("the descriptors of a line did not come with the hello")
        shared, rings, hears = descriptors
        for counter in (rings, hears):
            os.set_blocking(counter, False)
        return hello, Line(sock, hears, rings), shared
    except BaseException:
        for descriptor in descriptors:
            os.close(descriptor)
        raise


async def _receive_descriptors(sock: socket.socket) -> tuple[bytes, array.array[int]]:
    """The length prefix of the hello and the descriptors that came with it."""
    await _readable(sock)
    descriptors = array.array("i")
    prefix, ancillary, _, _ = sock.recvmsg(
        LENGTH.size, socket.CMSG_SPACE(_NUM_DESCRIPTORS * descriptors.itemsize), socket.MSG_CMSG_CLOEXEC
    )
    for level, kind, content in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            descriptors.frombytes(content[: len(content) - len(content) % descriptors.itemsize])
    return prefix, descriptors


async def _readable(sock: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    ready: asyncio.Future[None] = loop.create_future()
    loop.add_reader(sock, lambda: None if ready.done() else ready.set_result(None))
    try:
        await ready
    finally:
        loop.remove_reader(sock)


def _is_counter(descriptor: int) -> bool:
    return os.readlink(f"/proc/self/fd/{descriptor}") == "anon_inode:[eventfd]"
