"""A prefill worker that ships rubbish: refused in so many words, and the request is answered all the same."""

import asyncio
import os
import socket
import zlib
from collections.abc import Awaitable, Callable

import grpc
import pytest
from tandem.v1 import cluster_pb2, prefill_pb2, prefill_pb2_grpc, transfer_pb2
from tandem_worker.ticket import TicketOffice
from tandem_worker.transports.framing import frame, read_message
from tandem_worker.transports.payload import PIECE_BYTES
from tandem_worker.transports.tcp import RECORD
from worker_harness import (
    BLOCK_SIZE,
    FALSE_WORKER_ID,
    SECRET,
    RunningWorker,
    false_prefill_worker,
    generate,
    generation,
    running_worker,
)

BLOCK_BYTES = 8 * BLOCK_SIZE  # of the simulated engine
NUM_BLOCKS = 7
PROMPT_TOKENS = 100

Attack = Callable[["Peer", prefill_pb2.BlockDestination], Awaitable[None]]


class Peer:
    """A hand-written sender over TCP."""

    def __init__(self, address: str) -> None:
        host, _, port = address.rpartition(":")
        self._sock = socket.create_connection((host, int(port)))
        self._sock.setblocking(False)

    async def hello(self, worker_id: str = FALSE_WORKER_ID) -> None:
        await self.send(frame(transfer_pb2.TransferHello(source_worker_id=worker_id, source_epoch=1)))

    async def send(self, data: bytes) -> None:
        await asyncio.get_running_loop().sock_sendall(self._sock, data)

    async def ship(
        self, header: transfer_pb2.ChunkHeader, payload: bytes, checksum: int | None = None
    ) -> transfer_pb2.ChunkAck:
        await self.send(frame(header) + piece(payload, checksum))
        async with asyncio.timeout(5):
            return await read_message(self._sock, transfer_pb2.ChunkAck)

    def close(self) -> None:
        self._sock.close()


def piece(payload: bytes, checksum: int | None = None) -> bytes:
    """A payload of one piece, as it goes over the wire."""
    return RECORD.pack(len(payload), zlib.crc32(payload) if checksum is None else checksum) + payload


def header_of(wanted: prefill_pb2.BlockDestination, payload: bytes) -> transfer_pb2.ChunkHeader:
    return transfer_pb2.ChunkHeader(
        lease_id=wanted.lease_id,
        ticket=wanted.ticket,
        first_block=0,
        num_blocks=NUM_BLOCKS,
        dtype="uint64",
        shape=(1, 1, BLOCK_SIZE, 1, 1),
        num_layers=1,
        payload_bytes=len(payload),
    )


class Attacker(prefill_pb2_grpc.PrefillServiceServicer):
    """Gets a real ticket, and does with it what the test says; then fails."""

    def __init__(self, decode: RunningWorker, attack: Attack) -> None:
        self._decode = decode
        self._attack = attack
        self.error: Exception | None = None
        self.wanted: prefill_pb2.BlockDestination | None = None

    async def Prefill(self, request, context):  # type: ignore[no-untyped-def]  # noqa: N802
        self.wanted = request.blocks
        peer = Peer(await kv_address(self._decode))
        try:
            await self._attack(peer, request.blocks)
        except Exception as error:  # noqa: BLE001 - the test raises it
            self.error = error
        finally:
            peer.close()
        await context.abort(grpc.StatusCode.UNAVAILABLE, "done with it")


async def kv_address(worker: RunningWorker) -> str:
    endpoints = (await worker.state()).card.kv_endpoints
    return next(end.address for end in endpoints if end.kind == cluster_pb2.TRANSPORT_KIND_TCP)


