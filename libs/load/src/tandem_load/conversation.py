"""What is asked: prompts with shared beginnings, and conversations of several turns."""

from __future__ import annotations

import random

import msgspec

from tandem_load.dialect import Dialect
from tandem_load.lengths import Lengths
from tandem_load.passages import Passages
from tandem_load.traffic import TrafficRequest


class PromptShape(msgspec.Struct, frozen=True, kw_only=True):
    """Lengths in tokens. The shared prefix stands in front of the input; each turn adds an input."""

    input_tokens: Lengths
    output_tokens: Lengths
    shared_prefix_tokens: int = 0
    num_prefixes: int = 1
    num_turns: int = 1
    think_s: float = 0.0  # between an answer and the next turn


class Ask(msgspec.Struct, frozen=True, kw_only=True):
    """One request, ready to be sent."""

    body: bytes
    keeps_text: bool  # the answer's text is needed for the next turn


class Conversation:
    """Turns of one user, in order: `next_ask`, then `answered`, while `has_next`."""

    def __init__(self, dialect: Dialect, turns: list[tuple[str, int]], think_s: float = 0.0) -> None:
        """`turns`: texts of the user and lengths of the answers."""
        self.think_s = think_s
        self._dialect = dialect
        self._coming = list(reversed(turns))
        self._said: list[str] = []

    @property
    def has_next(self) -> bool:
        """Whether the user has something left to say."""
        return bool(self._coming)

    def next_ask(self) -> Ask:
        """The next turn, with all before it."""
        text, max_tokens = self._coming.pop()
        self._said.append(text)
        return Ask(body=self._dialect.body(self._said, max_tokens), keeps_text=self.has_next)

    def answered(self, text: str) -> None:
        """What the model said belongs to the next turn's prompt."""
        self._said.append(text)


class Asker:
    """Makes conversations. The same seed makes the same ones, and another seed none that share a block with them."""

    def __init__(self, dialect: Dialect, seed: int) -> None:
        self._dialect = dialect
        self._seed = seed
        self._random = random.Random(f"{seed} lengths")
        self._passages = Passages()
        self._num_made = 0

    def conversation(self, shape: PromptShape) -> Conversation:
        """A new conversation of a shape."""
        dialect, number = self._dialect, self._num_made
        self._num_made += 1
        turns = []
        for turn in range(shape.num_turns):
            num_words = dialect.num_words(shape.input_tokens.draw(self._random), is_whole_prompt=turn == 0)
            text = self._passages.get(num_words, self._seed, "input", number, turn)
            if turn == 0 and shape.shared_prefix_tokens:
                num_words = dialect.num_words(shape.shared_prefix_tokens, is_whole_prompt=False)
                which = self._random.randrange(shape.num_prefixes)
                text = f"{self._passages.get(num_words, self._seed, 'prefix', which)} {text}"
            turns.append((text, shape.output_tokens.draw(self._random)))
        return Conversation(dialect, turns, shape.think_s)

    def replayed(self, request: TrafficRequest) -> Conversation:
        """A request of a trace: equal segments are equal text, the rest is nobody else's."""
        dialect = self._dialect
        left = dialect.num_words(request.num_prompt_tokens)
        segment_words = dialect.num_words(request.segment_tokens, is_whole_prompt=False)
        parts = []
        for segment in request.segments:
            if left <= 0:
                break
            parts.append(self._passages.get(min(segment_words, left), self._seed, "segment", segment))
            left -= segment_words
        if left > 0:
            parts.append(self._passages.get(left, self._seed, "own", request.index))
        return Conversation(dialect, [(" ".join(parts), request.num_output_tokens)])
