"""A conversation with a model, which fits its context however long it gets."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Sequence

from tandem_client import AnswerStream, ChatMessage, Client, GenerationOptions, Model

# Room for an answer when no limit is asked for.
_DEFAULT_ANSWER_TOKENS = 256


class ChatSession:
    """The turns so far, and how to ask for the next. `num_forgotten` messages no longer fit."""

    def __init__(self, client: Client, model: Model, system: str, options: GenerationOptions) -> None:
        self._client = client
        self._model = model
        self._system = [ChatMessage("system", system)] if system else []
        self._options = options
        self._turns: list[ChatMessage] = []
        self.num_forgotten = 0

    def ask(self, text: str) -> AnswerStream:
        """Start the answer to one turn of the user; forgets the oldest turns if the context is full."""
        room = self._options.get("max_tokens", _DEFAULT_ANSWER_TOKENS)
        turns = [*self._turns, ChatMessage("user", text)]
        fitting = newest_that_fit(turns, self._num_tokens, self._model.max_context_tokens - room)
        self.num_forgotten += len(turns) - len(fitting)
        self._turns = list(fitting)
        return self._client.stream_chat([*self._system, *self._turns], model=self._model.id, **self._options)

    def answered(self, text: str) -> None:
        """Remember the answer, whole or as far as it came; without one the question is forgotten too."""
        if text:
            self._turns.append(ChatMessage("assistant", text))
        else:
            self._turns.pop()

    def _num_tokens(self, turns: Sequence[ChatMessage]) -> int:
        return len(self._client.tokenize([*self._system, *turns], model=self._model.id))


def newest_that_fit(
    turns: Sequence[ChatMessage], num_tokens: Callable[[Sequence[ChatMessage]], int], limit: int
) -> Sequence[ChatMessage]:
    """The newest turns with at most `limit` tokens, beginning with the user's; the last one at least."""
    while len(turns) > 2 and num_tokens(turns) > limit:
        turns = turns[2:]  # a question and its answer
    return turns


def printable(text: str) -> str:
    """The text without control characters, with which a model could take over the terminal."""
    return "".join(
        character for character in text if character in "\n\t" or unicodedata.category(character) != "Cc"
    )
