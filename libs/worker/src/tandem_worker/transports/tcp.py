"""Blocks over TCP: the payload follows its header on the same raw socket, from pool to pool without a copy between."""

from __future__ import annotations

import asyncio
import os
import socket
import struct
from collections.abc import Callable, Sequence

from tandem.v1 import transfer_pb2 as pb
from tandem_common.errors import InvalidRequest, PermissionDenied

from tandem_worker.transports.api import BlockSink, Room, Source
from tandem_worker.transports.blocking import SocketThread
from tandem_worker.transports.connection import SenderConnection
from tandem_worker.transports.framing import FramingError, frame, read_message, receive_message
from tandem_worker.transports.payload import PIECE_BYTES, Cursor, checksum
from tandem_worker.transports.receiver import Receiver

# A piece goes over the wire as this (length, CRC-32), then its bytes.
RECORD = struct.Struct("<II")
# Parts of one call to the kernel; it takes no more than 1,024.
_MAX_PARTS = 512
_SCRATCH_BYTES = 64 << 10
# How often a reader that waits for its peer asks whether the payload is still wanted.
_ASK_INTERVAL_MS = 250
# Sent but not acknowledged for so long: the peer's host is gone.
_USER_TIMEOUT_MS = 10_000


def listen(host: str, port: int, advertise_host: str, sink: BlockSink) -> Receiver:
    """A receiver on `host`; OSError when the port is taken."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.create_server((host, port), family=family, backlog=128)
    listener.setblocking(False)
    bound_port = listener.getsockname()[1]
    shown = f"[{advertise_host}]" if ":" in advertise_host else advertise_host
    return Receiver(listener, sink, _introduce, kind="tcp", address=f"{shown}:{bound_port}")


async def connect(address: str, source: Source, max_payload_bytes: int, timeout_s: float) -> SenderConnection:
    """A connection to a receiver's `host:port`; OSError or TimeoutError when there is none."""
    loop = asyncio.get_running_loop()
    host, _, port = address.rpartition(":")
    async with asyncio.timeout(timeout_s):
        found = await loop.getaddrinfo(host.strip("[]"), int(port), type=socket.SOCK_STREAM)
        family, kind, protocol, _, target = found[0]
        sock = socket.socket(family, kind, protocol)
        try:
            sock.setblocking(False)
            await loop.sock_connect(sock, target)
            _tune(sock)
            hello = pb.TransferHello(source_worker_id=source.worker_id, source_epoch=source.epoch)
            await loop.sock_sendall(sock, frame(hello))
        except BaseException:
            sock.close()
            raise
    return SenderConnection("tcp", max_payload_bytes, TcpOutlet(sock))


