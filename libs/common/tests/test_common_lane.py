"""Lanes between two ends in one process, and what strangers can do to them."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tandem_common.lane import MAX_MESSAGE_BYTES, OFFER_KEY, Lane, LaneServer, connect_lane


class End:
    """One end of a lane and what it was told."""

    def __init__(self) -> None:
        self.messages: list[bytes] = []
        self.lost = asyncio.Event()
        self.room = asyncio.Event()
        self.lane = Lane(self.messages.append, self.lost.set, self.room.set)

    async def until(self, count: int) -> None:
        async with asyncio.timeout(10):
            while len(self.messages) < count:
                await asyncio.sleep(0.001)


@contextlib.asynccontextmanager
async def offering(*ends: End) -> AsyncIterator[tuple[LaneServer, list[Any]]]:
    server = LaneServer("127.0.0.1")
    try:
        yield server, [await server.offer(end.lane) for end in ends]
    finally:
        for end in ends:
            server.withdraw(end.lane)
        await server.close()


async def test_messages_go_both_ways_whole_and_in_order():
    here, there = End(), End()
    async with offering(there) as (_, [offer]):
        await connect_lane(here.lane, "127.0.0.1:1", offer)
        assert here.lane.is_open
        sent = [bytes([i % 251]) * (i * i * 7) for i in range(120)]
        for message in sent:
            here.lane.write(message)
            there.lane.write(message[::-1])
        await there.until(120)
        await here.until(120)
        assert there.messages == sent
        assert here.messages == [message[::-1] for message in sent]
        here.lane.close()


@given(messages=st.lists(st.binary(max_size=40), max_size=8), cuts=st.lists(st.integers(0, 400), max_size=20))
def test_messages_do_not_depend_on_how_their_bytes_are_split(messages: list[bytes], cuts: list[int]):
    data = b"".join(len(message).to_bytes(4, "little") + message for message in messages)

    async def read() -> list[bytes]:
        end, start = End(), 0
        for cut in [*sorted(cuts), len(data)]:
            end.lane.data_received(data[start:cut])
            start = max(start, min(cut, len(data)))
        return end.messages

    assert asyncio.run(read()) == messages


async def test_the_end_of_one_end_is_told_to_the_other_after_its_last_words():
    here, there = End(), End()
    async with offering(there) as (_, [offer]):
        await connect_lane(here.lane, "127.0.0.1:1", offer)
        there.lane.write(b"goodbye")
        there.lane.close()
        await here.lane.ended()
        assert here.messages == [b"goodbye"]
        assert here.lost.is_set()
        assert not here.lane.is_open
        assert not there.lost.is_set(), "who closes is not told"


async def test_a_peer_that_does_not_read_fills_the_lane_and_room_is_told():
    here, there = End(), End()
    async with offering(there) as (_, [offer]):
        await connect_lane(here.lane, "127.0.0.1:1", offer)
        assert there.lane._transport is not None
        there.lane._transport.pause_reading()
        while not here.lane.is_full:
            here.lane.write(bytes(100_000))
            await asyncio.sleep(0)
        there.lane._transport.resume_reading()
        async with asyncio.timeout(10):
            await here.room.wait()
        assert not here.lane.is_full
        here.lane.close()


@pytest.mark.parametrize(
    "metadata",
    [
        None,
        (),
        (("x-other", "1"),),
        ((OFFER_KEY, ""),),
        ((OFFER_KEY, "80"),),
        ((OFFER_KEY, "0/" + "ab" * 16),),
        ((OFFER_KEY, "99999/" + "ab" * 16),),
        ((OFFER_KEY, "1/" + "zz" * 16),),
        ((OFFER_KEY, "1/" + "ab" * 16),),
    ],
)
async def test_without_a_usable_offer_the_lane_stays_closed(metadata: Any):
    end = End()
    await connect_lane(end.lane, "127.0.0.1:1", metadata)
    assert not end.lane.is_open
    assert not end.lost.is_set()


async def test_a_token_is_good_for_one_connection_and_for_as_long_as_its_stream():
    first, second, late, ended = End(), End(), End(), End()
    async with offering(first, ended) as (server, [offer, withdrawn]):
        await connect_lane(second.lane, "127.0.0.1:1", offer)
        await connect_lane(late.lane, "127.0.0.1:1", offer)
        assert (second.lane.is_open, late.lane.is_open) == (True, False)
        server.withdraw(ended.lane)
        await connect_lane(late.lane, "127.0.0.1:1", withdrawn)
        assert not late.lane.is_open
        second.lane.write(b"still there")
        await first.until(1)
        second.lane.close()


async def test_a_server_that_was_closed_listens_again_when_it_has_a_lane_to_offer():
    first, second, here = End(), End(), End()
    server = LaneServer("127.0.0.1")
    await server.offer(first.lane)
    await server.close()
    await connect_lane(here.lane, "127.0.0.1:1", await server.offer(second.lane))
    assert here.lane.is_open
    here.lane.close()
    server.withdraw(second.lane)
    await server.close()


async def test_a_server_that_is_not_the_one_that_offered_is_not_talked_to():
    async def parrot(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write((await reader.readexactly(16))[::-1])
        writer.close()

    server = await asyncio.start_server(parrot, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    end = End()
    await connect_lane(end.lane, "127.0.0.1:1", ((OFFER_KEY, f"{port}/{'0123456789abcdef' * 2}"),))
    assert not end.lane.is_open
    server.close()


async def test_a_message_that_says_to_be_too_long_ends_the_lane():
    here, there = End(), End()
    async with offering(there) as (_, [offer]):
        await connect_lane(here.lane, "127.0.0.1:1", offer)
        assert here.lane._transport is not None
        here.lane._transport.write((MAX_MESSAGE_BYTES + 1).to_bytes(4, "little") + bytes(100))
        async with asyncio.timeout(10):
            await there.lost.wait()
            await here.lost.wait()
        assert there.messages == []


async def test_strangers_without_a_token_are_shown_out():
    there = End()
    async with offering(there) as (server, [offer]):
        port = int(offer[0][1].partition("/")[0])
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET / HTTP/1.1\r\n\r\n" + bytes(100))
        async with asyncio.timeout(10):
            with contextlib.suppress(ConnectionError):
                assert await reader.read() == b""
        assert server._num_strangers == 0
        writer.close()
