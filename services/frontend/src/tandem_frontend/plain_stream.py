"""The plain case of the token path: text by itself, for a client that is shown nothing but text.

Nearly every token of nearly every stream is of this kind. All that is constant is then at hand, and a token is a
look-up of its text as JSON and a write. Whatever else comes (pieces of characters, special tokens, log-probabilities,
stop strings) takes the general way, `GenerationRun.accept`; both give the same bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import cast

from tandem_frontend.detokenizer import Detokenizer
from tandem_frontend.histogram import StepHistogram

# Takes text as it stands between the quotes of a JSON string.
TextWriter = Callable[[bytes], None]


class TokenTimes:
    """When one generation had its tokens; monotonic seconds."""

    __slots__ = ("first_at", "gaps", "last_at")

    def __init__(self, gaps: StepHistogram) -> None:
        """`gaps` is told what lies between two tokens."""
        self.gaps = gaps
        self.first_at: float | None = None
        self.last_at = 0.0

    def note(self, now: float) -> None:
        """One or more tokens came."""
        if self.first_at is None:
            self.first_at = now
        else:
            self.gaps.observe(now - self.last_at)
        self.last_at = now


class PlainStream:
    """The quick way for one stream, from its second token on; `take` may be mixed with the general way."""

    __slots__ = ("_detokenizer", "_escaped", "_is_plain", "_observe_gap", "_times", "_token_ids", "_write")

    def __init__(
        self, detokenizer: Detokenizer, token_ids: list[int], times: TokenTimes, write: TextWriter
    ) -> None:
        """The detokenizer is plain now; tokens that were written are added to `token_ids`."""
        self._detokenizer = detokenizer
        self._escaped = detokenizer.escaped
        self._token_ids = token_ids
        self._times = times
        self._observe_gap = times.gaps.observe
        self._write = write
        self._is_plain = True  # as far as we know, so is the detokenizer

    def take(self, token_id: int, now: float) -> bool:
        """Write a token; False when it must take the general way: then nothing has happened."""
        try:
            text = self._escaped[token_id]
        except IndexError:
            text = None
        if text is None or not self._is_plain:
            return self._take_odd((token_id,), now)
        # Called as self._write(...), Python would look for a method first.
        times, observe_gap, write = self._times, self._observe_gap, self._write
        self._token_ids.append(token_id)
        observe_gap(now - times.last_at)
        times.last_at = now
        write(text)
        return True

    def take_all(self, token_ids: Sequence[int], now: float) -> bool:
        """Write several as one piece; False as above."""
        pieces = self._pieces(token_ids)
        if pieces is None or not self._is_plain:
            return self._take_odd(token_ids, now)
        self._token_ids += token_ids
        self._times.note(now)
        self._write(b"".join(pieces))
        return True

    def _pieces(self, token_ids: Sequence[int]) -> list[bytes] | None:
        try:
            pieces = [self._escaped[token_id] for token_id in token_ids]
        except IndexError:
            return None
        return None if None in pieces else cast("list[bytes]", pieces)

    def _take_odd(self, token_ids: Sequence[int], now: float) -> bool:
        """What is not plain, or comes while a character may be incomplete."""
        self._is_plain = self._pieces(token_ids) is not None and self._detokenizer.is_plain
        return self._is_plain and self.take_all(token_ids, now)
