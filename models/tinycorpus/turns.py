"""What every generator in this package returns, and the small helpers they share."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Turn:
    """One question and its answer.

    `brief` is the answer in as few words as possible, for chats whose system message asks for that; it is
    None where no shorter form makes sense (stories, lists).
    """

    user: str
    assistant: str
    brief: str | None = None


def table(text: str) -> tuple[tuple[str, str], ...]:
    """Parse `key: value` pairs separated by semicolons or line ends; the order is kept."""
    pairs = (entry.split(":", 1) for line in text.splitlines() for entry in line.split(";") if entry.strip())
    return tuple((key.strip(), value.strip()) for key, value in pairs)


def words(text: str) -> tuple[str, ...]:
    """Parse a comma-separated list; line ends count as spaces."""
    return tuple(word.strip() for word in text.replace("\n", " ").split(",") if word.strip())


def entries(text: str) -> tuple[tuple[str, ...], ...]:
    """Parse one entry per line, its parts separated by " = "; an indented line continues the one before."""
    lines = text.strip().replace("\n    ", " ").splitlines()
    return tuple(tuple(part.strip() for part in f"{line} ".split(" = ")) for line in lines)


def either(text: str) -> tuple[str, ...]:
    """Parse alternatives separated by `|`."""
    return tuple(part.strip() for part in text.split("|"))


def article(noun: str) -> str:
    """`noun` with "a" or "an" in front, by its first letter ("hour" and "unicorn" are handled)."""
    vowel_sound = noun[0].lower() in "aeiou" and not noun.lower().startswith(("uni", "eu", "one"))
    return f"{'an' if vowel_sound or noun.startswith('hour') else 'a'} {noun}"


def plural(noun: str) -> str:
    """More than one of `noun`; knows the irregular animals of this package."""
    irregular = {
        "mouse": "mice",
        "wolf": "wolves",
        "fish": "fish",
        "sheep": "sheep",
        "goose": "geese",
        "deer": "deer",
    }
    if noun in irregular:
        return irregular[noun]
    return f"{noun}es" if noun.endswith(("s", "x", "ch", "sh")) else f"{noun}s"


def capitalised(text: str) -> str:
    """`text` with its first letter in upper case and the rest untouched."""
    return text[:1].upper() + text[1:]


def joined(items: Sequence[str]) -> str:
    """`a, b and c`."""
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} and {items[-1]}"


def fill(rng: random.Random, templates: Sequence[str], **slots: str) -> str:
    """One of `templates`, chosen by `rng`, with its `{slots}` filled in."""
    return rng.choice(templates).format(**slots)
