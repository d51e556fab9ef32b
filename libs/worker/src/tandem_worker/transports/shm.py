"""Blocks from one pool straight into the other, between processes of one user on one host.

A pool lies in an anonymous file. A sender passes its descriptor with the hello, over an abstract Unix socket, and the
receiver maps it to be read: nothing has a name in the file system, nothing is left behind however a process ends, and
a sender may end while it is read. The header of each chunk says where in that memory its blocks lie; the receiver
copies them into its own pool, once, and sums them on the way, while the sender sums them too. A block that was written
to while it was read (by a sender that gave up and gave it to others, say) has another sum than the sender's, and is
refused.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import secrets
import socket
import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tandem.v1 import transfer_pb2 as pb
from tandem_common.errors import InvalidRequest, PermissionDenied
from tandem_engine.pool_memory import PoolMemory, address_of

from tandem_worker.transports.api import BlockSink, Room, Source
from tandem_worker.transports.connection import SenderConnection
from tandem_worker.transports.copying import copy_sum
from tandem_worker.transports.framing import FramingError, frame
from tandem_worker.transports.line import Line, answer_line, open_line
from tandem_worker.transports.mapped_memory import MappedMemory, Mappings
from tandem_worker.transports.payload import Cursor, checksum
from tandem_worker.transports.receiver import Receiver

# The sender's checksum, behind its header.
SUM = struct.Struct("<I")
# Most stretches of memory that the blocks of one chunk may lie in.
MAX_SPANS = 1024
# Copied, or summed, at a stretch: some 0.1 ms, then it is the turn of whatever else waits for the event loop. There are
# no threads here: where cores are few, one that is woken for a payload is put on the other end's as often as on a free
# one, and what is saved by it is less than what waking it costs.
_PIECE_BYTES = 2 << 20
# How often a reader that waits for its peer asks whether the payload is still wanted.
_ASK_INTERVAL_S = 0.25
_CREDENTIALS = struct.Struct("3i")  # process, user, group


def host_id() -> str:
    """Equal for processes that can reach each other's abstract sockets and share memory.

    That is: one boot of one kernel, one network namespace (abstract names live in it) and one user.
    """
    boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    return f"{boot}/{Path('/proc/self/ns/net').readlink()}/{os.geteuid()}"


def listen(sink: BlockSink) -> Receiver:
    """A receiver under a fresh abstract name; OSError where there are none."""
    copy_sum()  # not while somebody waits
    name = f"tandem-kv-{secrets.token_hex(16)}"
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind("\0" + name)
    listener.listen(128)
    listener.setblocking(False)
    introduce = functools.partial(_introduce, _Common())
    return Receiver(listener, sink, introduce, kind="shm", address=name)


async def connect(
    address: str, source: Source, memory: PoolMemory, max_payload_bytes: int, timeout_s: float
) -> SenderConnection:
    """A connection to the receiver of that name, for blocks that lie in `memory`.

    OSError, TimeoutError or ValueError when it cannot be made.
    """
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        async with asyncio.timeout(timeout_s):
            await asyncio.get_running_loop().sock_connect(sock, "\0" + address)
        _check_user(sock)
        hello = pb.TransferHello(source_worker_id=source.worker_id, source_epoch=source.epoch)
        line = open_line(sock, hello, memory.descriptor)
    except BaseException:
        sock.close()
        raise
    return SenderConnection("shm", max_payload_bytes, ShmOutlet(line, memory))


class ShmOutlet:
    """Says where a payload lies, and sums it while the receiver reads it."""

    def __init__(self, line: Line, memory: PoolMemory) -> None:
        self._line = line
        self._memory = memory

    async def exchange(self, header: pb.ChunkHeader, views: Sequence[memoryview]) -> pb.ChunkAck:
        """See `Outlet.exchange`."""
        message = pb.ChunkHeader()
        message.CopyFrom(header)
        for view in views:
            message.spans.extend((self._memory.offset_of(view), len(view)))
        self._line.write(frame(message))
        cursor, total = Cursor(views), 0
        while cursor.num_left:
            total = checksum(cursor.take(min(_PIECE_BYTES, cursor.num_left)), total)
            if cursor.num_left:
                await asyncio.sleep(0)
        self._line.write(SUM.pack(total))
        return await self._line.read_message(pb.ChunkAck)

    def shut_down(self) -> None:
        """See `Outlet.shut_down`."""
        self._line.shut_down()

    def close(self) -> None:
        """See `Outlet.close`."""
        self._line.close()


@dataclass(frozen=True, slots=True)
class _Common:
    """What all connections of a receiver share."""

    mappings: Mappings = field(default_factory=Mappings)
    # Held for a piece at a time: several senders hold up the event loop for no longer than one.
    copying: asyncio.Lock = field(default_factory=asyncio.Lock)


class ShmPayload:
    """Copies payloads out of the sender's memory into the pool."""

    def __init__(self, line: Line, memory: MappedMemory, common: _Common) -> None:
        """Takes over a line, and memory that is open in `common.mappings`."""
        self._line = line
        self._memory = memory
        self._common = common
        self._sources: list[tuple[int, int]] = []  # address and length of each span
        self._sum_is_due = False

    async def header(self) -> pb.ChunkHeader:
        """See `IncomingPayload.header`."""
        header = await self._line.read_message(pb.ChunkHeader)
        offsets, lengths = header.spans[::2], header.spans[1::2]
        if len(offsets) != len(lengths) or len(lengths) > MAX_SPANS or sum(lengths) != header.payload_bytes:
            raise FramingError("the spans are not those of the payload")
        try:
            self._sources = [
                (self._memory.address(offset, length), length)
                for offset, length in zip(offsets, lengths, strict=True)
            ]
        except ValueError as error:
            raise FramingError(str(error)) from None
        self._sum_is_due = True
        return header

    async def fill(self, room: Room) -> None:
        """See `IncomingPayload.fill`."""
        copy, found, is_first = copy_sum(), 0, True
        for piece in _pieces(_stretches(room.views, self._sources)):
            async with self._common.copying:
                if not is_first:
                    await asyncio.sleep(0)
                    _check_wanted(room)
                is_first = False
                for target, source, num_bytes in piece:
                    found = copy(target, source, num_bytes, found)
        while self._sum_is_due:
            _check_wanted(room)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_ASK_INTERVAL_S):
                    expected = await self._sum()
        if found != expected:
            raise InvalidRequest("the checksum of the blocks is wrong")

    async def skip(self) -> None:
        """See `IncomingPayload.skip`."""
        if self._sum_is_due:
            await self._sum()

    async def answer(self, ack: pb.ChunkAck) -> None:
        """See `IncomingPayload.answer`."""
        self._line.write(frame(ack))

    def close(self) -> None:
        """See `IncomingPayload.close`."""
        self._line.close()
        self._common.mappings.close(self._memory)

    async def _sum(self) -> int:
        """The sender's checksum of the present payload."""
        content = await self._line.read(SUM.size)
        self._sum_is_due = False
        (expected,) = SUM.unpack(content)
        return int(expected)


