"""Text and conversations to token ids, with what the model's directory says about its tokens.

User text can never become a control token: where a message contains the text of a token that the tokenizer
treats as one piece (special or added), it is marked before the template is rendered, and encoded as ordinary text.
A raw prompt (`encode_text`) is the caller's own whole input to the model and is encoded as transformers would.
"""

from __future__ import annotations

import json
import re
from array import array
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tandem_common.config import ConfigError
from tandem_common.errors import InvalidRequest
from tandem_common.model_source import read_json
from tokenizers import Tokenizer

from tandem_frontend.chat_template import ChatTemplate, ChatTurn
from tandem_frontend.token_bytes import TokenBytes
from tandem_frontend.token_cache import TokenCache, control_of, cuts_between_words

_SPECIAL_NAMES = ("bos_token", "eos_token", "pad_token", "unk_token", "sep_token", "cls_token", "mask_token")
_PRIVATE_USE = range(0xF0000, 0xFFFFD)


class ModelTokenizer:
    """The tokenizer of one model. Thread-safe; encoding releases the GIL."""

    def __init__(self, path: Path) -> None:
        """Read it from a model's directory; ConfigError says what is missing there."""
        file = path / "tokenizer.json"
        if not file.is_file():
            raise ConfigError(
                "the model's directory has no tokenizer.json; save it with a fast tokenizer "
                "(transformers: tokenizer.save_pretrained)"
            )
        settings = (
            read_json(path / "tokenizer_config.json") if (path / "tokenizer_config.json").is_file() else {}
        )
        try:
            self._tokenizer = Tokenizer.from_file(str(file))
        except Exception as error:  # noqa: BLE001 - the library raises a bare Exception
            raise ConfigError(f"the model's tokenizer.json cannot be read: {error}") from None
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self.token_bytes = TokenBytes.of(self._tokenizer)
        self._spec = json.loads(self._tokenizer.to_str())
        added = sorted((token["content"] for token in self._spec["added_tokens"]), key=len, reverse=True)
        self._control = re.compile("|".join(map(re.escape, added))) if added else None
        # For pieces in the middle of a text: with and without the control tokens.
        self._middle = Tokenizer.from_str(json.dumps(_without_prefix_space(self._spec)))
        self._plain = Tokenizer.from_str(
            json.dumps(_without_prefix_space(self._spec) | {"added_tokens": [], "post_processor": None})
        )
        self._cache = (
            TokenCache(self._encode_all, control_of(self._spec))
            if cuts_between_words(self._tokenizer, self._spec)
            else None
        )
        special_tokens = {name: _content(settings.get(name)) for name in _SPECIAL_NAMES if settings.get(name)}
        self.end_token_ids = frozenset(self._end_token_ids(path, special_tokens))
        source = _template_source(path, settings)
        self._template = ChatTemplate(source, special_tokens) if source is not None else None

    @property
    def num_token_ids(self) -> int:
        """All ids that it makes are below this."""
        return len(self.token_bytes.text)

    def encode_text(self, text: str) -> array[int]:
        """Token ids of a raw prompt, with what the model wants around it (a begin token, say)."""
        return array("I", self._tokenizer.encode(text).ids)

    def encode_chat(self, turns: Sequence[ChatTurn]) -> array[int]:
        """Token ids of a conversation, ready for the next answer."""
        if self._template is None:
            raise InvalidRequest(
                "this model has no chat template; use /v1/completions (Generate over gRPC) with a prompt",
                param="messages",
            )
        if self._control is None or not any(self._control.search(turn.content) for turn in turns):
            rendered = self._template.render(turns)
            if self._cache is not None:
                return self._cache.encode(rendered)
            return array("I", self._encode_all([rendered])[0])
        return array("I", self._encode_marked(turns, self._control))

    def num_unknown(self, turns: Sequence[ChatTurn]) -> int:
        """About how many characters `encode_chat` would have to encode now: those that are not remembered."""
        if self._cache is None or self._template is None:
            return sum(len(turn.content) for turn in turns)
        return self._cache.num_unknown(self._template.render(turns))

    def _encode_all(self, texts: list[str]) -> list[list[int]]:
        # "fast": where each token came from in the text is not worked out.
        return [each.ids for each in self._tokenizer.encode_batch_fast(texts, add_special_tokens=False)]

    def _encode_marked(self, turns: Sequence[ChatTurn], control: re.Pattern[str]) -> list[int]:
        """Encode a conversation in which messages spell control tokens.

        Each is put between two characters that occur nowhere in the conversation; after rendering, what is
        between them is encoded by a tokenizer that has no control tokens. A lone mark (a template may cut
        messages apart) only splits the text.
        """
        assert self._template is not None
        opening, closing = _absent_characters(turns)
        marked = [
            ChatTurn(turn.role, control.sub(lambda match: opening + match[0] + closing, turn.content))
            for turn in turns
        ]
        ids: list[int] = []
        rendered = self._template.render(marked)
        parts = re.split(f"{opening}({control.pattern}){closing}|[{opening}{closing}]", rendered)
        for position, part in enumerate(parts):
            if not part:
                continue
            spelled_control_token = position % 2 == 1
            ordinary = self._middle if position else self._tokenizer
            tokenizer = self._plain if spelled_control_token else ordinary
            ids += tokenizer.encode(part, add_special_tokens=False).ids
        return ids

    def _end_token_ids(self, path: Path, special_tokens: Mapping[str, str]) -> Iterator[int]:
        """All tokens that the model's files call its end."""
        for name in ("generation_config.json", "config.json"):
            if not (path / name).is_file():
                continue
            value = read_json(path / name).get("eos_token_id")
            yield from (i for i in (value if isinstance(value, list) else [value]) if isinstance(i, int))
        if (token := special_tokens.get("eos_token")) is not None:
            token_id = self._tokenizer.token_to_id(token)
            if token_id is not None:
                yield token_id


def _template_source(path: Path, settings: Mapping[str, Any]) -> str | None:
    """The chat template: chat_template.jinja, or the one (or the default of several) in tokenizer_config.json."""
    file = path / "chat_template.jinja"
    if file.is_file():
        return file.read_text(encoding="utf-8")
    value = settings.get("chat_template")
    if isinstance(value, list):
        named = {entry.get("name"): entry.get("template") for entry in value if isinstance(entry, dict)}
        value = named.get("default")
    return value if isinstance(value, str) else None


def _content(token: Any) -> str:
    """Special tokens are written as text or as an object with the text in it."""
    return str(token["content"]) if isinstance(token, dict) else str(token)


def _absent_characters(turns: Sequence[ChatTurn]) -> tuple[str, str]:
    used = set().union(*(turn.content for turn in turns))
    absent = (chr(code) for code in _PRIVATE_USE if chr(code) not in used)
    return next(absent), next(absent)


def _without_prefix_space(part: Any) -> Any:
    """A tokenizer's description without the space that SentencePiece puts before the first word."""
    if isinstance(part, list):
        return [_without_prefix_space(item) for item in part if not _is_space_prefix(item)]
    if not isinstance(part, dict):
        return part
    changed = {
        name: _without_prefix_space(value) if name not in ("model", "added_tokens", "decoder") else value
        for name, value in part.items()
    }
    if part.get("type") == "Metaspace":
        changed["prepend_scheme"] = "never"
    if _is_space_prefix(changed.get("normalizer")):
        changed["normalizer"] = None
    return changed


def _is_space_prefix(part: Any) -> bool:
    return isinstance(part, dict) and part.get("type") == "Prepend"
