"""Token ids of pieces of text that came before: much of a prompt is a document or a conversation again.

A text is cut before words at places that depend on its beginning only, so that texts that begin alike have their
first pieces in common. The cuts are where a byte-level tokenizer's pre-tokenizer cuts anyway, so the pieces' tokens one
after another are the whole text's tokens: see `cuts_between_words`. What is not known as a piece is looked up word by
word, and only new words are encoded.

Tokens are remembered, and given, packed: putting them together is copying, whatever their number, and the collector
has nothing to visit.
"""

from __future__ import annotations

import re
from array import array
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from threading import Lock
from typing import Any, cast

from tokenizers import Tokenizer

# Characters per piece, at least: what a changed character costs anew, against look-ups.
PIECE_SIZE = 512
MAX_CHARACTERS = 8 << 20
# Longer ones, and what has no gaps, are hardly words.
MAX_WORD_SIZE = 32
MAX_WORDS = 50_000

# A space before a visible ASCII character: no Unicode normalization joins it to its neighbours.
_CUT = re.compile(r" (?=[!-~])")
_NO_CUT = re.compile(r" (?![!-~])")
_LINE = re.compile(r"\n(?=[A-Za-z])")
# Around a gap: what is before it, and after it.
_BEFORE = (
    "",
    "a",
    "Z's",
    "don't",
    "0",
    "12",
    ".",
    ',"',
    "#!",
    " ",
    "\t",
    "\n",
    " \n",
    ".\n\n",
    "é",
    "日",
    "🦊",
    "e\u0301",
)
_AFTER = (
    *(
        "b",
        "It's",
        "ll",
        "'s",
        "'S ",
        "3",
        "42.",
        ".",
        "!\n",
        "...",
        "(x",
        "<|",
        "-1",
        "_a",
        "~",
        "b c",
        "7 d",
    ),
    *("bß", "c語", "D🦊", ".é"),
)
_PROBES = tuple(f"{before}{gap}{after}" for before in _BEFORE for gap in (" ", "\n") for after in _AFTER)


class TokenCache:
    """Encodes texts piece by piece and remembers the pieces used last, and words. Thread-safe if `encode_all` is."""

    def __init__(
        self,
        encode_all: Callable[[list[str]], list[list[int]]],
        control: re.Pattern[str] | None = None,
        max_characters: int = MAX_CHARACTERS,
        max_words: int = MAX_WORDS,
    ) -> None:
        """`control`, a group, finds tokens that are cut out of a text before anything else: a template's, say."""
        self._encode_all = encode_all
        self._control = control
        # With the space before them. Emptied when full: those in use are soon known again.
        self._words: dict[str, bytes] = {}
        self._max_words = max_words
        self._max_characters = max_characters
        self._num_characters = 0
        self._pieces: OrderedDict[str, bytes] = OrderedDict()
        self._lock = Lock()

    def encode(self, text: str) -> array[int]:
        """Token ids of the whole text."""
        token_ids = array("I")
        for piece in pieces_of(text):
            token_ids.frombytes(self._ids(piece) if len(piece) >= PIECE_SIZE else self._encode(piece))
        return token_ids

    def num_unknown(self, text: str) -> int:
        """Characters of it that `encode` would have to encode now."""
        with self._lock:
            return sum(len(piece) for piece in pieces_of(text) if piece not in self._pieces)

    def check_integrity(self) -> None:
        """Assert that the size is the sum of the pieces and within its bound."""
        assert self._num_characters == sum(map(len, self._pieces))
        assert self._num_characters <= self._max_characters
        assert len(self._words) <= self._max_words
        assert all(len(word) <= MAX_WORD_SIZE for word in self._words)

    def _encode(self, text: str) -> bytes:
        """Token ids of a text that is not remembered as a whole."""
        known, words = self._words, self._words_of(text)
        rows = list(map(known.get, words))
        if None in rows:
            new = list(dict.fromkeys(word for word, row in zip(words, rows, strict=True) if row is None))
            encoded = {
                word: array("I", ids).tobytes() for word, ids in zip(new, self._encode_all(new), strict=True)
            }
            rows = [encoded[word] if row is None else row for word, row in zip(words, rows, strict=True)]
            self._remember(encoded)
        return b"".join(cast("list[bytes]", rows))

    def _words_of(self, text: str) -> list[str]:
        if self._control is None:
            return words_of(text)
        # Every other part is a control token.
        return [word for part in self._control.split(text) if part for word in words_of(part)]

    def _remember(self, encoded: Mapping[str, bytes]) -> None:
        short = {word: row for word, row in encoded.items() if len(word) <= MAX_WORD_SIZE}
        with self._lock:
            if len(self._words) + len(short) > self._max_words:
                self._words = {}
            if len(short) <= self._max_words:
                self._words.update(short)

    def _ids(self, piece: str) -> bytes:
        with self._lock:
            if (known := self._pieces.get(piece)) is not None:
                self._pieces.move_to_end(piece)
                return known
        # Without the lock: two threads may do the same work, none waits for another's.
        token_ids = self._encode(piece)
        with self._lock:
            if piece not in self._pieces:
                self._pieces[piece] = token_ids
                self._num_characters += len(piece)
                while self._num_characters > self._max_characters:
                    oldest, _ = self._pieces.popitem(last=False)
                    self._num_characters -= len(oldest)
        return token_ids


