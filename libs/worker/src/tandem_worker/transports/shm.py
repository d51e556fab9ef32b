"""Blocks over shared memory between processes of one user on one host.

The sender makes an anonymous segment (memfd) and passes its descriptor over an abstract Unix socket, so nothing has a
name in the file system and nothing is left behind, however a process ends. Headers and answers go over the socket; the
pieces of a payload lie in the slots of the segment, see `ring`. The segment is sealed against resizing: a sender that
shrank it could otherwise kill the receiver (SIGBUS).
"""

from __future__ import annotations

import array
import asyncio
import fcntl
import os
import secrets
import socket
import struct
from pathlib import Path

from tandem.v1 import transfer_pb2 as pb

from tandem_worker.transports.api import BlockSink, Source
from tandem_worker.transports.connection import SenderConnection
from tandem_worker.transports.framing import LENGTH, FramingError, frame, read_message_body
from tandem_worker.transports.receiver import Receiver
from tandem_worker.transports.ring import SEGMENT_BYTES, Ring, ShmPayload

_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
_NUM_DESCRIPTORS = 3  # of the segment, and of the two counters of a Ring
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
        descriptors = [
            os.memfd_create("tandem-kv", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING),
            os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK),
            os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK),
        ]
        try:
            os.ftruncate(descriptors[0], SEGMENT_BYTES)
            fcntl.fcntl(descriptors[0], fcntl.F_ADD_SEALS, _SEALS)
            ring = Ring(*descriptors)
            hello = pb.TransferHello(
                source_worker_id=source.worker_id, source_epoch=source.epoch, segment_bytes=SEGMENT_BYTES
            )
            # Small enough to fit into the empty buffer of a new socket: it never blocks and is never cut.
            try:
                socket.send_fds(sock, [frame(hello)], descriptors)
            except OSError:
                ring.close()
                raise
        finally:
            for descriptor in descriptors:
                os.close(descriptor)
    except BaseException:
        sock.close()
        raise
    return SenderConnection(sock, "shm", max_payload_bytes, ring)


async def _introduce(sock: socket.socket, max_payload_bytes: int) -> tuple[pb.TransferHello, ShmPayload]:
    _check_user(sock)
    prefix, descriptors = await _receive_descriptors(sock)
    try:
        hello = await read_message_body(sock, prefix, pb.TransferHello)
        if len(descriptors) != _NUM_DESCRIPTORS:
            raise FramingError("no shared segment came with the hello")
        if hello.segment_bytes != SEGMENT_BYTES or os.fstat(descriptors[0]).st_size != SEGMENT_BYTES:
            raise FramingError("the shared segment has another size than ours")
        if fcntl.fcntl(descriptors[0], fcntl.F_GET_SEALS) & _SEALS != _SEALS:
            raise FramingError("the shared segment is not sealed")
        return hello, ShmPayload(sock, Ring(*descriptors))
    finally:
        for descriptor in descriptors:
            os.close(descriptor)


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


def _check_user(sock: socket.socket) -> None:
    """PermissionError unless the peer runs as the same user: abstract names are anyone's to take."""
    credentials = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    _, user, _ = _CREDENTIALS.unpack(credentials)
    if user != os.geteuid():
        raise PermissionError("the peer runs as another user")
