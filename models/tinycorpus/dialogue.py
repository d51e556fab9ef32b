"""Puts turns together into documents: chats with or without a system message, and plain stories."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass

from . import stories, talk
from .mixture import plain_facts, some_turns
from .system import with_style
from .turns import Turn

_WRAPPERS = (
    "Can you tell me: {q}",
    "Please tell me: {q}",
    "Quick question: {q}",
    "I have a question. {q}",
    "Hi! {q}",
    "Hello, {q}",
    "Tell me, {q}",
    "{q} Please answer.",
    "I wonder, {q}",
    "Hey, {q}",
    "One more question: {q}",
    "OK. {q}",
    "{q} Thanks!",
    "Thanks! {q}",
    "Now {q}",
)


@dataclass(frozen=True, kw_only=True)
class Document:
    """A chat (`messages`, each with role and content) or a plain text; exactly one of the two is set."""

    messages: tuple[dict[str, str], ...] = ()
    text: str = ""


def documents(seed: int, count: int) -> Iterator[Document]:
    """`count` documents that depend on `seed` alone; document i is the same whatever `count` is."""
    for index in range(count):
        yield _document(random.Random(f"{seed}/{index}"))


def _document(rng: random.Random) -> Document:
    kind = rng.random()
    if kind < 0.03:
        return Document(text=stories.plain(rng))
    if kind < 0.05:
        return Document(text=plain_facts(rng))
    if kind < 0.062:
        return Document(text="\n\n\n".join(stories.plain(rng) for _ in range(rng.randint(2, 6))))
    if kind < 0.07:
        return _chat(rng, parts=rng.randint(8, 40))
    return _chat(rng, parts=rng.choice((1, 1, 1, 1, 1, 2, 2, 3)))


def _chat(rng: random.Random, *, parts: int) -> Document:
    turns: list[Turn] = [talk.greeting(rng)] if rng.random() < 0.08 else []
    remembered: list[Turn] = []
    for _ in range(parts):
        new = some_turns(rng)
        if (
            len(new) > 1
            and parts > 1
            and not remembered
            and rng.random() < 0.5
            and "ou" in new[-1].assistant[:3]
        ):
            remembered = new[1:]  # what the user said about themselves is asked for at the end of the chat
            new = new[:1]
        turns += new
    turns += remembered
    if rng.random() < 0.1:
        turns.append(talk.thanks(rng))
    if rng.random() < 0.05:
        turns.append(talk.goodbye(rng))
    system, turns = with_style(rng, turns)
    messages = [{"role": "system", "content": system}] if system else []
    for turn in turns:
        messages += [
            {"role": "user", "content": _varied(rng, turn.user)},
            {"role": "assistant", "content": turn.assistant},
        ]
    return Document(messages=tuple(messages))


def _varied(rng: random.Random, text: str) -> str:
    """The user's text as people type it: other case, no full stop, a word around it, a slip of the finger."""
    if rng.random() < 0.12 and len(text) < 120:
        wrapper = rng.choice(_WRAPPERS)
        lowered = (
            text
            if text.startswith("I ") or wrapper[0] == "{" or rng.random() < 0.5
            else text[0].lower() + text[1:]
        )
        text = wrapper.format(q=lowered)
    kind = rng.random()
    if kind < 0.05:
        text = text.lower()
    elif kind < 0.08:
        text = text[0].lower() + text[1:]
    elif kind < 0.085:
        text = text.upper()
    if rng.random() < 0.08 and text[-1] in ".?!":
        text = text[:-1]
    if rng.random() < 0.03 and len(text) > 12:
        spot = rng.randrange(4, len(text) - 2)
        text = text[:spot] + text[spot + 1 :]
    return text
