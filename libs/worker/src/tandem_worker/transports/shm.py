"""Blocks over shared memory between processes of one user on one host.

The sender makes an anonymous segment (memfd) and passes its descriptor over an abstract Unix socket, so nothing has a
name in the file system and nothing is left behind, however a process ends. Headers and answers go over the socket,
payloads lie in slots of the segment. The segment is sealed against resizing: a sender that shrank it could
otherwise kill the receiver (SIGBUS).
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
from pathlib import Path

from tandem.v1 import transfer_pb2 as pb
from tandem_common.errors import InvalidRequest

from tandem_worker.transports.api import BlockSink, Source
from tandem_worker.transports.connection import Slot, SlottedConnection
from tandem_worker.transports.framing import LENGTH, FramingError, frame, read_message_body
from tandem_worker.transports.receiver import Receiver

NUM_SLOTS = 3
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


async def connect(address: str, source: Source, slot_bytes: int, timeout_s: float) -> SlottedConnection:
    """A connection to the receiver of that name; OSError, TimeoutError or ValueError when it cannot be made."""
    loop = asyncio.get_running_loop()
    segment_bytes = NUM_SLOTS * slot_bytes
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        async with asyncio.timeout(timeout_s):
            await loop.sock_connect(sock, "\0" + address)
        _check_user(sock)
        descriptor = os.memfd_create("tandem-kv", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.ftruncate(descriptor, segment_bytes)
            fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, _SEALS)
            segment = memoryview(mmap.mmap(descriptor, segment_bytes))
            hello = pb.TransferHello(
                source_worker_id=source.worker_id, source_epoch=source.epoch, segment_bytes=segment_bytes
            )
            # Small enough to fit into the empty buffer of a new socket: it never blocks and is never cut.
            socket.send_fds(sock, [frame(hello)], [descriptor])
        finally:
            os.close(descriptor)
    except BaseException:
        sock.close()
        raise
    slots = [
        Slot(segment[offset : offset + slot_bytes], offset) for offset in range(0, segment_bytes, slot_bytes)
    ]
    return SlottedConnection(sock, "shm", slots, payload_follows=False)


class ShmPayloads:
    """The sender's segment, mapped here."""

    def __init__(self, segment: mmap.mmap) -> None:
        self._segment = segment

    async def receive(self, header: pb.ChunkHeader) -> memoryview:
        """The payload where it lies; good until the chunk is answered."""
        end = header.segment_offset + header.payload_bytes
        if end > len(self._segment):
            raise InvalidRequest("the blocks lie outside of the shared segment")
        return memoryview(self._segment)[header.segment_offset : end]

    async def skip(self, header: pb.ChunkHeader) -> None:
        """Nothing follows the header."""

    def close(self) -> None:
        """The mapping ends with the last view of it."""
        del self._segment


async def _introduce(sock: socket.socket, max_payload_bytes: int) -> tuple[pb.TransferHello, ShmPayloads]:
    _check_user(sock)
    prefix, descriptor = await _receive_descriptor(sock)
    try:
        hello = await read_message_body(sock, prefix, pb.TransferHello)
        if os.fstat(descriptor).st_size != hello.segment_bytes:
            raise FramingError("the shared segment has another size than the hello says")
        if not max_payload_bytes <= hello.segment_bytes <= 64 * max_payload_bytes:
            raise FramingError("the shared segment has no sensible size")
        if fcntl.fcntl(descriptor, fcntl.F_GET_SEALS) & _SEALS != _SEALS:
            raise FramingError("the shared segment is not sealed")
        return hello, ShmPayloads(mmap.mmap(descriptor, hello.segment_bytes))
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
