"""Text of a wanted number of words that is cheap to make and different from its first words on."""

from __future__ import annotations

import random
from hashlib import blake2b

# Common words: with the space before it each is one token in nearly every tokenizer.
_WORDS = """
the of and to in is you that it he was for on are as with his they at be this have from or one had by word but
not what all were we when your can said there use an each which she do how their if will up other about out
many then them these so some her would make like him into time has look two more write go see number no way
could people my than first water been call who its now find long down day did get come made may part over new
sound take only little work know place year live me back give most very after
""".split()  # noqa: SIM905 - a list would take a hundred lines
_NUM_WORDS = 1 << 16
_NUM_NAME_WORDS = 4  # of about a hundred each: a name in a hundred million


class Passages:
    """Passages by key: equal keys give equal text, other keys other text, from the first few words on.

    All of them are cut from one long text behind a few words that name the key, so that a prompt of 10,000 words
    costs a copy and not 10,000 draws: an open loop must not wait for its own prompts.
    """

    def __init__(self) -> None:
        words = random.Random(0).choices(_WORDS, k=_NUM_WORDS)
        self._text = " ".join(words)
        self._ends = []
        end = -1
        for word in words:
            end += len(word) + 1
            self._ends.append(end)

    def get(self, num_words: int, *key: object) -> str:
        """`num_words` words with a space between them."""
        if num_words <= 0:
            return ""
        digest = int.from_bytes(blake2b(repr(key).encode(), digest_size=16).digest(), "little")
        name = []
        for _ in range(min(num_words, _NUM_NAME_WORDS)):
            digest, digit = divmod(digest, len(_WORDS))
            name.append(_WORDS[digit])
        parts = [" ".join(name)]
        left = num_words - len(name)
        start = digest % _NUM_WORDS
        while left > 0:
            count = min(left, _NUM_WORDS - start)
            parts.append(self._text[self._start(start) : self._ends[start + count - 1]])
            left -= count
            start = 0
        return " ".join(parts)

    def _start(self, index: int) -> int:
        return self._ends[index - 1] + 1 if index else 0
