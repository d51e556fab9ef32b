import asyncio
import contextlib
import os
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from tandem.v1 import cluster_pb2, transfer_pb2
from tandem_common.errors import InvalidRequest, PermissionDenied, Unavailable
from tandem_worker.transports import (
    Connection,
    OutgoingChunk,
    PeerConnections,
    Receiver,
    Source,
    TransportBroken,
    shm,
    tcp,
)
from tandem_worker.transports.framing import frame

SLOT = 1 << 20
SOURCE = Source(worker_id="p", epoch=3)


class Sink:
    """Keeps what it gets, by first block; refuses on demand, and can be made to wait."""

    def __init__(self) -> None:
        self.got: dict[int, bytes] = {}
        self.sources: set[Source] = set()
        self.may_write = asyncio.Event()
        self.may_write.set()

    @property
    def max_payload_bytes(self) -> int:
        return SLOT

    def admit(self, source: Source, header: transfer_pb2.ChunkHeader) -> None:
        if header.lease_id == "forbidden":
            raise PermissionDenied("not you")

    async def write(
        self, source: Source, header: transfer_pb2.ChunkHeader, payload: memoryview, receive_ms: float
    ) -> None:
        await self.may_write.wait()
        if header.lease_id == "defect":
            raise ZeroDivisionError
        self.sources.add(source)
        self.got[header.first_block] = bytes(payload)


def chunk(payload: bytes, first_block: int = 0, lease_id: str = "") -> OutgoingChunk:
    async def fill(buffer: memoryview) -> None:
        buffer[:] = payload

    header = transfer_pb2.ChunkHeader(
        lease_id=lease_id, first_block=first_block, num_blocks=1, payload_bytes=len(payload)
    )
    return OutgoingChunk(header=header, fill=fill)


@asynccontextmanager
async def receiving(kind: str, sink: Sink) -> AsyncIterator[Receiver]:
    receiver = shm.listen(sink) if kind == "shm" else tcp.listen("127.0.0.1", 0, "127.0.0.1", sink)
    serving = asyncio.create_task(receiver.serve())
    try:
        yield receiver
    finally:
        serving.cancel()
        await asyncio.gather(serving, return_exceptions=True)


@asynccontextmanager
async def connected(kind: str, sink: Sink) -> AsyncIterator[Connection]:
    async with receiving(kind, sink) as receiver:
        connect = shm.connect if kind == "shm" else tcp.connect
        connection = await connect(receiver.address, SOURCE, SLOT, 2.0)
        try:
            yield connection
        finally:
            await connection.close()


both = pytest.mark.parametrize("kind", ["shm", "tcp"])


@both
@pytest.mark.parametrize("num_bytes", [0, 1, 4096, SLOT])
async def test_what_is_shipped_arrives(kind: str, num_bytes: int) -> None:
    sink, payload = Sink(), os.urandom(num_bytes)
    async with connected(kind, sink) as connection:
        await connection.ship(chunk(payload), 5)
        assert sink.got == {0: payload}
        assert sink.sources == {SOURCE}


@both
async def test_more_chunks_than_slots_share_a_connection(kind: str) -> None:
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


async def test_a_flipped_bit_in_shared_memory_is_noticed() -> None:
    sink = Sink()
    buffers: list[memoryview] = []

    async def fill(buffer: memoryview) -> None:
        buffer[:] = bytes(1000)
        buffers.append(buffer)

    async with connected("shm", sink) as connection:
        # Held up by a chunk before it, so that the payload can change after its checksum was made.
        sink.may_write.clear()
        before = asyncio.create_task(connection.ship(chunk(b"before", 5), 5))
        await asyncio.sleep(0.05)
        shipping = asyncio.create_task(
            connection.ship(OutgoingChunk(header=chunk(bytes(1000)).header, fill=fill), 5)
        )
        await asyncio.sleep(0.05)
        buffers[0][500] ^= 1
        sink.may_write.set()
        await before
        with pytest.raises(InvalidRequest, match="checksum"):
            await shipping
    assert sink.got == {5: b"before"}


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

    async def fill(buffer: memoryview) -> None:
        raise Unavailable("no such blocks")

    async with connected(kind, sink) as connection:
        with pytest.raises(Unavailable, match="no such blocks"):
            await connection.ship(OutgoingChunk(header=chunk(b"12").header, fill=fill), 5)
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
        connect = shm.connect if kind == "shm" else tcp.connect
        connection = await connect(receiver.address, SOURCE, SLOT, 2.0)
        shipping = asyncio.create_task(connection.ship(chunk(b"in flight"), 5))
        await asyncio.sleep(0.05)
    with pytest.raises(TransportBroken):
        await shipping
    await connection.close()


