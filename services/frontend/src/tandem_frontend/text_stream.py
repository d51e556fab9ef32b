"""From tokens to what a client sees: detokenizing and stop strings of one sequence, and where the result goes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from tandem.v1 import generation_pb2 as pb

from tandem_frontend.detokenizer import Detokenizer
from tandem_frontend.plain_stream import PlainStream, TextWriter, TokenTimes
from tandem_frontend.stops import StopMatcher


class Delta(NamedTuple):
    """A piece of an answer; the text may lag behind the tokens while a character or stop string is incomplete."""

    text: str
    token_ids: Sequence[int] = ()
    logprobs: Sequence[pb.TokenLogprobs] = ()  # one per token, when asked for


class DeltaSink(Protocol):
    """Where an answer goes. Called from the session's reader: it must neither block nor raise."""

    def on_delta(self, delta: Delta) -> None:
        """Take the next piece."""
        ...

    def text_writer(self) -> TextWriter | None:
        """A quicker way for pieces that are nothing but text, if there is one and it is open yet."""
        ...


class TextStream:
    """One sequence on its way to its sink. `accept` is the whole token path between session and sink."""

    __slots__ = ("_detokenizer", "_matcher", "_min_tokens", "_sink", "token_ids")

    def __init__(
        self, detokenizer: Detokenizer, stops: Sequence[str], sink: DeltaSink, *, min_tokens: int = 0
    ) -> None:
        """Stop strings that are complete within the first `min_tokens` tokens do not count."""
        self._detokenizer = detokenizer
        self._matcher = StopMatcher(stops) if stops else None
        self._sink = sink
        self._min_tokens = min_tokens
        self.token_ids: list[int] = []  # passed on so far

    @property
    def num_tokens(self) -> int:
        """How many were passed on."""
        return len(self.token_ids)

    @property
    def stop(self) -> str | None:
        """The stop string that ended the text, if one did."""
        return self._matcher.matched if self._matcher is not None else None

    def accept(self, token_ids: Sequence[int], logprobs: Sequence[pb.TokenLogprobs]) -> bool:
        """Pass on new tokens; False when a stop string ended the text (tokens after it are dropped)."""
        if self._matcher is None:
            self.token_ids += token_ids
            self._sink.on_delta(Delta(self._detokenizer.add(token_ids), token_ids, logprobs))
            return True
        matcher, pieces, used = self._matcher, [], 0
        for token_id in token_ids:
            used += 1
            self.token_ids.append(token_id)
            text = self._detokenizer.add((token_id,))
            pieces.append(matcher.add(text) if len(self.token_ids) > self._min_tokens else text)
            if matcher.matched is not None:
                break
        self._sink.on_delta(Delta("".join(pieces), token_ids[:used], logprobs[:used]))
        return matcher.matched is None

    def plain(self, times: TokenTimes) -> PlainStream | None:
        """The quick way for what comes next, if there is one now; `times` is told of its tokens."""
        if self._matcher is not None or not self._detokenizer.is_plain:
            return None
        write = self._sink.text_writer()
        return PlainStream(self._detokenizer, self.token_ids, times, write) if write is not None else None

    def finish(self) -> None:
        """The sequence has ended: release what was held back, unless a stop string cut it off."""
        if self.stop is not None:
            return
        text = self._detokenizer.finish()
        if self._matcher is not None:
            text = self._matcher.add(text) + self._matcher.finish()
        if text:
            self._sink.on_delta(Delta(text))
