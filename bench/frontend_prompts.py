"""Prompts of an exact number of tokens, made of words that are one token each."""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path

from tokenizers import Tokenizer

_MIN_WORDS = 256


@dataclass(frozen=True, kw_only=True)
class PromptShape:
    """`num_prefixes` beginnings of `prefix_tokens` tokens that requests share; 0: every prompt is unique."""

    prompt_tokens: int
    prefix_tokens: int = 0
    num_prefixes: int = 0


class PromptMaker:
    """Makes the text of user messages; with the template around it a prompt has the shape's length."""

    def __init__(self, words: list[str], template_tokens: int, shape: PromptShape, seed: int) -> None:
        self._words = words
        self._random = random.Random(seed)
        self._num_words = shape.prompt_tokens - template_tokens
        # The same for every client, whatever its seed.
        common = random.Random(shape.prompt_tokens)
        num_shared = max(0, shape.prefix_tokens - template_tokens)
        self._prefixes = [common.choices(words, k=num_shared) for _ in range(shape.num_prefixes)]

    def make(self) -> str:
        """The next prompt."""
        prefix = self._random.choice(self._prefixes) if self._prefixes else []
        return " ".join(prefix + self._random.choices(self._words, k=self._num_words - len(prefix)))


def single_token_words(model: Path) -> tuple[list[str], int]:
    """Words that are one token each between spaces, and how many tokens the chat template adds around one message."""
    tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
    words = [
        token[1:]
        for token in sorted(tokenizer.get_vocab())
        if token.startswith("\u0120") and token[1:].isascii() and token[1:].isalpha() and token[1:].islower()
    ]
    words = [word for word in words if len(tokenizer.encode(f"a {word} a").ids) == 3]
    if len(words) < _MIN_WORDS:
        raise SystemExit("this model's tokenizer has too few words of one token; use a byte-level BPE model")
    # The first word has no space before it: take only those that are one token there too.
    plain = f"<|im_start|>user\n{words[0]}<|im_end|>\n<|im_start|>assistant\n"
    extra = len(tokenizer.encode(plain).ids) - 1
    return [word for word in words if len(tokenizer.encode(word).ids) == 1] or words, extra
