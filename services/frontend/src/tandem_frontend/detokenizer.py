"""Incremental decoding: token ids in, the text that they add out, exact for every split of a character.

Equal to decoding the whole sequence at once, however the tokens are split into calls; a character whose bytes
are not complete yet is held back. (For SentencePiece tokenizers the library turns a whole run of byte tokens into
replacement characters when one of them is wrong; here only the wrong bytes are replaced.)
"""

from __future__ import annotations

import codecs
from collections.abc import Sequence

from tandem_frontend.token_bytes import TokenBytes

_Utf8Decoder = codecs.getincrementaldecoder("utf-8")


class Detokenizer:
    """Decodes one sequence. `continues_text`: it goes on after a prompt, so no leading space is stripped."""

    __slots__ = ("_between_characters", "_decoder", "_size", "_strip", "_text", "_whole", "escaped")

    def __init__(self, table: TokenBytes, *, continues_text: bool = False) -> None:
        self._text = table.text
        self._size = len(table.text)
        self._whole = table.whole
        self.escaped = table.escaped
        self._decoder = _Utf8Decoder("replace")
        self._between_characters = True  # no byte is held back
        self._strip = table.strips_leading_space and not continues_text

    @property
    def is_plain(self) -> bool:
        """Whether the next token adds its own text whatever came before: `escaped`, unless that is None."""
        return self._between_characters and not self._strip

    def add(self, token_ids: Sequence[int]) -> str:
        """Text that became certain with these tokens; may be empty."""
        table, size = self._text, self._size
        if self._between_characters and len(token_ids) == 1 and token_ids[0] < size:
            text = self._whole[token_ids[0]]  # nearly always
        else:
            text = None
        if text is None:
            text = self._decoder.decode(b"".join([table[i] for i in token_ids if i < size]))
            self._between_characters = not self._decoder.getstate()[0]
        return self._without_leading_space(text) if self._strip and text else text

    def finish(self) -> str:
        """What was held back, with a replacement character for bytes that never became one."""
        text = self._decoder.decode(b"", True)
        return self._without_leading_space(text) if self._strip and text else text

    def _without_leading_space(self, text: str) -> str:
        self._strip = False
        return text.removeprefix(" ")