async def attack_with(redis_url: str, attack: Attack) -> None:
    """Run a request through the attack: it must be answered with the right tokens, and nothing be left."""
    async with running_worker(redis_url, "decode") as decode:
        attacker = Attacker(decode, attack)
        async with false_prefill_worker(redis_url, attacker) as ref:
            log = await generate(decode, generation(PROMPT_TOKENS), ref)
        if attacker.error is not None:
            raise attacker.error
        assert attacker.wanted is not None
        await decode.assert_quiet()
        async with running_worker(redis_url, "both") as untouched:
            assert log.token_ids == (await generate(untouched, generation(PROMPT_TOKENS))).token_ids
        # What was let in by a ticket once is not let in again after the request's end.
        peer = Peer(await kv_address(decode))
        await peer.hello()
        payload = bytes(NUM_BLOCKS * BLOCK_BYTES)
        answer = await peer.ship(header_of(attacker.wanted, payload), payload)
        peer.close()
        assert answer.code == grpc.StatusCode.PERMISSION_DENIED.value[0]
        await decode.assert_quiet()


SPOILED_HEADERS = {
    "dtype": ("INVALID_ARGUMENT", lambda header: setattr(header, "dtype", "float32")),
    "shape": ("INVALID_ARGUMENT", lambda header: header.shape.append(1)),
    "layers": ("INVALID_ARGUMENT", lambda header: setattr(header, "num_layers", 9)),
    "first block": ("INVALID_ARGUMENT", lambda header: setattr(header, "first_block", 1)),
    "too many blocks": ("INVALID_ARGUMENT", lambda header: setattr(header, "num_blocks", NUM_BLOCKS + 1)),
    "too few blocks": ("INVALID_ARGUMENT", lambda header: setattr(header, "num_blocks", NUM_BLOCKS - 1)),
    "no blocks": ("INVALID_ARGUMENT", lambda header: setattr(header, "num_blocks", 0)),
    "overflow": ("INVALID_ARGUMENT", lambda header: setattr(header, "first_block", 2**32 - 1)),
    "lease": ("PERMISSION_DENIED", lambda header: setattr(header, "lease_id", "f" * 32)),
    "no ticket": ("PERMISSION_DENIED", lambda header: header.ClearField("ticket")),
    "rubbish for a ticket": ("PERMISSION_DENIED", lambda header: setattr(header, "ticket", os.urandom(90))),
    "a changed ticket": (
        "PERMISSION_DENIED",
        lambda header: setattr(header, "ticket", header.ticket[:-1] + bytes([header.ticket[-1] ^ 1])),
    ),
}


@pytest.mark.parametrize("name", SPOILED_HEADERS)
async def test_a_spoiled_header_is_refused(redis_url: str, name: str) -> None:
    code, spoil = SPOILED_HEADERS[name]

    async def attack(peer: Peer, wanted: prefill_pb2.BlockDestination) -> None:
        payload = bytes(NUM_BLOCKS * BLOCK_BYTES)
        header = header_of(wanted, payload)
        spoil(header)
        await peer.hello()
        answer = await peer.ship(header, payload)
        assert answer.code == grpc.StatusCode[code].value[0], answer
        # The connection is still good: the next chunk is understood.
        assert (await peer.ship(header, payload)).code == answer.code

    await attack_with(redis_url, attack)


async def test_a_wrong_checksum_is_refused(redis_url: str) -> None:
    async def attack(peer: Peer, wanted: prefill_pb2.BlockDestination) -> None:
        payload = bytes(NUM_BLOCKS * BLOCK_BYTES)
        await peer.hello()
        answer = await peer.ship(header_of(wanted, payload), payload, checksum=1)
        assert answer.code == grpc.StatusCode.INVALID_ARGUMENT.value[0]
        assert "checksum" in answer.message

    await attack_with(redis_url, attack)


@pytest.mark.parametrize("length", [0, NUM_BLOCKS * BLOCK_BYTES + 1, PIECE_BYTES + 1, 2**32 - 1])
async def test_a_piece_of_an_impossible_length_ends_the_connection(redis_url: str, length: int) -> None:
    async def attack(peer: Peer, wanted: prefill_pb2.BlockDestination) -> None:
        payload = bytes(NUM_BLOCKS * BLOCK_BYTES)
        await peer.hello()
        await peer.send(frame(header_of(wanted, payload)) + RECORD.pack(length, 0) + payload)

    await attack_with(redis_url, attack)


