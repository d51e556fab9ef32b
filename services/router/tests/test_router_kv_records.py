from __future__ import annotations

import pytest
from tandem.v1 import cluster_pb2 as pb
from tandem_common.keys import KV_ENTRY_FIELD
from tandem_router.kv_records import (
    START,
    MalformedRecord,
    StreamId,
    parse_events,
    parse_snapshot,
)

A, B = b"a" * 16, b"b" * 16


def test_stream_ids_are_ordered_by_time_and_then_by_sequence() -> None:
    ids = [StreamId.parse(text) for text in (b"", b"5", b"5-1", "5-10", b"10-0")]
    assert ids == sorted(ids)
    assert ids[0] == START
    assert str(ids[3]) == "5-10"


@pytest.mark.parametrize("text", ["x", "1-x", b"\xff\xfe", "1-2-3"])
def test_what_is_no_stream_id_is_malformed(text: str | bytes) -> None:
    with pytest.raises(MalformedRecord):
        StreamId.parse(text)


def test_an_entry_is_read() -> None:
    message = pb.KvEvents(epoch=7, removed=A, stored=B + A, cleared=True)
    events = parse_events({KV_ENTRY_FIELD: message.SerializeToString()})
    assert (events.epoch, events.cleared) == (7, True)
    assert (list(events.removed), list(events.stored)) == ([A], [B, A])


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {b"other": b""},
        {KV_ENTRY_FIELD: b"\xff\xff\xff"},
        {KV_ENTRY_FIELD: pb.KvEvents(stored=b"short").SerializeToString()},
    ],
)
def test_an_entry_that_we_did_not_write_is_malformed(fields: dict[bytes, bytes]) -> None:
    with pytest.raises(MalformedRecord):
        parse_events(fields)


def test_a_snapshot_is_read() -> None:
    snapshot = parse_snapshot(pb.KvSnapshot(epoch=2, stream_id="9-1", stored=A + B).SerializeToString(), 2)
    assert (snapshot.epoch, snapshot.stream_id, list(snapshot.stored)) == (2, StreamId(9, 1), [A, B])


@pytest.mark.parametrize(
    "record",
    [
        b"\xff",
        pb.KvSnapshot(stored=b"short").SerializeToString(),
        pb.KvSnapshot(stored=A * 3).SerializeToString(),
        pb.KvSnapshot(stream_id="when?").SerializeToString(),
    ],
)
def test_a_snapshot_that_the_worker_cannot_have_written_is_malformed(record: bytes) -> None:
    with pytest.raises(MalformedRecord):
        parse_snapshot(record, 2)
