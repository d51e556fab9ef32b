"""The tokens of one or more session messages, by stream."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from tandem.v1 import decode_pb2 as pb
from tandem.v1 import generation_pb2


@dataclass(slots=True)
class Row:
    """New tokens of one stream, with their log-probabilities if asked for."""

    token_ids: list[int] = field(default_factory=list)
    logprobs: list[generation_pb2.TokenLogprobs] = field(default_factory=list)


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


def merged(responses: Iterable[pb.SessionResponse]) -> Iterator[tuple[dict[int, Row], pb.StreamEvent | None]]:
    """Several messages as few: all tokens before an event of their stream come before it, everything else together.

    Each pair is tokens by stream, and the event that follows them.
    """
    rows: dict[int, Row] = {}
    for response in responses:
        for stream_id, token_ids in rows_of(response):
            rows.setdefault(stream_id, Row()).token_ids.extend(token_ids)
        for entry in response.logprobs:
            rows.setdefault(entry.stream_id, Row()).logprobs.extend(entry.tokens)
        for event in response.events:
            row = rows.pop(event.stream_id, None)
            yield ({event.stream_id: row} if row is not None else {}), event
    yield rows, None
