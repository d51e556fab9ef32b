"""One sequence to be continued, as every service sees it, with the one set of checks that all of them apply.

The frontend checks what clients sent (HTTP and gRPC alike), and the worker checks again what it received: both
by making these objects and calling `Generation.check_limits`.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from tandem_common.errors import InvalidRequest
from tandem_common.hashing import HASH_BYTES

MAX_LOGPROBS = 20
MAX_LOGIT_BIAS = 1024
MAX_STOP_TOKENS = 64
MAX_SEED = 2**64 - 1


def _check_range(name: str, value: float, low: float, high: float, *, above: bool = False) -> None:
    """Raise InvalidRequest unless low <= value <= high (low < value with `above`)."""
    # Comparisons hold for ints of any size, where conversions to float do not; NaN fails them all.
    if not (low < value if above else low <= value) or not value <= high:
        bounds = f"above {low:g} and at most {high:g}" if above else f"between {low:g} and {high:g}"
        shown = f"{value:g}" if abs(value) < MAX_SEED else "a number far outside"
        raise InvalidRequest(f"{name} must be {bounds}, got {shown}", param=name)


class RequestClass(enum.Enum):
    """What may displace what."""

    INTERACTIVE = 1
    BATCH = 2


class FinishReason(enum.Enum):
    """Why a sequence ended; values as in the contracts."""

    STOP = 1
    LENGTH = 2
    CANCELLED = 3


@dataclass(frozen=True, kw_only=True, slots=True)
class SamplingParams:
    """How the next token is drawn. Raises InvalidRequest, naming the field, when a value is out of range."""

    temperature: float = 1.0  # 0 is greedy
    top_k: int = 0  # 0 keeps all
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    seed: int = 0  # with the position, decides every draw
    logprobs: int | None = None  # alternatives reported with each token; None: no log-probabilities

    def __post_init__(self) -> None:
        """Check every range."""
        _check_range("temperature", self.temperature, 0.0, 2.0)
        _check_range("top_k", self.top_k, 0, 2**31 - 1)
        _check_range("top_p", self.top_p, 0.0, 1.0, above=True)
        _check_range("min_p", self.min_p, 0.0, 1.0)
        _check_range("repetition_penalty", self.repetition_penalty, 0.0, 10.0, above=True)
        _check_range("presence_penalty", self.presence_penalty, -2.0, 2.0)
        _check_range("frequency_penalty", self.frequency_penalty, -2.0, 2.0)
        _check_range("seed", self.seed, 0, MAX_SEED)
        if self.logprobs is not None:
            _check_range("logprobs", self.logprobs, 0, MAX_LOGPROBS)
        if len(self.logit_bias) > MAX_LOGIT_BIAS:
            raise InvalidRequest(
                f"logit_bias has {len(self.logit_bias)} entries; at most {MAX_LOGIT_BIAS} are allowed",
                param="logit_bias",
            )
        for bias in self.logit_bias.values():
            _check_range("logit_bias", bias, -100.0, 100.0)

    def with_seed(self, seed: int) -> SamplingParams:
        """The same with another seed; nothing else is checked again, which takes most of the time."""
        _check_range("seed", seed, 0, MAX_SEED)
        other = object.__new__(SamplingParams)
        for name in self.__slots__:
            object.__setattr__(other, name, getattr(self, name))
        object.__setattr__(other, "seed", seed)
        return other

    @property
    def greedy(self) -> bool:
        """Whether the likeliest token is always taken."""
        return self.temperature == 0.0


@dataclass(frozen=True, kw_only=True, slots=True)
class StoppingParams:
    """When a sequence ends; counts include tokens generated before a resumption."""

    max_tokens: int
    min_tokens: int = 0
    stop_token_ids: frozenset[int] = frozenset()

    def __post_init__(self) -> None:
        """Check every range."""
        _check_range("max_tokens", self.max_tokens, 1, 2**31 - 1)
        _check_range("min_tokens", self.min_tokens, 0, 2**31 - 1)
        if self.min_tokens > self.max_tokens:
            raise InvalidRequest(
                f"min_tokens ({self.min_tokens}) is above max_tokens ({self.max_tokens}); lower it",
                param="min_tokens",
            )
        if len(self.stop_token_ids) > MAX_STOP_TOKENS:
            raise InvalidRequest(
                f"{len(self.stop_token_ids)} stop token ids; at most {MAX_STOP_TOKENS} are allowed",
                param="stop_token_ids",
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class Generation:
    """One sequence to be continued, complete in itself: any worker can start or resume it.

    `token_ids` is the prompt followed by the tokens generated before a resumption; the first
    `num_prompt_tokens` of them are the prompt. `namespace` is the root of the block hashes (16 bytes).
    """

    request_id: str
    token_ids: Sequence[int]
    num_prompt_tokens: int
    namespace: bytes
    stopping: StoppingParams
    sampling: SamplingParams = SamplingParams()
    model: str = ""
    request_class: RequestClass = RequestClass.INTERACTIVE
    traceparent: str = ""

    def __post_init__(self) -> None:
        """Check what does not depend on the model."""
        if not self.request_id or len(self.request_id) > 128:
            raise InvalidRequest("request_id must have 1 to 128 characters", param="request_id")
        if len(self.namespace) != HASH_BYTES:
            raise InvalidRequest(f"namespace must have {HASH_BYTES} bytes", param="namespace")
        if not 1 <= self.num_prompt_tokens <= len(self.token_ids):
            raise InvalidRequest("the prompt is empty; send at least one token", param="prompt")

    @property
    def num_resumed_tokens(self) -> int:
        """Tokens generated before a resumption."""
        return len(self.token_ids) - self.num_prompt_tokens

    def check_limits(self, *, vocab_size: int, max_context_tokens: int, knows_prompt: bool = False) -> None:
        """Raise InvalidRequest for what the model cannot take: too long, or token ids outside its output.

        With `knows_prompt` the prompt's ids are the model's for sure: its own tokenizer made them.
        """
        # The last token drawn takes no place in the context, so that a prompt that fills it gets one answer.
        room = max(1, max_context_tokens - self.num_prompt_tokens)
        if self.num_prompt_tokens > max_context_tokens:
            raise InvalidRequest(
                f"the prompt has {self.num_prompt_tokens} tokens; this model's context holds "
                f"{max_context_tokens}. Shorten the prompt",
                param="prompt",
            )
        if self.stopping.max_tokens > room:
            raise InvalidRequest(
                f"the prompt has {self.num_prompt_tokens} tokens and max_tokens is {self.stopping.max_tokens}: "
                f"together more than this model's context of {max_context_tokens} tokens. "
                f"Lower max_tokens to {room} or shorten the prompt",
                param="max_tokens",
            )
        if self.num_resumed_tokens >= self.stopping.max_tokens:
            raise InvalidRequest("nothing is left to generate", param="max_tokens")
        for name, ids in (
            ("prompt", () if knows_prompt else self.token_ids),
            ("stop_token_ids", self.stopping.stop_token_ids),
            ("logit_bias", self.sampling.logit_bias),
        ):
            if ids and not (0 <= min(ids) and max(ids) < vocab_size):
                worst = min(ids) if min(ids) < 0 else max(ids)
                raise InvalidRequest(
                    f"{name} has token id {worst}; this model's are 0 to {vocab_size - 1}", param=name
                )
