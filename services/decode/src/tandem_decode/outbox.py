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
        self.num_bytes = 0
        self._since_s = 0.0
        self._clear()

    def _clear(self) -> None:
        self.num_bytes = 0
        self._stream_ids: list[int] = []
        self._token_counts: list[int] = []
        self._token_ids: list[int] = []
        self._logprobs: dict[int, decode_pb2.StreamLogprobs] = {}
        self._events: list[decode_pb2.StreamEvent] = []

    def __bool__(self) -> bool:
        return bool(self._stream_ids or self._events)

    def waiting_s(self, now_s: float) -> float:
        """Age of the oldest thing that waits; 0 when nothing does."""
        return now_s - self._since_s if self else 0.0

    def add_tokens(
        self,
        stream_id: int,
        token_ids: Sequence[int],
        logprobs: Sequence[TokenLogprobs] | None,
        now_s: float,
    ) -> None:
        """A row of new tokens; `logprobs` has one entry per token, or is None."""
        if not self:
            self._since_s = now_s
        self._stream_ids.append(stream_id)
        self._token_counts.append(len(token_ids))
        self._token_ids.extend(token_ids)
        self.num_bytes += _ROW_BYTES + _TOKEN_BYTES * len(token_ids)
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
                self.num_bytes += _ROW_BYTES + _TOKEN_BYTES * len(entry.top_token_ids)

    def add_event(self, event: decode_pb2.StreamEvent, now_s: float) -> None:
        """An event, applied after the tokens that were added before it."""
        if not self:
            self._since_s = now_s
        self._events.append(event)
        self.num_bytes += _EVENT_BYTES

    def take(self) -> decode_pb2.SessionResponse:
        """Everything that waits, as one message."""
        one_each = all(count == 1 for count in self._token_counts)
        response = decode_pb2.SessionResponse(
            stream_ids=self._stream_ids,
            token_counts=() if one_each else self._token_counts,
            token_ids=self._token_ids,
            logprobs=self._logprobs.values(),
            events=self._events,
        )
        self._clear()
        return response
