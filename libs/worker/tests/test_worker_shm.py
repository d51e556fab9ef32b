"""What is particular to blocks that the receiver reads out of the sender's memory."""

import asyncio
import ctypes
import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from zlib import crc32

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tandem.v1 import cluster_pb2, transfer_pb2
from tandem_common.errors import InvalidRequest, PermissionDenied
from tandem_engine.pool_memory import PoolMemory, address_of
from tandem_worker.transports import OutgoingChunk, PeerConnections, Receiver, Room, Source, shm, tcp
from tandem_worker.transports.copying import copy_sum, copy_then_sum
from tandem_worker.transports.framing import frame
from tandem_worker.transports.line import Line, open_line
from tandem_worker.transports.mapped_memory import MappedMemory
from tandem_worker.transports.shm import MAX_SPANS

MAX_PAYLOAD = 32 << 20
SOURCE = Source(worker_id="p", epoch=1)
SENDER = Path(__file__).with_name("shm_sender.py")
POOL = PoolMemory(MAX_PAYLOAD)


@dataclass
class Sink:
    """Keeps what it gets; room is made when it may be read."""

    may_read: asyncio.Event = field(default_factory=asyncio.Event)
    got: list[bytes] = field(default_factory=list)
    refused: list[BaseException] = field(default_factory=list)
    num_rooms: int = 0
    is_wanted: bool = True

    @property
    def max_payload_bytes(self) -> int:
        return MAX_PAYLOAD

    @asynccontextmanager
    async def room(self, source: Source, header: transfer_pb2.ChunkHeader) -> AsyncIterator[Room | None]:
        payload = bytearray(header.payload_bytes)
        self.num_rooms += 1
        try:
            await self.may_read.wait()
            yield Room(views=[memoryview(payload)], is_wanted=lambda: self.is_wanted)
        except BaseException as error:
            self.refused.append(error)
            raise
        finally:
            self.num_rooms -= 1
        self.got.append(bytes(payload))

    async def until(self, num_rooms: int) -> None:
        async with asyncio.timeout(10):
            while self.num_rooms != num_rooms:
                await asyncio.sleep(0.005)


@asynccontextmanager
async def receiving(sink: Sink) -> AsyncIterator[Receiver]:
    receiver = shm.listen(sink)
    serving = asyncio.create_task(receiver.serve())
    try:
        yield receiver
    finally:
        serving.cancel()
        await asyncio.gather(serving, return_exceptions=True)


def chunk(memory: memoryview) -> OutgoingChunk:
    @asynccontextmanager
    async def lend(*, shared: bool) -> AsyncIterator[Sequence[memoryview]]:
        yield [memory[:10], memory[10:]]

    header = transfer_pb2.ChunkHeader(num_blocks=1, payload_bytes=len(memory))
    return OutgoingChunk(header=header, lend=lend)


async def assert_serves(receiver: Receiver, sink: Sink) -> None:
    """Whatever became of others, who sends well is served."""
    sink.may_read.set()
    memory = POOL.view[:19]
    memory[:] = b"all of this is fine"
    connection = await shm.connect(receiver.address, SOURCE, POOL, MAX_PAYLOAD, 2.0)
    await connection.ship(chunk(memory), 5)
    await connection.close()
    assert sink.got[-1] == b"all of this is fine"


@pytest.mark.parametrize("num_bytes", [1000, MAX_PAYLOAD])
@pytest.mark.parametrize("place", [0, -1])
async def test_a_block_that_was_written_to_while_it_was_lent_is_refused(num_bytes: int, place: int) -> None:
    sink, memory = Sink(), POOL.view[:num_bytes]
    memory[:] = os.urandom(num_bytes)
    async with receiving(sink) as receiver:
        connection = await shm.connect(receiver.address, SOURCE, POOL, MAX_PAYLOAD, 2.0)
        shipping = asyncio.create_task(connection.ship(chunk(memory), 5))
        await sink.until(1)
        await asyncio.sleep(0.2)  # it is summed by now
        memory[place] ^= 1
        sink.may_read.set()
        with pytest.raises(InvalidRequest, match="checksum"):
            await shipping
        assert sink.got == []
        await connection.ship(chunk(memory), 5)
        assert sink.got == [memory]
        await connection.close()


@asynccontextmanager
async def another_process(address: str, num_bytes: int) -> AsyncIterator[subprocess.Popen[bytes]]:
    command = [sys.executable, str(SENDER), address, str(num_bytes)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE)
    try:
        yield process
    finally:
        process.kill()
        process.stdout.close()
        process.wait()


