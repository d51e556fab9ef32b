"""Conversations to prompts, through the model's own Jinja template, in a sandbox.

The environment is set up as Hugging Face transformers sets it up, so that templates mean the same here. Templates come
from the model's directory only, never from a request.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NoReturn

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from tandem_common.config import ConfigError
from tandem_common.errors import InvalidRequest

ROLES = ("system", "user", "assistant")
# A prompt is at most this much longer than the messages it was made from, in characters.
MAX_ADDED_CHARACTERS = 1 << 20


@dataclass(frozen=True, slots=True)
class ChatTurn:
    """One message of a conversation; `role` is one of ROLES."""

    role: str
    content: str


class ChatTemplate:
    """A compiled template. `special_tokens` are the variables that it may use: bos_token, eos_token, ..."""

    def __init__(self, source: str, special_tokens: Mapping[str, str]) -> None:
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, jinja2.ext.loopcontrols]
        )
        environment.filters["tojson"] = _to_json
        environment.globals["raise_exception"] = _raise_exception
        environment.globals["strftime_now"] = _strftime_now
        self._special_tokens = dict(special_tokens)
        try:
            self._template = environment.from_string(source)
            # A chain of dictionaries, which is copied, slowly, for each rendering.
            self._template.globals = dict(self._template.globals)
        except jinja2.TemplateError as error:
            raise ConfigError(f"the model's chat template does not compile: {error}") from None

    def render(self, turns: Sequence[ChatTurn]) -> str:
        """The prompt that asks for the next answer; InvalidRequest when the template refuses the conversation."""
        messages = [{"role": turn.role, "content": turn.content} for turn in turns]
        limit = MAX_ADDED_CHARACTERS + 2 * sum(len(turn.content) for turn in turns)
        pieces: list[str] = []
        size = 0
        try:
            for piece in self._template.generate(
                messages=messages,
                tools=None,
                documents=None,
                add_generation_prompt=True,
                **self._special_tokens,
            ):
                size += len(piece)
                if size > limit:
                    raise InvalidRequest(
                        f"the chat template makes more than {limit} characters of these messages",
                        param="messages",
                    )
                pieces.append(piece)
        except _Refused as refusal:
            raise InvalidRequest(
                f"the model's chat template refuses these messages: {refusal.message}", param="messages"
            ) from None
        except (jinja2.TemplateError, ValueError, TypeError, KeyError, AttributeError, ArithmeticError):
            raise InvalidRequest(
                "the model's chat template cannot render these messages", param="messages"
            ) from None
        return "".join(pieces)


class _Refused(jinja2.TemplateError):
    """The template called raise_exception."""


def _raise_exception(message: str) -> NoReturn:
    raise _Refused(message)


def _strftime_now(pattern: str) -> str:
    return datetime.now().strftime(pattern)  # noqa: DTZ005 - templates expect local time


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    # Jinja's own filter escapes HTML, which a prompt is not.
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


class _Generation(jinja2.ext.Extension):
    """Lets `{% generation %}` blocks through; they only matter for training."""

    tags = {"generation"}  # noqa: RUF012 - Jinja declares it so

    def parse(self, parser: jinja2.parser.Parser) -> jinja2.nodes.Node | list[jinja2.nodes.Node]:
        """Replace the block by its body."""
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return jinja2.nodes.Scope(body, lineno=line)
