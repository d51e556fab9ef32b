"""Blocks over shared memory between processes of one user on one host.

The sender makes an anonymous segment (memfd) and passes its descriptor over an abstract Unix socket, so nothing has a
name in the file system and nothing is left behind, however a process ends. Headers, records of pieces and answers go
over the socket, pieces lie in the slots of the segment, taken in turn; a byte that comes back says that a slot is free
again. The segment is small, so that it stays in the processors' cache: what a sender writes there, the receiver need
not fetch from memory. It is sealed against resizing: a sender that shrank it could otherwise kill the receiver
(SIGBUS).
"""

from __future__ import annotations

import array
import asyncio
import fcntl
import mmap
import os
import secrets
import socket
import struct
from collections.abc import Sequence
from pathlib import Path

from tandem.v1 import transfer_pb2 as pb

from tandem_worker.transports.api import BlockSink, Source
from tandem_worker.transports.connection import SenderConnection
from tandem_worker.transports.framing import LENGTH, FramingError, frame, read_message_body
from tandem_worker.transports.incoming import IncomingPayload
from tandem_worker.transports.payload import PIECE_BYTES, RECORD, Cursor, crc32, gather, scatter
from tandem_worker.transports.receiver import Receiver

NUM_SLOTS = 8
_SEGMENT_BYTES = NUM_SLOTS * PIECE_BYTES
# Present from the start: a page that must be made costs more than copying it.
_MAP_FLAGS = mmap.MAP_SHARED | mmap.MAP_POPULATE
_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
_CREDENTIALS = struct.Struct("3i")  # process, user, group


def host_id() -> str:
    """Equal for processes that can reach each other's abstract sockets and share memory.

    That is: one boot of one kernel, one network namespace (abstract names live in it) and one user.
    """
    boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    return f"{boot}/{Path('/proc/self/ns/net').readlink()}/{os.geteuid()}"


def listen(sink: BlockSink) -> Receiver:
    """A receiver under a fresh abstract name; OSError where there are none."""
    name = f"tandem-kv-{secrets.token_hex(16)}"
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind("\0" + name)
    listener.listen(128)
    listener.setblocking(False)
    return Receiver(listener, sink, _introduce, kind="shm", address=name)


async def connect(address: str, source: Source, max_payload_bytes: int, timeout_s: float) -> SenderConnection:
    """A connection to the receiver of that name; OSError, TimeoutError or ValueError when it cannot be made."""
    loop = asyncio.get_running_loop()
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        async with asyncio.timeout(timeout_s):
            await loop.sock_connect(sock, "\0" + address)
        _check_user(sock)
        descriptor = os.memfd_create("tandem-kv", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.ftruncate(descriptor, _SEGMENT_BYTES)
            fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, _SEALS)
            ring = Ring(mmap.mmap(descriptor, _SEGMENT_BYTES, _MAP_FLAGS))
            hello = pb.TransferHello(
                source_worker_id=source.worker_id, source_epoch=source.epoch, segment_bytes=_SEGMENT_BYTES
            )
            # Small enough to fit into the empty buffer of a new socket: it never blocks and is never cut.
            socket.send_fds(sock, [frame(hello)], [descriptor])
        finally:
            os.close(descriptor)
    except BaseException:
        sock.close()
        raise
    return SenderConnection(sock, "shm", max_payload_bytes, ring.send)


class Ring:
    """The segment as slots of one piece each, used in turn; a payload begins with the first."""

    def __init__(self, segment: mmap.mmap) -> None:
        self._memory = memoryview(segment)

    def slot(self, index: int, length: int) -> memoryview:
        """Where piece `index` of a payload lies."""
        start = index % NUM_SLOTS * PIECE_BYTES
        return self._memory[start : start + length]

    def send(self, sock: socket.socket, views: Sequence[memoryview]) -> None:
        """Copy a payload in, as slots become free; returns when all are free again."""
        cursor = Cursor(views)
        num_sent = num_free = 0
        while cursor.num_left:
            length = min(PIECE_BYTES, cursor.num_left)
            while num_sent - num_free == NUM_SLOTS:
                num_free += _wait_for_slots(sock, NUM_SLOTS)
            slot = self.slot(num_sent, length)
            gather(cursor.take(length), slot)
            sock.sendall(RECORD.pack(length, crc32(slot)))
            num_sent += 1
        while num_free < num_sent:
            num_free += _wait_for_slots(sock, num_sent - num_free)


def _wait_for_slots(sock: socket.socket, num_used: int) -> int:
    freed = sock.recv(num_used)
    if not freed:
        raise ConnectionError("the peer closed the connection")
    return len(freed)


class ShmPayload(IncomingPayload):
    """Copies from the sender's segment, mapped here, into the pool."""

    def __init__(self, sock: socket.socket, ring: Ring) -> None:
        super().__init__(sock, PIECE_BYTES)
        self._ring = ring
        self._num_taken = 0

    def begin(self, num_bytes: int) -> None:
        """A header was read: a payload begins in the first slot."""
        super().begin(num_bytes)
        self._num_taken = 0

    def close(self) -> None:
        """The mapping ends with the last view of it."""
        del self._ring

    def _take(self, parts: list[memoryview]) -> int:
        slot = self._ring.slot(self._num_taken, self._piece_left)
        found = crc32(slot)
        scatter(slot, parts)
        self._drop()
        return found

    def _drop(self) -> None:
        self._piece_left = 0
        self._num_taken += 1
        self._sock.sendall(b"\0")


async def _introduce(sock: socket.socket, max_payload_bytes: int) -> tuple[pb.TransferHello, ShmPayload]:
    _check_user(sock)
    prefix, descriptor = await _receive_descriptor(sock)
    try:
        hello = await read_message_body(sock, prefix, pb.TransferHello)
        if os.fstat(descriptor).st_size != hello.segment_bytes:
            raise FramingError("the shared segment has another size than the hello says")
        if hello.segment_bytes != _SEGMENT_BYTES:
            raise FramingError("the shared segment has another size than ours")
        if fcntl.fcntl(descriptor, fcntl.F_GET_SEALS) & _SEALS != _SEALS:
            raise FramingError("the shared segment is not sealed")
        return hello, ShmPayload(sock, Ring(mmap.mmap(descriptor, _SEGMENT_BYTES, _MAP_FLAGS)))
    finally:
        os.close(descriptor)


async def _receive_descriptor(sock: socket.socket) -> tuple[bytes, int]:
    """The length prefix of the hello and the descriptor that came with it."""
    await _readable(sock)
    descriptors = array.array("i")
    prefix, ancillary, _, _ = sock.recvmsg(
        LENGTH.size, socket.CMSG_SPACE(descriptors.itemsize), socket.MSG_CMSG_CLOEXEC
    )
    for level, kind, content in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            descriptors.frombytes(content[: len(content) - len(content) % descriptors.itemsize])
    if len(descriptors) != 1:
        for descriptor in descriptors:
            os.close(descriptor)
        raise FramingError("no shared segment came with the hello")
    return prefix, descriptors[0]


async def _readable(sock: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    ready: asyncio.Future[None] = loop.create_future()
    loop.add_reader(sock, lambda: None if ready.done() else ready.set_result(None))
    try:
        await ready
    finally:
        loop.remove_reader(sock)


def _check_user(sock: socket.socket) -> None:
    """PermissionError unless the peer runs as the same user: abstract names are anyone's to take."""
    credentials = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    _, user, _ = _CREDENTIALS.unpack(credentials)
    if user != os.geteuid():
        raise PermissionError("the peer runs as another user")
