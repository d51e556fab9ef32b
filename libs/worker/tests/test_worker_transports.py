import asyncio
import gc
import itertools
import os
import socket
import threading
import zlib
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import pytest
from tandem.v1 import cluster_pb2, transfer_pb2
from tandem_common.errors import InvalidRequest, PermissionDenied, Unavailable
from tandem_engine.pool_memory import PoolMemory
from tandem_worker.transports import (
    Connection,
    OutgoingChunk,
    PeerConnections,
    Receiver,
    Room,
    Source,
    TransportBroken,
    shm,
    tcp,
)
from tandem_worker.transports.framing import LENGTH, frame
from tandem_worker.transports.payload import PIECE_BYTES
from tandem_worker.transports.tcp import RECORD

MAX_PAYLOAD = 10 * PIECE_BYTES
SOURCE = Source(worker_id="p", epoch=3)
POOL = PoolMemory(2 * MAX_PAYLOAD)  # what is shipped lies here
_places = itertools.cycle(range(0, MAX_PAYLOAD, MAX_PAYLOAD // 40))


class Sink:
    """Keeps what it gets, by first block; refuses on demand, and can be made to wait."""

    def __init__(self) -> None:
        self.got: dict[int, bytes] = {}
        self.sources: set[Source] = set()
        self.may_read = asyncio.Event()
        self.may_read.set()
        self.may_write = asyncio.Event()
        self.may_write.set()
        self.is_wanted = True
        self.num_rooms = 0

    @property
    def max_payload_bytes(self) -> int:
        return MAX_PAYLOAD

    @asynccontextmanager
    async def room(self, source: Source, header: transfer_pb2.ChunkHeader) -> AsyncIterator[Room | None]:
        if header.lease_id == "forbidden":
            raise PermissionDenied("not you")
        if header.lease_id == "duplicate":
            yield None
            return
        payload = bytearray(header.payload_bytes)
        await self.may_read.wait()
        self.num_rooms += 1
        try:
            yield Room(views=in_parts(memoryview(payload)), is_wanted=lambda: self.is_wanted)
        finally:
            self.num_rooms -= 1
        await self.may_write.wait()
        if header.lease_id == "defect":
            raise ZeroDivisionError
        self.sources.add(source)
        self.got[header.first_block] = bytes(payload)


def in_parts(view: memoryview) -> list[memoryview]:
    """Cut at places that fit nobody else's."""
    parts, size = [], 1
    while view:
        parts.append(view[:size])
        view, size = view[size:], size * 7 % 40_000 + 1
    return parts


def chunk(payload: bytes, first_block: int = 0, lease_id: str = "") -> OutgoingChunk:
    """A chunk of two parts, in a place of the pool that may be another chunk's after a while."""
    place = next(_places)

    @asynccontextmanager
    async def lend(*, shared: bool) -> AsyncIterator[Sequence[memoryview]]:
        view = POOL.view[place : place + len(payload)]
        view[:] = payload
        yield [view[:100], view[100:]]

    header = transfer_pb2.ChunkHeader(
        lease_id=lease_id, first_block=first_block, num_blocks=1, payload_bytes=len(payload)
    )
    return OutgoingChunk(header=header, lend=lend)


@asynccontextmanager
async def receiving(kind: str, sink: Sink) -> AsyncIterator[Receiver]:
    receiver = shm.listen(sink) if kind == "shm" else tcp.listen("127.0.0.1", 0, "127.0.0.1", sink)
    serving = asyncio.create_task(receiver.serve())
    try:
        yield receiver
    finally:
        serving.cancel()
        await asyncio.gather(serving, return_exceptions=True)


async def connect(receiver: Receiver) -> Connection:
    if receiver.kind == "shm":
        return await shm.connect(receiver.address, SOURCE, POOL, MAX_PAYLOAD, 2.0)
    return await tcp.connect(receiver.address, SOURCE, MAX_PAYLOAD, 2.0)


@asynccontextmanager
async def connected(kind: str, sink: Sink) -> AsyncIterator[Connection]:
    async with receiving(kind, sink) as receiver:
        connection = await connect(receiver)
        try:
            yield connection
        finally:
            await connection.close()


both = pytest.mark.parametrize("kind", ["shm", "tcp"])


@both
@pytest.mark.parametrize("num_bytes", [0, 1, 4096, PIECE_BYTES, PIECE_BYTES + 1, MAX_PAYLOAD])
async def test_what_is_shipped_arrives(kind: str, num_bytes: int) -> None:
    sink, payload = Sink(), os.urandom(num_bytes)
    async with connected(kind, sink) as connection:
        await connection.ship(chunk(payload), 5)
        assert sink.got == {0: payload}
        assert sink.sources == {SOURCE}


@both
async def test_many_chunks_share_a_connection(kind: str) -> None:
    sink = Sink()
    payloads = [os.urandom(10_000 * number) for number in range(30)]
    async with connected(kind, sink) as connection:
        await asyncio.gather(*(connection.ship(chunk(p, number), 5) for number, p in enumerate(payloads)))
    assert sink.got == dict(enumerate(payloads))


@both
async def test_a_refusal_reaches_the_shipper_and_the_connection_lives_on(kind: str) -> None:
    sink = Sink()
    async with connected(kind, sink) as connection:
        with pytest.raises(PermissionDenied, match="not you"):
            await connection.ship(chunk(b"secret", lease_id="forbidden"), 5)
        await connection.ship(chunk(b"fine"), 5)
    assert sink.got == {0: b"fine"}


@both
async def test_a_chunk_that_is_there_already_is_passed_over(kind: str) -> None:
    sink = Sink()
    async with connected(kind, sink) as connection:
        await connection.ship(chunk(os.urandom(MAX_PAYLOAD), lease_id="duplicate"), 5)
        await connection.ship(chunk(b"fine"), 5)
    assert sink.got == {0: b"fine"}


@both
async def test_a_flipped_bit_is_noticed_and_the_connection_lives_on(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    sink = Sink()
    async with connected(kind, sink) as connection:
        # The sender's sum of the second piece is of other bytes than those that arrive.
        module = shm if kind == "shm" else tcp
        right, num_calls = module.checksum, 0

        def wrong(*content: object) -> int:
            nonlocal num_calls
            num_calls += 1
            return right(*content) ^ (num_calls == 2)

        with monkeypatch.context() as patched:
            patched.setattr(module, "checksum", wrong)
            with pytest.raises(InvalidRequest, match="checksum"):
                await connection.ship(chunk(os.urandom(MAX_PAYLOAD)), 5)
        await connection.ship(chunk(b"fine"), 5)
    assert sink.got == {0: b"fine"}


async def test_a_payload_that_nobody_wants_any_more_is_not_waited_for() -> None:
    sink = Sink()
    async with receiving("tcp", sink) as receiver:
        host, _, port = receiver.address.rpartition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        header = transfer_pb2.ChunkHeader(num_blocks=1, payload_bytes=8)
        writer.write(frame(transfer_pb2.TransferHello(source_worker_id="p")) + frame(header))
        writer.write(RECORD.pack(8, 0) + b"half")
        async with asyncio.timeout(5):
            while not sink.num_rooms:
                await asyncio.sleep(0.01)
            sink.is_wanted = False
            while sink.num_rooms:
                await asyncio.sleep(0.01)
            # The rest, when it comes after all, is thrown away, and the connection lives on.
            sink.is_wanted = True
            writer.write(b"rest")
            assert await read_ack(reader) == PermissionDenied.code.value[0]
            writer.write(frame(header) + RECORD.pack(8, zlib.crc32(b"all of 8")) + b"all of 8")
            assert await read_ack(reader) == 0
        writer.close()
        await writer.wait_closed()
    assert sink.got == {0: b"all of 8"}


async def read_ack(reader: asyncio.StreamReader) -> int:
    (length,) = LENGTH.unpack(await reader.readexactly(LENGTH.size))
    return transfer_pb2.ChunkAck.FromString(await reader.readexactly(length)).code


@both
async def test_a_cancelled_shipper_does_not_tear_the_stream(kind: str) -> None:
    sink = Sink()
    sink.may_write.clear()
    async with connected(kind, sink) as connection:
        shipping = asyncio.create_task(connection.ship(chunk(b"first" * 1000), 5))
        await asyncio.sleep(0.05)
        shipping.cancel()
        await asyncio.gather(shipping, return_exceptions=True)
        sink.may_write.set()
        await connection.ship(chunk(b"second", 1), 5)
        assert sink.got == {0: b"first" * 1000, 1: b"second"}


@both
async def test_a_payload_that_cannot_be_made_fails_alone(kind: str) -> None:
    sink = Sink()

    @asynccontextmanager
    async def lend(*, shared: bool) -> AsyncIterator[Sequence[memoryview]]:
        raise Unavailable("no such blocks")
        yield ()

    async with connected(kind, sink) as connection:
        with pytest.raises(Unavailable, match="no such blocks"):
            await connection.ship(OutgoingChunk(header=chunk(b"12").header, lend=lend), 5)
        await connection.ship(chunk(b"fine"), 5)
    assert sink.got == {0: b"fine"}


@both
async def test_a_receiver_that_does_not_answer_breaks_the_connection(kind: str) -> None:
    sink = Sink()
    sink.may_write.clear()
    async with connected(kind, sink) as connection:
        with pytest.raises(TransportBroken):
            await connection.ship(chunk(b"slow"), 0.2)
        assert connection.closed
        with pytest.raises(TransportBroken):
            await connection.ship(chunk(b"late"), 0.2)


@both
async def test_a_receiver_that_ends_breaks_the_connection(kind: str) -> None:
    sink = Sink()
    sink.may_write.clear()
    async with receiving(kind, sink) as receiver:
        connection = await connect(receiver)
        shipping = asyncio.create_task(connection.ship(chunk(b"in flight"), 5))
        await asyncio.sleep(0.05)
    with pytest.raises(TransportBroken):
        await shipping
    await connection.close()


@both
async def test_a_defect_of_the_sink_ends_only_its_connection(kind: str) -> None:
    sink = Sink()
    async with receiving(kind, sink) as receiver:
        bad = await connect(receiver)
        with pytest.raises(TransportBroken):
            await bad.ship(chunk(b"x", lease_id="defect"), 5)
        good = await connect(receiver)
        await good.ship(chunk(b"fine"), 5)
        await bad.close()
        await good.close()
    assert sink.got == {0: b"fine"}


def card(*endpoints: cluster_pb2.KvEndpoint) -> cluster_pb2.WorkerCard:
    return cluster_pb2.WorkerCard(worker_id="d", epoch=1, kv_endpoints=endpoints)


def endpoint(receiver: Receiver, host_id: str = "") -> cluster_pb2.KvEndpoint:
    if receiver.kind == "tcp":
        return cluster_pb2.KvEndpoint(kind=cluster_pb2.TRANSPORT_KIND_TCP, address=receiver.address)
    return cluster_pb2.KvEndpoint(
        kind=cluster_pb2.TRANSPORT_KIND_SHM, address=receiver.address, host_id=host_id or shm.host_id()
    )


async def test_shared_memory_is_preferred_on_one_host_and_impossible_between_two() -> None:
    sink = Sink()
    async with receiving("shm", sink) as near, receiving("tcp", sink) as far:
        peers = PeerConnections(SOURCE, ("shm", "tcp"), MAX_PAYLOAD, POOL)
        here, elsewhere = card(endpoint(near), endpoint(far)), card(endpoint(near, "other"), endpoint(far))
        assert await peers.ship(here, chunk(b"a"), 5) == "shm"
        elsewhere.epoch = 2
        assert await peers.ship(elsewhere, chunk(b"a"), 5) == "tcp"
        await peers.close()


async def test_a_broken_transport_is_replaced_and_the_chunk_shipped_again() -> None:
    sink = Sink()
    async with receiving("tcp", sink) as far:
        async with receiving("shm", sink) as near:
            both_ways = card(endpoint(near), endpoint(far))
            peers = PeerConnections(SOURCE, ("shm", "tcp"), MAX_PAYLOAD, POOL)
            assert await peers.ship(both_ways, chunk(b"a"), 5) == "shm"
        assert await peers.ship(both_ways, chunk(b"b", 1), 5) == "tcp"
        assert sink.got == {0: b"a", 1: b"b"}
        await peers.close()


async def test_nobody_there_is_unavailable() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    gone = cluster_pb2.KvEndpoint(kind=cluster_pb2.TRANSPORT_KIND_TCP, address=f"127.0.0.1:{port}")
    nonsense = cluster_pb2.KvEndpoint(kind=cluster_pb2.TRANSPORT_KIND_TCP, address="nonsense")
    peers = PeerConnections(SOURCE, ("shm", "tcp"), MAX_PAYLOAD, POOL)
    for endpoints in ((), (gone,), (nonsense,)):
        with pytest.raises(Unavailable):
            await peers.ship(card(*endpoints), chunk(b"a"), 1)
    await peers.close()


async def test_connections_to_workers_that_vanished_are_closed() -> None:
    sink = Sink()
    now_s = 0.0
    async with receiving("tcp", sink) as receiver:
        peers = PeerConnections(SOURCE, ("tcp",), MAX_PAYLOAD, None, clock=lambda: now_s)
        there = card(endpoint(receiver))
        await peers.ship(there, chunk(b"a"), 5)
        await peers.drop_unused({("d", 1)})
        assert peers.num_connections == 1
        await peers.drop_unused(set())
        assert peers.num_connections == 0
        await peers.ship(there, chunk(b"a"), 5)
        now_s = 1000.0
        await peers.drop_unused({("d", 1)})
        assert peers.num_connections == 0


@both
async def test_closed_connections_leave_no_descriptor_or_thread(kind: str) -> None:
    def held() -> tuple[int, int]:
        threads = [thread for thread in threading.enumerate() if thread.name.startswith("kv-")]
        return len(os.listdir("/proc/self/fd")), len(threads)

    gc.collect()  # of the tests before this one
    before = held()
    async with receiving(kind, Sink()) as receiver:
        for _ in range(3):
            connection = await connect(receiver)
            await connection.ship(chunk(os.urandom(MAX_PAYLOAD)), 5)
            await connection.close()
            await connection.close()
            del connection
    async with asyncio.timeout(5):
        while held() != before:
            gc.collect()
            await asyncio.sleep(0.05)