@pytest.mark.parametrize("num_bytes", [1000, MAX_PAYLOAD])
async def test_what_another_process_ships_arrives(num_bytes: int) -> None:
    sink = Sink()
    sink.may_read.set()
    async with receiving(sink) as receiver, another_process(receiver.address, num_bytes) as sender:
        assert await asyncio.to_thread(sender.stdout.readline) == b"shipped\n"
    assert sink.got == [(bytes(range(251)) * (num_bytes // 251 + 1))[:num_bytes]]


@pytest.mark.parametrize("delay_s", [0, 0.001, 0.005, 0.2])
async def test_a_sender_that_is_killed_harms_nobody(delay_s: float) -> None:
    """Its memory outlives it for whoever reads: all of the chunk is there, and summed, or it does not count."""
    sink = Sink()
    async with receiving(sink) as receiver:
        async with another_process(receiver.address, MAX_PAYLOAD) as sender:
            await sink.until(1)
            await asyncio.sleep(delay_s)
            sender.send_signal(signal.SIGKILL)
            await asyncio.to_thread(sender.wait)
            sink.may_read.set()
            await sink.until(0)
        assert sink.got in ([], [(bytes(range(251)) * (MAX_PAYLOAD // 251 + 1))[:MAX_PAYLOAD]])
        await assert_serves(receiver, sink)


async def test_a_chunk_whose_sender_dies_before_it_has_summed_it_does_not_count() -> None:
    sink = Sink()
    async with receiving(sink) as receiver:
        async with handmade(receiver) as line:
            header = transfer_pb2.ChunkHeader(num_blocks=1, payload_bytes=16, spans=[0, 16])
            line.write(frame(header))
            await sink.until(1)
        sink.may_read.set()
        await sink.until(0)
        assert sink.got == []
        assert isinstance(sink.refused[0], ConnectionError)
        await assert_serves(receiver, sink)


async def test_a_sender_that_stops_in_mid_chunk_is_not_waited_for_once_nobody_wants_it() -> None:
    sink = Sink()
    async with receiving(sink) as receiver:
        async with another_process(receiver.address, MAX_PAYLOAD) as sender:
            await sink.until(1)
            sender.send_signal(signal.SIGSTOP)
            sink.is_wanted = False
            sink.may_read.set()
            await sink.until(0)
            assert isinstance(sink.refused[0], PermissionDenied)
        sink.is_wanted = True
        await assert_serves(receiver, sink)


@asynccontextmanager
async def handmade(receiver: Receiver, shared: int = POOL.descriptor) -> AsyncIterator[Line]:
    """The sender's end of a line."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    sock.connect("\0" + receiver.address)
    sock.setblocking(False)
    line = open_line(sock, transfer_pb2.TransferHello(source_worker_id="p"), shared)
    try:
        yield line
    finally:
        line.close()


NO_SPANS = {
    "odd": [1, 2, 3],
    "too short": [0, 15],
    "too long": [0, 17],
    "too many": [0, 0] * MAX_SPANS + [0, 16],
    "beyond the end": [MAX_PAYLOAD - 15, 16],
    "far beyond": [2**64 - 8, 16],
    "around": [0, 2**64 - 1, 0, 17],
}


@pytest.mark.parametrize("name", NO_SPANS)
async def test_spans_that_make_no_sense_end_the_connection(name: str) -> None:
    sink = Sink()
    sink.may_read.set()
    async with receiving(sink) as receiver:
        async with handmade(receiver) as line, asyncio.timeout(5):
            header = transfer_pb2.ChunkHeader(num_blocks=1, payload_bytes=16, spans=NO_SPANS[name])
            line.write(frame(header))
            with pytest.raises(ConnectionError):
                await line.read(1)
        assert sink.got == []
        await assert_serves(receiver, sink)


async def test_blocks_that_cannot_be_shared_go_another_way() -> None:
    sink = Sink()
    sink.may_read.set()
    async with receiving(sink) as receiver:
        far = tcp.listen("127.0.0.1", 0, "127.0.0.1", sink)
        serving = asyncio.create_task(far.serve())
        near = cluster_pb2.KvEndpoint(
            kind=cluster_pb2.TRANSPORT_KIND_SHM, address=receiver.address, host_id=shm.host_id()
        )
        away = cluster_pb2.KvEndpoint(kind=cluster_pb2.TRANSPORT_KIND_TCP, address=far.address)
        card = cluster_pb2.WorkerCard(worker_id="d", epoch=1, kv_endpoints=[near, away])
        on_a_device = chunk(memoryview(bytearray(b"some of the blocks")))
        peers = PeerConnections(SOURCE, ("shm", "tcp"), MAX_PAYLOAD, None)
        assert await peers.ship(card, on_a_device, 5) == "tcp"
        await peers.close()
        serving.cancel()
        await asyncio.gather(serving, return_exceptions=True)
    assert sink.got == [b"some of the blocks"]


@pytest.mark.parametrize("what", ["nothing", "no counters", "pipes", "unsealed", "a pipe"])
async def test_a_hello_without_what_belongs_to_it_ends_the_connection(what: str) -> None:
    sink = Sink()
    async with receiving(sink) as receiver:
        unsealed = os.memfd_create("test")
        os.ftruncate(unsealed, 100)
        pipe, counters = os.pipe(), [os.eventfd(0), os.eventfd(0)]
        passed = {
            "nothing": [],
            "no counters": [POOL.descriptor],
            "pipes": [POOL.descriptor, *pipe],
            "unsealed": [unsealed, *counters],
            "a pipe": [pipe[0], *counters],
        }[what]
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
            sock.connect("\0" + receiver.address)
            sock.setblocking(False)
            socket.send_fds(sock, [frame(transfer_pb2.TransferHello(source_worker_id="p"))], passed)
            for descriptor in (unsealed, *pipe, *counters):
                os.close(descriptor)
            async with asyncio.timeout(5):
                with suppress(ConnectionResetError):  # when something was left unread
                    assert await asyncio.get_running_loop().sock_recv(sock, 1) == b""
        await assert_serves(receiver, sink)


async def test_closed_connections_leave_no_mapping() -> None:
    def num_mapped() -> int:
        return Path("/proc/self/maps").read_text().count("memfd:tandem-kv")

    sink, before = Sink(), num_mapped()
    async with receiving(sink) as receiver:
        async with handmade(receiver), asyncio.timeout(5):
            while num_mapped() == before:
                await asyncio.sleep(0.01)
            async with handmade(receiver):
                await assert_serves(receiver, sink)
                assert num_mapped() == before + 1  # for all three
        await assert_serves(receiver, sink)
        async with asyncio.timeout(5):
            while num_mapped() != before:
                await asyncio.sleep(0.01)


def test_shared_memory_is_written_to_by_its_maker_only_and_never_shrinks() -> None:
    memory = PoolMemory(8192)
    again = os.open(f"/proc/self/fd/{memory.descriptor}", os.O_RDWR)
    memory.view[:4] = b"mine"
    with pytest.raises(PermissionError):
        os.pwrite(again, b"yours", 0)
    with pytest.raises(PermissionError):
        os.ftruncate(again, 0)
    with pytest.raises(PermissionError):
        os.ftruncate(again, 1 << 20)
    assert os.pread(again, 4, 0) == b"mine"
    os.close(again)


def test_mapped_memory_shows_what_its_owner_writes_and_nothing_beyond() -> None:
    memory = PoolMemory(8192)
    mapped = MappedMemory(memory.descriptor)
    memory.view[4090:4100] = b"0123456789"
    assert ctypes.string_at(mapped.address(4090, 10), 10) == b"0123456789"
    for offset, num_bytes in ((8000, 193), (-1, 1), (0, -1), (2**63, 1)):
        with pytest.raises(ValueError, match="beyond"):
            mapped.address(offset, num_bytes)
    mapped.close()
    mapped.close()


def test_nothing_of_shared_memory_has_a_name() -> None:
    assert not [name for name in os.listdir("/dev/shm") if "tandem" in name]


SOURCE_BYTES = bytearray(os.urandom(200_000))
SIZES = st.one_of(
    st.integers(0, 300), st.integers(0, 100_000), st.sampled_from([16_384, 16_448, 65_536, 65_600])
)


@given(SIZES, st.integers(0, 130), st.integers(0, 130), st.integers(0, 2**32 - 1))
def test_what_is_copied_in_one_pass_is_summed_as_zlib_does(
    num_bytes: int, source_at: int, target_at: int, before: int
) -> None:
    source = address_of(memoryview(SOURCE_BYTES)) + source_at
    expected = bytes(SOURCE_BYTES[source_at : source_at + num_bytes])
    for copy in (copy_sum(), copy_then_sum):
        target = bytearray(100_300)
        assert copy(address_of(memoryview(target)) + target_at, source, num_bytes, before) == crc32(
            expected, before
        )
        assert target == bytes(target_at) + expected + bytes(len(target) - target_at - num_bytes)
