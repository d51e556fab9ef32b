"""What a client can ask for, whichever door it came through, checked in one place.

HTTP and gRPC both turn their messages into these objects; `preparation` turns them into Generations. So a value
that one door refuses is refused by the other, with the same words.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from tandem_common.errors import InvalidRequest
from tandem_common.generation import RequestClass, SamplingParams

from tandem_frontend.chat_template import ROLES, ChatTurn

MAX_STOP_STRINGS = 16
MAX_STOP_CHARACTERS = 256
MAX_MESSAGES = 4096
# Far above any context; what fits is checked against the model.
MAX_TOKENS = 2**31 - 1
MAX_TTFT_DEADLINE_MS = 24 * 3600 * 1000


@dataclass(frozen=True, slots=True)
class TextPrompt:
    """A raw prompt; special tokens in it count as such, and generated text goes on after it."""

    text: str

    def __post_init__(self) -> None:
        """Refuse nothing at all."""
        if not self.text:
            raise InvalidRequest("the prompt is empty; send at least one character", param="prompt")


@dataclass(frozen=True, slots=True)
class TokenPrompt:
    """A prompt as token ids."""

    token_ids: Sequence[int]

    def __post_init__(self) -> None:
        """Refuse nothing at all."""
        if not self.token_ids:
            raise InvalidRequest("the prompt is empty; send at least one token", param="prompt")


@dataclass(frozen=True, slots=True)
class Conversation:
    """Messages for the model's chat template."""

    turns: Sequence[ChatTurn]

    def __post_init__(self) -> None:
        """Check number and roles."""
        if not self.turns:
            raise InvalidRequest("messages is empty; send at least one message", param="messages")
        if len(self.turns) > MAX_MESSAGES:
            raise InvalidRequest(
                f"{len(self.turns)} messages; at most {MAX_MESSAGES} are allowed", param="messages"
            )
        for index, turn in enumerate(self.turns):
            if turn.role not in ROLES:
                raise InvalidRequest(
                    f"messages[{index}] has role {turn.role[:40]!r}; use one of {', '.join(ROLES)}",
                    param="messages",
                )


Prompt = TextPrompt | TokenPrompt | Conversation


@dataclass(frozen=True, kw_only=True, slots=True)
class GenerationOptions:
    """How to generate. `seeded` is false when the client left the seed to us."""

    sampling: SamplingParams = field(default_factory=SamplingParams)
    seeded: bool = False
    max_tokens: int | None = None  # None: `default_max_tokens`, or what fits
    default_max_tokens: int | None = None
    min_tokens: int = 0
    stop: tuple[str, ...] = ()
    stop_token_ids: frozenset[int] = frozenset()
    ignore_eos: bool = False
    request_class: RequestClass = RequestClass.INTERACTIVE
    ttft_deadline_ms: int = 0  # 0: the class's default

    def __post_init__(self) -> None:
        """Check what SamplingParams and StoppingParams do not."""
        if self.max_tokens is not None and not 1 <= self.max_tokens <= MAX_TOKENS:
            raise InvalidRequest(f"max_tokens must be between 1 and {MAX_TOKENS}", param="max_tokens")
        if not 0 <= self.min_tokens <= MAX_TOKENS:
            raise InvalidRequest(f"min_tokens must be between 0 and {MAX_TOKENS}", param="min_tokens")
        if len(self.stop) > MAX_STOP_STRINGS:
            raise InvalidRequest(
                f"{len(self.stop)} stop strings; at most {MAX_STOP_STRINGS} are allowed", param="stop"
            )
        for stop in self.stop:
            if not 1 <= len(stop) <= MAX_STOP_CHARACTERS:
                raise InvalidRequest(
                    f"a stop string has {len(stop)} characters; 1 to {MAX_STOP_CHARACTERS} are allowed",
                    param="stop",
                )
        if not 0 <= self.ttft_deadline_ms <= MAX_TTFT_DEADLINE_MS:
            raise InvalidRequest(
                f"ttft_deadline_ms must be between 0 and {MAX_TTFT_DEADLINE_MS}", param="ttft_deadline_ms"
            )