async def test_a_forged_ticket_is_refused(redis_url: str) -> None:
    async def attack(peer: Peer, wanted: prefill_pb2.BlockDestination) -> None:
        payload = bytes(NUM_BLOCKS * BLOCK_BYTES)
        signed = transfer_pb2.SignedTicket.FromString(wanted.ticket)
        header = header_of(wanted, payload)
        header.ticket = TicketOffice(b"another secret of somebody").sign(
            transfer_pb2.TicketClaims.FromString(signed.claims)
        )
        await peer.hello()
        assert (await peer.ship(header, payload)).code == grpc.StatusCode.PERMISSION_DENIED.value[0]

    await attack_with(redis_url, attack)


@pytest.mark.parametrize(
    "change",
    [
        {"destination_worker_id": "somebody"},
        {"destination_epoch": 1},
        {"source_worker_id": "somebody"},
        {"request_id": "req-of-another"},
        {"lease_id": "0" * 32},
    ],
)
async def test_a_ticket_for_something_else_is_refused(redis_url: str, change: dict[str, object]) -> None:
    async def attack(peer: Peer, wanted: prefill_pb2.BlockDestination) -> None:
        payload = bytes(NUM_BLOCKS * BLOCK_BYTES)
        claims = transfer_pb2.TicketClaims.FromString(
            transfer_pb2.SignedTicket.FromString(wanted.ticket).claims
        )
        for name, value in change.items():
            setattr(claims, name, value)
        header = header_of(wanted, payload)
        header.ticket = TicketOffice(SECRET.encode()).sign(claims)
        await peer.hello()
        assert (await peer.ship(header, payload)).code == grpc.StatusCode.PERMISSION_DENIED.value[0]

    await attack_with(redis_url, attack)


async def test_a_ticket_shown_by_another_worker_is_refused(redis_url: str) -> None:
    async def attack(peer: Peer, wanted: prefill_pb2.BlockDestination) -> None:
        payload = bytes(NUM_BLOCKS * BLOCK_BYTES)
        await peer.hello("thief")
        answer = await peer.ship(header_of(wanted, payload), payload)
        assert answer.code == grpc.StatusCode.PERMISSION_DENIED.value[0]

    await attack_with(redis_url, attack)


async def test_a_chunk_that_ends_early_is_forgotten(redis_url: str) -> None:
    async def attack(peer: Peer, wanted: prefill_pb2.BlockDestination) -> None:
        payload = bytes(NUM_BLOCKS * BLOCK_BYTES)
        await peer.hello()
        await peer.send(frame(header_of(wanted, payload)) + piece(payload)[:-10])

    await attack_with(redis_url, attack)


async def test_a_chunk_sent_twice_is_taken_once(redis_url: str) -> None:
    async def attack(peer: Peer, wanted: prefill_pb2.BlockDestination) -> None:
        payload = os.urandom(NUM_BLOCKS * BLOCK_BYTES)
        header = header_of(wanted, payload)
        await peer.hello()
        assert (await peer.ship(header, payload)).code == 0
        assert (await peer.ship(header, payload)).code == 0

    await attack_with(redis_url, attack)


@pytest.mark.parametrize(
    "rubbish",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        b"\xff\xff\xff\xff",
        b"\x04\x00\x00\x00\xff\xff\xff\xff",
        b"\x00",
        frame(transfer_pb2.TransferHello()) + b"\x05\x00\x00\x00hello",
        frame(transfer_pb2.TransferHello()) + frame(transfer_pb2.ChunkHeader(payload_bytes=2**63)),
    ],
)
async def test_a_connection_that_speaks_something_else_is_dropped(redis_url: str, rubbish: bytes) -> None:
    async def attack(peer: Peer, wanted: prefill_pb2.BlockDestination) -> None:
        await peer.send(rubbish)

    await attack_with(redis_url, attack)