class TcpOutlet:
    """Sends straight from the pool, in a thread, on a socket that blocks."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(True)
        self._sock = sock
        self._thread = SocketThread(sock, "kv-tcp-sender")

    async def exchange(self, header: pb.ChunkHeader, views: Sequence[memoryview]) -> pb.ChunkAck:
        """See `Outlet.exchange`."""
        return await self._thread.run(lambda: self._exchange(frame(header), views))

    def shut_down(self) -> None:
        """See `Outlet.shut_down`."""
        self._thread.shut_down()

    def close(self) -> None:
        """See `Outlet.close`."""
        self._thread.close()

    def _exchange(self, before: bytes, views: Sequence[memoryview]) -> pb.ChunkAck:
        """The header, then each piece behind its record."""
        cursor = Cursor(views)
        while cursor.num_left:
            length = min(PIECE_BYTES, cursor.num_left)
            parts = cursor.take(length)
            parts.insert(0, memoryview(before + RECORD.pack(length, checksum(parts))))
            while parts:
                parts = after(parts, self._sock.sendmsg(parts[:_MAX_PARTS]))
            before = b""
        self._sock.sendall(before)
        return receive_message(self._sock, pb.ChunkAck)


class TcpPayload:
    """Reads from the socket into the pool, in a thread, and sums what it has just read."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._thread = SocketThread(sock, "kv-tcp-receiver")
        self._record = memoryview(bytearray(RECORD.size))
        self._scratch = memoryview(bytearray(_SCRATCH_BYTES))
        self._room: Room | None = None
        self._num_left = 0  # beyond the present piece
        self._piece_left = 0
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", 0, 1000 * _ASK_INTERVAL_MS))

    async def header(self) -> pb.ChunkHeader:
        """See `IncomingPayload.header`."""
        header = await read_message(self._sock, pb.ChunkHeader)
        self._num_left = header.payload_bytes
        return header

    async def fill(self, room: Room) -> None:
        """See `IncomingPayload.fill`."""
        cursor = Cursor(room.views)
        if cursor.num_left != self._num_left:
            raise ValueError(f"there is room for {cursor.num_left} bytes, and {self._num_left} come")
        self._room = room
        try:
            await self._run(lambda: self._fill(cursor))
        finally:
            self._room = None

    async def skip(self) -> None:
        """See `IncomingPayload.skip`."""
        if self._num_left or self._piece_left:
            await self._run(self._skip)

    async def answer(self, ack: pb.ChunkAck) -> None:
        """See `IncomingPayload.answer`."""
        await asyncio.get_running_loop().sock_sendall(self._sock, frame(ack))

    def close(self) -> None:
        """See `IncomingPayload.close`."""
        self._thread.close()

    async def _run(self, function: Callable[[], None]) -> None:
        """The thread has the socket to itself meanwhile, and waits on it."""
        os.set_blocking(self._sock.fileno(), True)
        try:
            await self._thread.run(function)
        finally:
            os.set_blocking(self._sock.fileno(), False)

    # In the thread

    def _fill(self, cursor: Cursor) -> None:
        while self._num_left:
            self._check_wanted()
            expected = self._begin_piece()
            parts = left = cursor.take(self._piece_left)
            while left:
                count = self._receive(left[:_MAX_PARTS])
                self._piece_left -= count
                left = after(left, count)
            if checksum(parts) != expected:
                raise InvalidRequest("the checksum of the blocks is wrong")

    def _skip(self) -> None:
        while self._num_left or self._piece_left:
            if not self._piece_left:
                self._begin_piece()
            while self._piece_left:
                self._piece_left -= self._receive([self._scratch[: self._piece_left]])

    def _begin_piece(self) -> int:
        """Wait for a record; the checksum that its piece should have."""
        count = self._receive([self._record])
        if count < RECORD.size:
            # Half a record must not be left behind, wanted or not.
            room, self._room = self._room, None
            while count < RECORD.size:
                count += self._receive([self._record[count:]])
            self._room = room
        length, expected = RECORD.unpack(self._record)
        if not 0 < length <= min(self._num_left, PIECE_BYTES):
            raise FramingError(f"a piece of {length} bytes, and {self._num_left} are left")
        self._num_left -= length
        self._piece_left = length
        return int(expected)

    def _receive(self, parts: list[memoryview]) -> int:
        """Wait for some bytes, at best all; how many came."""
        while True:
            try:
                count, _, _, _ = self._sock.recvmsg_into(parts, 0, socket.MSG_WAITALL)
            except BlockingIOError:
                self._check_wanted()
                continue
            if count == 0:
                raise FramingError("the connection ended in the middle of a payload")
            return count

    def _check_wanted(self) -> None:
        """To be asked now and then while waiting."""
        if self._room is not None and not self._room.is_wanted():
            raise PermissionDenied("the handoff has ended")


def after(parts: list[memoryview], num_bytes: int) -> list[memoryview]:
    """What is left of `parts` when the first `num_bytes` are done."""
    index = 0
    while index < len(parts) and num_bytes >= len(parts[index]):
        num_bytes -= len(parts[index])
        index += 1
    return [parts[index][num_bytes:], *parts[index + 1 :]] if num_bytes else parts[index:]


async def _introduce(sock: socket.socket) -> tuple[pb.TransferHello, TcpPayload]:
    _tune(sock)
    return await read_message(sock, pb.TransferHello), TcpPayload(sock)


def _tune(sock: socket.socket) -> None:
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _USER_TIMEOUT_MS)
