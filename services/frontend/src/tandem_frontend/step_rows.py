"""The tokens of one or more session messages, by stream."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from tandem.v1 import decode_pb2 as pb
from tandem.v1 import generation_pb2


@dataclass(slots=True)
class Row:
    """New tokens of one stream, with their log-probabilities if asked for."""

    token_ids: list[int] = field(default_factory=list)
    logprobs: list[generation_pb2.TokenLogprobs] = field(default_factory=list)


class RowAndEvent(NamedTuple):
    """An event of a stream, and its tokens before that."""

    row: Row | None
    event: pb.StreamEvent


def rows_of(response: pb.SessionResponse) -> Iterator[tuple[int, list[int]]]:
    """Stream ids and tokens of one message, in its order."""
    token_ids: list[int] = response.token_ids[:]
    counts = response.token_counts
    if not counts:
        for stream_id, token_id in zip(response.stream_ids, token_ids, strict=False):
            yield stream_id, [token_id]
        return
    start = 0
    for stream_id, count in zip(response.stream_ids, counts, strict=False):
        yield stream_id, token_ids[start : start + count]
        start += count


class GatheredRows:
    """Several messages as one: each stream's tokens in one row."""

    def __init__(self) -> None:
        self._rows: dict[int, Row] = {}
        self.num_messages = 0

    def add(self, response: pb.SessionResponse) -> list[RowAndEvent]:
        """Keep its rows; its events, which are for now, with what was gathered for their streams."""
        self.num_messages += 1
        rows = self._rows
        if response.token_counts:
            for stream_id, token_ids in rows_of(response):
                rows.setdefault(stream_id, Row()).token_ids.extend(token_ids)
        else:
            for stream_id, token_id in zip(response.stream_ids[:], response.token_ids[:], strict=False):
                row = rows.get(stream_id)
                if row is None:
                    row = rows[stream_id] = Row()
                row.token_ids.append(token_id)
        for entry in response.logprobs:
            rows.setdefault(entry.stream_id, Row()).logprobs.extend(entry.tokens)
        return [RowAndEvent(rows.pop(event.stream_id, None), event) for event in response.events]

    def take(self) -> dict[int, Row]:
        """Everything else, by stream; nothing is left."""
        rows, self._rows, self.num_messages = self._rows, {}, 0
        return rows
