"""Messages on a socket: length as u32 little-endian, then a protobuf message.

Nothing here waits for ever by itself, but everything may: callers put `asyncio.timeout` around it.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from typing import TypeVar

from google.protobuf.message import DecodeError
from tandem.v1 import transfer_pb2 as pb

# The longest is a header with the spans of as many blocks as a chunk may have, 16 bytes each.
MAX_FRAME_BYTES = 32 << 10
LENGTH = struct.Struct("<I")

M = TypeVar("M", pb.TransferHello, pb.ChunkHeader, pb.ChunkAck)


class FramingError(ConnectionError):
    """The peer does not speak the protocol, or left in the middle of a message."""


class PeerClosed(ConnectionError):
    """The peer closed the connection between two messages."""


async def read_into(sock: socket.socket, buffer: memoryview) -> int:
    """Fill `buffer` from a non-blocking socket; returns how many bytes came before the peer closed it."""
    loop = asyncio.get_running_loop()
    num_read = 0
    while num_read < len(buffer):
        count = await loop.sock_recv_into(sock, buffer[num_read:])
        if count == 0:
            break
        num_read += count
    return num_read


async def read_exactly(sock: socket.socket, buffer: memoryview) -> None:
    """Fill `buffer`; FramingError when the peer closes before that."""
    if await read_into(sock, buffer) < len(buffer):
        raise FramingError("the connection ended in the middle of a message")


async def read_message(sock: socket.socket, kind: type[M]) -> M:
    """The next message; PeerClosed when there is none, FramingError for anything but a `kind`."""
    prefix = bytearray(LENGTH.size)
    count = await read_into(sock, memoryview(prefix))
    if count == 0:
        raise PeerClosed("the peer closed the connection")
    return await read_message_body(sock, bytes(prefix[:count]), kind)


async def read_message_body(sock: socket.socket, prefix: bytes, kind: type[M]) -> M:
    """The message whose length is in `prefix`."""
    if len(prefix) < LENGTH.size:
        raise FramingError("the connection ended in the middle of a message")
    body = bytearray(body_length(prefix))
    await read_exactly(sock, memoryview(body))
    return parse(body, kind)


def receive_message(sock: socket.socket, kind: type[M]) -> M:
    """Like `read_message`, on a socket that blocks."""
    body = _receive_exactly(sock, body_length(_receive_exactly(sock, LENGTH.size)))
    return parse(body, kind)


def frame(message: pb.TransferHello | pb.ChunkHeader | pb.ChunkAck) -> bytes:
    """A message as it goes over the wire."""
    body = message.SerializeToString()
    return LENGTH.pack(len(body)) + body


def body_length(prefix: bytes | bytearray) -> int:
    """Bytes of the message that follows; FramingError when no message of ours is so long."""
    (length,) = LENGTH.unpack(prefix)
    if length > MAX_FRAME_BYTES:
        raise FramingError(f"a message of {length} bytes; at most {MAX_FRAME_BYTES} are allowed")
    return int(length)


def parse(body: bytes | bytearray | memoryview, kind: type[M]) -> M:
    """What a message says; FramingError when it is no `kind`."""
    try:
        return kind.FromString(bytes(body))
    except DecodeError:
        raise FramingError(f"not a {kind.DESCRIPTOR.name}") from None


def _receive_exactly(sock: socket.socket, num_bytes: int) -> bytearray:
    buffer = bytearray(num_bytes)
    view = memoryview(buffer)
    while view:
        count = sock.recv_into(view)
        if count == 0:
            raise PeerClosed("the peer closed the connection")
        view = view[count:]
    return buffer
