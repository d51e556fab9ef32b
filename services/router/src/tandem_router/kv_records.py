"""What workers write about their blocks, parsed: entries of their streams, snapshots, and stream ids."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Self

from google.protobuf.message import DecodeError
from tandem.v1 import cluster_pb2 as pb
from tandem_common.hashing import HASH_BYTES, unpack_hashes
from tandem_common.keys import KV_ENTRY_FIELD


class MalformedRecord(Exception):
    """Not written by a worker of ours; to be skipped."""


class StreamId(NamedTuple):
    """Id of a Redis Stream entry; ids are ordered as tuples."""

    milliseconds: int
    sequence: int

    @classmethod
    def parse(cls, text: bytes | str) -> Self:
        """From Redis's own form, `ms-seq`; empty means the start. Raises MalformedRecord."""
        if not text:
            return cls(0, 0)
        try:
            milliseconds, _, sequence = (text.decode() if isinstance(text, bytes) else text).partition("-")
            return cls(int(milliseconds), int(sequence or 0))
        except ValueError:
            raise MalformedRecord("not a stream id") from None

    def __str__(self) -> str:
        return f"{self.milliseconds}-{self.sequence}"


START = StreamId(0, 0)


@dataclass(frozen=True, kw_only=True, slots=True)
class Events:
    """One entry: the cache was cleared if it says so, then blocks were removed, then stored."""

    epoch: int
    cleared: bool
    removed: Sequence[bytes]
    stored: Sequence[bytes]


@dataclass(frozen=True, kw_only=True, slots=True)
class Snapshot:
    """All blocks of a worker as of an entry of its stream."""

    epoch: int
    stream_id: StreamId
    stored: Sequence[bytes]


def parse_events(fields: Mapping[bytes, bytes]) -> Events:
    """An entry's one field of interest holds a KvEvents message. Raises MalformedRecord."""
    record = fields.get(KV_ENTRY_FIELD)
    if record is None:
        raise MalformedRecord("the field is missing")
    try:
        message = pb.KvEvents.FromString(record)
        removed, stored = unpack_hashes(message.removed), unpack_hashes(message.stored)
    except (DecodeError, ValueError):
        raise MalformedRecord("not a KvEvents message") from None
    return Events(epoch=message.epoch, cleared=message.cleared, removed=removed, stored=stored)


def parse_snapshot(record: bytes, max_blocks: int) -> Snapshot:
    """A KvSnapshot message with at most as many blocks as the worker has. Raises MalformedRecord."""
    try:
        message = pb.KvSnapshot.FromString(record)
        if len(message.stored) > max_blocks * HASH_BYTES:
            raise MalformedRecord("more blocks than the worker has")
        stored = unpack_hashes(message.stored)
    except (DecodeError, ValueError):
        raise MalformedRecord("not a KvSnapshot message") from None
    return Snapshot(epoch=message.epoch, stream_id=StreamId.parse(message.stream_id), stored=stored)
