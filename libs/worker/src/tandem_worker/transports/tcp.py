"""Blocks over TCP: the payload follows its header on the same raw socket, from pool to pool without a copy between."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Sequence

from tandem.v1 import transfer_pb2 as pb

from tandem_worker.transports.api import BlockSink, Source
from tandem_worker.transports.connection import SenderConnection
from tandem_worker.transports.framing import FramingError, frame, read_message
from tandem_worker.transports.incoming import ASK_INTERVAL_MS, IncomingPayload
from tandem_worker.transports.payload import PIECE_BYTES, RECORD, Cursor, after, checksum
from tandem_worker.transports.receiver import Receiver

# Parts of one call to the kernel; it takes no more than 1,024.
_MAX_PARTS = 512
_SCRATCH_BYTES = 64 << 10
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
    return SenderConnection(sock, "tcp", max_payload_bytes, TcpOutlet())


class TcpOutlet:
    """Sends straight from the pool."""

    def send(self, sock: socket.socket, header: bytes, views: Sequence[memoryview]) -> None:
        """The header, then each piece behind its record."""
        cursor, before = Cursor(views), header
        while cursor.num_left:
            length = min(PIECE_BYTES, cursor.num_left)
            parts = cursor.take(length)
            parts.insert(0, memoryview(before + RECORD.pack(length, checksum(parts))))
            while parts:
                parts = after(parts, sock.sendmsg(parts[:_MAX_PARTS]))
            before = b""
        sock.sendall(before)

    def close(self) -> None:
        """Nothing is held."""


class TcpPayload(IncomingPayload):
    """Reads from the socket into the pool, and sums what it has just read."""

    def __init__(self, sock: socket.socket) -> None:
        super().__init__(sock)
        self._record = memoryview(bytearray(RECORD.size))
        self._scratch = memoryview(bytearray(_SCRATCH_BYTES))
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", 0, 1000 * ASK_INTERVAL_MS))

    def close(self) -> None:
        """Nothing is held."""

    def _next_record(self) -> tuple[int, int]:
        count = self._receive([self._record])
        if count < RECORD.size:
            # Half a record must not be left behind, wanted or not.
            room, self._room = self._room, None
            while count < RECORD.size:
                count += self._receive([self._record[count:]])
            self._room = room
        length, expected = RECORD.unpack(self._record)
        return length, expected

    def _take(self, parts: list[memoryview]) -> int:
        left = parts
        while left:
            count = self._receive(left[:_MAX_PARTS])
            self._piece_left -= count
            left = after(left, count)
        return checksum(parts)

    def _drop(self) -> None:
        while self._piece_left:
            self._piece_left -= self._receive([self._scratch[: self._piece_left]])

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


async def _introduce(sock: socket.socket, max_payload_bytes: int) -> tuple[pb.TransferHello, TcpPayload]:
    _tune(sock)
    return await read_message(sock, pb.TransferHello), TcpPayload(sock)


def _tune(sock: socket.socket) -> None:
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _USER_TIMEOUT_MS)