def _stretches(
    views: Sequence[memoryview], sources: Sequence[tuple[int, int]]
) -> Iterator[tuple[int, int, int]]:
    """Address to copy to, address to copy from, and number of bytes, at most _PIECE_BYTES, until all is copied."""
    targets = ((address_of(view), len(view)) for view in views if view)
    target, room = 0, 0
    for address, length in sources:
        source, left = address, length
        while left:
            if not room:
                target, room = next(targets)
            num_bytes = min(room, left, _PIECE_BYTES)
            yield target, source, num_bytes
            target, room = target + num_bytes, room - num_bytes
            source, left = source + num_bytes, left - num_bytes


def _pieces(stretches: Iterable[tuple[int, int, int]]) -> Iterator[list[tuple[int, int, int]]]:
    """The same, as many at a time as make _PIECE_BYTES at most."""
    piece: list[tuple[int, int, int]] = []
    left = _PIECE_BYTES
    for stretch in stretches:
        if stretch[2] > left:
            yield piece
            piece, left = [], _PIECE_BYTES
        piece.append(stretch)
        left -= stretch[2]
    yield piece


async def _introduce(common: _Common, sock: socket.socket) -> tuple[pb.TransferHello, ShmPayload]:
    _check_user(sock)
    hello, line, memory = await answer_line(sock)
    try:
        mapped = common.mappings.open(memory)
    except (OSError, ValueError) as error:
        line.close()
        raise FramingError(str(error)) from None
    finally:
        os.close(memory)
    return hello, ShmPayload(line, mapped, common)


def _check_wanted(room: Room) -> None:
    if not room.is_wanted():
        raise PermissionDenied("the handoff has ended")


def _check_user(sock: socket.socket) -> None:
    """PermissionError unless the peer runs as the same user: abstract names are anyone's to take."""
    credentials = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    _, user, _ = _CREDENTIALS.unpack(credentials)
    if user != os.geteuid():
        raise PermissionError("the peer runs as another user")