@both
async def test_a_defect_of_the_sink_ends_only_its_connection(kind: str) -> None:
    sink = Sink()
    async with receiving(kind, sink) as receiver:
        connect = shm.connect if kind == "shm" else tcp.connect
        bad = await connect(receiver.address, SOURCE, SLOT, 2.0)
        with pytest.raises(TransportBroken):
            await bad.ship(chunk(b"x", lease_id="defect"), 5)
        good = await connect(receiver.address, SOURCE, SLOT, 2.0)
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
        peers = PeerConnections(SOURCE, ("shm", "tcp"), SLOT)
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
            peers = PeerConnections(SOURCE, ("shm", "tcp"), SLOT)
            assert await peers.ship(both_ways, chunk(b"a"), 5) == "shm"
        assert await peers.ship(both_ways, chunk(b"b", 1), 5) == "tcp"
        assert sink.got == {0: b"a", 1: b"b"}
        await peers.close()


async def test_nobody_there_is_unavailable() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    gone = cluster_pb2.KvEndpoint(kind=cluster_pb2.TRANSPORT_KIND_TCP, address=f"127.0.0.1:{port}")
    nonsense = cluster_pb2.KvEndpoint(kind=cluster_pb2.TRANSPORT_KIND_TCP, address="nonsense")
    peers = PeerConnections(SOURCE, ("shm", "tcp"), SLOT)
    for endpoints in ((), (gone,), (nonsense,)):
        with pytest.raises(Unavailable):
            await peers.ship(card(*endpoints), chunk(b"a"), 1)
    await peers.close()


async def test_connections_to_workers_that_vanished_are_closed() -> None:
    sink = Sink()
    now_s = 0.0
    async with receiving("tcp", sink) as receiver:
        peers = PeerConnections(SOURCE, ("tcp",), SLOT, clock=lambda: now_s)
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


@pytest.mark.parametrize("what", ["unsealed", "small", "no descriptor", "pipe"])
async def test_a_segment_that_could_hurt_the_receiver_is_not_mapped(what: str) -> None:
    sink = Sink()
    async with receiving("shm", sink) as receiver:
        size = 100 if what == "small" else 3 * SLOT
        descriptors = [os.memfd_create("test")] if what != "pipe" else list(os.pipe())
        if what != "pipe":
            os.ftruncate(descriptors[0], size)
        hello = frame(transfer_pb2.TransferHello(source_worker_id="p", segment_bytes=size))
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
            sock.connect("\0" + receiver.address)
            sock.setblocking(False)
            socket.send_fds(sock, [hello], [] if what == "no descriptor" else descriptors[:1])
            for descriptor in descriptors:
                os.close(descriptor)
            async with asyncio.timeout(5):
                # The end, also when something was left unread.
                with contextlib.suppress(ConnectionResetError):
                    assert await asyncio.get_running_loop().sock_recv(sock, 1) == b""
        # Others are served.
        good = await shm.connect(receiver.address, SOURCE, SLOT, 2.0)
        await good.ship(chunk(b"fine"), 5)
        await good.close()


def test_nothing_of_shared_memory_has_a_name() -> None:
    assert not [name for name in os.listdir("/dev/shm") if "tandem" in name]
