"""From tokens to what a client sees: detokenizing and stop strings of one sequence, and where the result goes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from tandem.v1 import generation_pb2 as pb

from tandem_frontend.detokenizer import Detokenizer
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


class TextStream:
    """One sequence on its way to its sink. `accept` is the whole token path between session and sink."""

    __slots__ = ("_detokenizer", "_matcher", "_min_tokens", "_sink", "num_tokens")

    def __init__(
        self, detokenizer: Detokenizer, stops: Sequence[str], sink: DeltaSink, *, min_tokens: int = 0
    ) -> None:
        """Stop strings that are complete within the first `min_tokens` tokens do not count."""
        self._detokenizer = detokenizer
        self._matcher = StopMatcher(stops) if stops else None
        self._sink = sink
        self._min_tokens = min_tokens
        self.num_tokens = 0

    @property
    def stop(self) -> str | None:
        """The stop string that ended the text, if one did."""
        return self._matcher.matched if self._matcher is not None else None

    def accept(self, token_ids: Sequence[int], logprobs: Sequence[pb.TokenLogprobs]) -> bool:
        """Pass on new tokens; False when a stop string ended the text (tokens after it are dropped)."""
        if self._matcher is None:
            self.num_tokens += len(token_ids)
            self._sink.on_delta(Delta(self._detokenizer.add(token_ids), token_ids, logprobs))
            return True
        matcher, pieces, used = self._matcher, [], 0
        for token_id in token_ids:
            used += 1
            self.num_tokens += 1
            text = self._detokenizer.add((token_id,))
            pieces.append(matcher.add(text) if self.num_tokens > self._min_tokens else text)
            if matcher.matched is not None:
                break
        self._sink.on_delta(Delta("".join(pieces), token_ids[:used], logprobs[:used]))
        return matcher.matched is None

    def finish(self) -> None:
        """The sequence has ended: release what was held back, unless a stop string cut it off."""
        if self.stop is not None:
            return
        text = self._detokenizer.finish()
        if self._matcher is not None:
            text = self._matcher.add(text) + self._matcher.finish()
        if text:
            self._sink.on_delta(Delta(text))
