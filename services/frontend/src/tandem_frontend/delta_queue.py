"""Deltas on their way to a gRPC stream, whose writes must be awaited: a bounded queue that merges what waits."""

from __future__ import annotations

import asyncio

from tandem_frontend.text_stream import Delta

# gRPC's own flow control buffers megabytes before this begins to fill.
MAX_WAITING_TOKENS = 4096


class SlowReader(Exception):
    """The client leaves too much unread."""


class DeltaQueue:
    """A DeltaSink to take from; what has piled up comes as one delta."""

    def __init__(self) -> None:
        self._waiting: list[Delta] = []
        self._num_tokens = 0
        self._closed = False
        self._wake = asyncio.Event()

    def on_delta(self, delta: Delta) -> None:
        """Queue it; past the bound nothing more is kept, and `take` raises."""
        self._num_tokens += len(delta.token_ids)
        if self._num_tokens <= MAX_WAITING_TOKENS:
            self._waiting.append(delta)
        self._wake.set()

    def text_writer(self) -> None:
        """There is none."""

    def close(self) -> None:
        """Nothing more comes; what waits can still be taken."""
        self._closed = True
        self._wake.set()

    async def take(self) -> Delta | None:
        """Everything that waits, as one delta; None when closed and empty. Raises SlowReader past the bound."""
        while not self._waiting:
            if self._closed:
                return None
            self._wake.clear()
            await self._wake.wait()
        if self._num_tokens > MAX_WAITING_TOKENS:
            raise SlowReader
        waiting, self._waiting, self._num_tokens = self._waiting, [], 0
        return _merged(waiting)


def _merged(deltas: list[Delta]) -> Delta:
    if len(deltas) == 1:
        return deltas[0]
    return Delta(
        "".join(delta.text for delta in deltas),
        [token_id for delta in deltas for token_id in delta.token_ids],
        [entry for delta in deltas for entry in delta.logprobs],
    )
