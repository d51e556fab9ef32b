"""What a session still has to say, in columns. Pure: time is an argument, in seconds.

Everything that is added between two calls of `take` travels in one message, so a frontend that reads slowly gets fewer
and larger messages. What waits is bounded by the session: see `num_bytes` and `waiting_s`.
"""

from __future__ import annotations

from collections.abc import Sequence

from tandem.v1 import decode_pb2, generation_pb2
from tandem_engine.api import TokenLogprobs

# About what entries take in a message and in memory; only sums of them are compared with the bound.
_ROW_BYTES = 16
_TOKEN_BYTES = 8
_EVENT_BYTES = 64


class Outbox:
    """Tokens and events of all streams of one session, in order."""

    def __init__(self) -> None:
        self._clear()

    def _clear(self) -> None:
        self._since_s: float | None = None
        self._stream_ids: list[int] = []
        self._token_ids: list[int] = []
        self._counts: dict[int, int] = {}  # tokens of those rows that have not just one
        self._num_logprob_bytes = 0
        self._logprobs: dict[int, decode_pb2.StreamLogprobs] = {}
        self._events: list[decode_pb2.StreamEvent] = []

    def __bool__(self) -> bool:
        return bool(self._stream_ids or self._events)

    @property
    def num_bytes(self) -> int:
        """About how much waits."""
        return (
            _ROW_BYTES * len(self._stream_ids)
            + _TOKEN_BYTES * len(self._token_ids)
            + _EVENT_BYTES * len(self._events)
            + self._num_logprob_bytes
        )

    def waiting_s(self, now_s: float) -> float:
        """How long something waits, counted from when this was first asked; 0 when nothing does."""
        if not self:
            return 0.0
        if self._since_s is None:
            self._since_s = now_s
        return now_s - self._since_s

    def add_plain(self, stream_ids: Sequence[int], token_ids: Sequence[int]) -> None:
        """Rows of one new token each."""
        self._stream_ids += stream_ids
        self._token_ids += token_ids

    def add_tokens(
        self, stream_id: int, token_ids: Sequence[int], logprobs: Sequence[TokenLogprobs] | None
    ) -> None:
        """A row of new tokens; `logprobs` has one entry per token, or is None."""
        if len(token_ids) != 1:
            self._counts[len(self._stream_ids)] = len(token_ids)
        self._stream_ids.append(stream_id)
        self._token_ids.extend(token_ids)
        if logprobs is not None:
            column = self._logprobs.get(stream_id)
            if column is None:
                column = self._logprobs[stream_id] = decode_pb2.StreamLogprobs(stream_id=stream_id)
            for entry in logprobs:
                column.tokens.append(
                    generation_pb2.TokenLogprobs(
                        logprob=entry.logprob,
                        top_token_ids=entry.top_token_ids,
                        top_logprobs=entry.top_logprobs,
                    )
                )
                self._num_logprob_bytes += _ROW_BYTES + _TOKEN_BYTES * len(entry.top_token_ids)

    def add_event(self, event: decode_pb2.StreamEvent) -> None:
        """An event, applied after the tokens that were added before it."""
        self._events.append(event)

    def take(self) -> decode_pb2.SessionResponse:
        """Everything that waits, as one message."""
        counts: Sequence[int] = ()
        if self._counts:
            counts = [self._counts.get(row, 1) for row in range(len(self._stream_ids))]
        response = decode_pb2.SessionResponse(
            stream_ids=self._stream_ids,
            token_counts=counts,
            token_ids=self._token_ids,
            logprobs=self._logprobs.values(),
            events=self._events,
        )
        self._clear()
        return response
