"""Blocks over TCP: the payload follows its header on the same raw socket."""

from __future__ import annotations

import asyncio
import socket

from tandem.v1 import transfer_pb2 as pb

from tandem_worker.transports.api import BlockSink, Source
from tandem_worker.transports.connection import Slot, SlottedConnection
from tandem_worker.transports.framing import discard, frame, read_exactly, read_message
from tandem_worker.transports.receiver import Receiver

NUM_SLOTS = 3
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


async def connect(address: str, source: Source, slot_bytes: int, timeout_s: float) -> SlottedConnection:
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
    slots = [Slot(memoryview(bytearray(slot_bytes)), 0) for _ in range(NUM_SLOTS)]
    return SlottedConnection(sock, "tcp", slots, payload_follows=True)


class TcpPayloads:
    """One buffer that every payload of a connection is read into."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._buffer = bytearray()

    async def receive(self, header: pb.ChunkHeader) -> memoryview:
        """Read the payload; the view is good until the next chunk."""
        if len(self._buffer) < header.payload_bytes:
            self._buffer = bytearray(header.payload_bytes)
        payload = memoryview(self._buffer)[: header.payload_bytes]
        await read_exactly(self._sock, payload)
        return payload

    async def skip(self, header: pb.ChunkHeader) -> None:
        """Read past the payload."""
        await discard(self._sock, header.payload_bytes)

    def close(self) -> None:
        """Nothing is held beyond the connection."""


async def _introduce(sock: socket.socket, max_payload_bytes: int) -> tuple[pb.TransferHello, TcpPayloads]:
    _tune(sock)
    return await read_message(sock, pb.TransferHello), TcpPayloads(sock)


def _tune(sock: socket.socket) -> None:
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _USER_TIMEOUT_MS)
