"""What each token id stands for, as bytes: the table that detokenizing is a look-up in.

Two families of tokenizers cover the models that Tandem serves. *Byte-level* ones (Llama 3, Qwen, Mistral's Tekken)
write each byte as one printable character. *SentencePiece* ones (Llama 2, older Mistral) write a space as "▁" and
bytes that are in no token as "<0xAB>". In both, the text of a sequence is the concatenation of its tokens' bytes
read as UTF-8, which is what makes incremental decoding exact.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import orjson
from tandem_common.config import ConfigError
from tokenizers import Tokenizer

_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_SPACE_MARK = "\u2581"
# Tokens whose bytes are compared with the library's own decoding when a table is made.
_NUM_CHECKED = 256


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenBytes:
    """The table of one tokenizer; ids beyond its end stand for nothing, as in the library's own decoding."""

    # What a token adds to the text; empty for special tokens.
    text: Sequence[bytes]
    # The same with special tokens spelled out, for log-probabilities.
    shown: Sequence[bytes]
    # Whether a sequence that starts a text loses one leading space.
    strips_leading_space: bool
    # `text` as text; None for a token that is not text by itself.
    whole: Sequence[str | None] = field(init=False, repr=False, compare=False)
    # `whole` as what stands between the quotes of a JSON string; None also for a token without text. The pieces of
    # several tokens one after the other are the piece of their text.
    escaped: Sequence[bytes | None] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Decode and escape each token once, so that the token path need not."""
        whole = [_whole(spelled) for spelled in self.text]
        object.__setattr__(self, "whole", whole)
        object.__setattr__(self, "escaped", [orjson.dumps(text)[1:-1] if text else None for text in whole])

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> TokenBytes:
        """Make the table; ConfigError when the tokenizer's decoder is of another family."""
        spec = json.loads(tokenizer.to_str())
        special = {token["id"] for token in spec["added_tokens"] if token["special"]}
        vocabulary: dict[str, int] = tokenizer.get_vocab(with_added_tokens=True)
        decoders = _flat(spec["decoder"])
        kinds = {decoder["type"] for decoder in decoders}
        if "ByteLevel" in kinds:
            spell, strips = _byte_level, False
        elif kinds & {"ByteFallback", "Metaspace"} or not kinds - {"Fuse", "Replace", "Strip"}:
            spell, strips = _sentence_piece, _strips_leading_space(decoders)
        else:
            raise ConfigError(
                f"this model's tokenizer decodes with {', '.join(sorted(kinds))}; byte-level and SentencePiece "
                "tokenizers are supported"
            )
        shown = [b""] * (max(vocabulary.values(), default=-1) + 1)
        for token, token_id in vocabulary.items():
            shown[token_id] = spell(token)
        table = cls(
            text=[b"" if token_id in special else spelled for token_id, spelled in enumerate(shown)],
            shown=shown,
            strips_leading_space=strips,
        )
        table._check(tokenizer)
        return table

    def shown_text(self, token_id: int) -> str:
        """One token for a reader, with a replacement character for bytes that are no text by themselves."""
        return self.shown_bytes(token_id).decode("utf-8", "replace")

    def shown_bytes(self, token_id: int) -> bytes:
        """One token's own bytes, special tokens spelled out."""
        return self.shown[token_id] if 0 <= token_id < len(self.shown) else b""

    def _check(self, tokenizer: Tokenizer) -> None:
        """Compare a sample with the library, so that a tokenizer that we misread is refused at start."""
        for token_id in range(0, len(self.text), max(1, len(self.text) // _NUM_CHECKED)):
            expected = tokenizer.decode([token_id], skip_special_tokens=True)
            text = self.text[token_id].decode("utf-8", "replace")
            if text != expected and not (self.strips_leading_space and text.removeprefix(" ") == expected):
                raise ConfigError(
                    f"this model's tokenizer decodes token {token_id} in a way that Tandem does not know; "
                    "byte-level and SentencePiece tokenizers are supported"
                )


def _whole(spelled: bytes) -> str | None:
    try:
        return spelled.decode()
    except UnicodeDecodeError:
        return None


def _flat(decoder: Mapping[str, Any] | None) -> list[Mapping[str, Any]]:
    if decoder is None:
        return []
    if decoder["type"] == "Sequence":
        return [part for inner in decoder["decoders"] for part in _flat(inner)]
    return [decoder]


def _strips_leading_space(decoders: Sequence[Mapping[str, Any]]) -> bool:
    return any(
        (decoder["type"] == "Strip" and decoder["content"] == " " and decoder["start"] == 1)
        or (decoder["type"] == "Metaspace" and decoder.get("prepend_scheme", "always") != "never")
        for decoder in decoders
    )


def _byte_level_alphabet() -> dict[str, int]:
    """GPT-2's mapping of characters to bytes: printable ones stand for themselves, the rest follow from 256 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    rest = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(rest)}


_ALPHABET = _byte_level_alphabet()


def _byte_level(token: str) -> bytes:
    try:
        return bytes([_ALPHABET[character] for character in token])
    except KeyError:  # an added token is written as it is
        return token.encode()


def _sentence_piece(token: str) -> bytes:
    if match := _BYTE_TOKEN.fullmatch(token):
        return bytes([int(match[1], 16)])
    return token.replace(_SPACE_MARK, " ").encode()