def pieces_of(text: str) -> Iterator[str]:
    """The text cut at the first gap at or after every PIECE_SIZE characters; a gap begins a piece."""
    start = 0
    while cut := _CUT.search(text, start + PIECE_SIZE):
        yield text[start : cut.start()]
        start = cut.start()
    if start < len(text):
        yield text[start:]


def words_of(text: str) -> list[str]:
    """The text cut at all gaps, and where a line begins with a letter; a gap begins a word."""
    if "\n" not in text:
        return _spaced(text)
    *lines, last = _LINE.split(text)
    return [word for line in (*(line + "\n" for line in lines), last) for word in _spaced(line)]


def _spaced(text: str) -> list[str]:
    if "\0" not in text and _NO_CUT.search(text) is None:
        return text.replace(" ", "\0 ").split("\0")  # nearly always, and in half the time
    first, *rest = _CUT.split(text)
    return [first, *[" " + word for word in rest]]


def control_of(spec: Mapping[str, Any]) -> re.Pattern[str] | None:
    """A group that finds what this tokenizer cuts out of a text first, its added tokens; None if that takes more.

    As the tokenizer does, it takes the leftmost token and there the longest.
    """
    tokens = spec["added_tokens"]
    if not tokens or any(token["normalized"] for token in tokens):
        return None
    contents = sorted((token["content"] for token in tokens), key=len, reverse=True)
    return re.compile(f"({'|'.join(map(re.escape, contents))})")


def cuts_between_words(tokenizer: Tokenizer, spec: Mapping[str, Any]) -> bool:
    """Whether this tokenizer (`spec`: its JSON) always cuts before words: at the gaps that are cut here.

    It does when it matches one expression without looking back, as the byte-level tokenizers of Llama 3, Qwen and
    Mistral do, and the expression cuts there whatever the surroundings, which is tried; and when no added token
    reaches over a gap. Others are encoded whole.
    """
    if (spec["normalizer"] or {"type": "NFC"})["type"] != "NFC":
        return False
    steps = spec["pre_tokenizer"] or {"type": ""}
    steps = steps["pretokenizers"] if steps["type"] == "Sequence" else [steps]
    splits = [step for step in steps if step["type"] != "ByteLevel"]
    if len(steps) != 2 or len(splits) != 1 or splits[0]["type"] != "Split":
        return False
    expression = splits[0]["pattern"].get("Regex", "(?<")
    if "(?<" in expression or splits[0]["behavior"] != "Isolated" or splits[0]["invert"]:
        return False
    if any(step.get("add_prefix_space") or step.get("use_regex") for step in steps):
        return False
    for token in spec["added_tokens"]:
        if re.search("[ \n]", token["content"]) or token["lstrip"] or token["rstrip"] or token["single_word"]:
            return False
    return all(_cuts(tokenizer, probe) for probe in _PROBES)


def _cuts(tokenizer: Tokenizer, probe: str) -> bool:
    pieces = tokenizer.pre_tokenizer.pre_tokenize_str(probe)
    starts = {start for _, (start, _) in pieces}
    gaps = {gap.start() for gap in _CUT.finditer(probe)} | {line.end() for line in _LINE.finditer(probe)}
    return gaps <= starts
