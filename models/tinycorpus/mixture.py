"""How often each kind of talk occurs."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace

from . import geography, knowledge, memory, numbers, stories, talk, tasks, trivia
from .turns import Turn

Generator = Callable[[random.Random], list[Turn]]

_FAMILIES = (*geography.FAMILIES, *knowledge.FAMILIES)
_FAMILY_WEIGHTS = [family.weight for family in _FAMILIES]


def _facts(rng: random.Random) -> list[Turn]:
    family = rng.choices(_FAMILIES, _FAMILY_WEIGHTS)[0]
    return family.turns(rng, rng.choice((1, 1, 1, 2, 2, 3, 4)))


def _after_text(rng: random.Random) -> list[Turn]:
    """A question about something else at the end of a long message: it must not drown in what precedes it."""
    text = "\n\n".join(stories.plain(rng) for _ in range(rng.choice((1, 1, 2, 3, 5, 9))))
    first, *others = _facts(rng) if rng.random() < 0.7 else trivia.trivia(rng)
    head = rng.choice(("", "Here is a text.\n\n", "Read this:\n\n", "Text: "))
    return [replace(first, user=f"{head}{text}\n\n{first.user}"), *others]


_KINDS: tuple[tuple[Generator, float], ...] = (
    (_facts, 34),
    (trivia.trivia, 8),
    (talk.small_talk, 11),
    (talk.likes, 1.5),
    (talk.introduced, 1.5),
    (talk.unknown, 5),
    (numbers.arithmetic, 20),
    (numbers.counting, 4),
    (numbers.comparison, 1),
    (numbers.order, 4),
    (numbers.word_problem, 3),
    (numbers.sorting, 0.7),
    (tasks.listing, 3),
    (tasks.repeating, 8),
    (tasks.spelling, 2.5),
    (tasks.choosing, 2),
    (tasks.sentence, 1),
    (tasks.poem, 2),
    (tasks.how_to, 3),
    (tasks.letter, 1),
    (memory.personal, 7),
    (memory.reading, 4),
    (stories.told, 4),
    (_after_text, 1),
)
_GENERATORS = [generator for generator, _ in _KINDS]
_WEIGHTS = [weight for _, weight in _KINDS]


def some_turns(rng: random.Random) -> list[Turn]:
    """The turns of one generator, chosen by its weight."""
    return rng.choices(_GENERATORS, _WEIGHTS)[0](rng)


def plain_facts(rng: random.Random) -> str:
    """Sentences or questions and answers without a chat around them, for plain completion."""
    turns = [
        turn
        for _ in range(rng.randint(1, 6))
        for turn in rng.choice((_facts, numbers.arithmetic, numbers.counting))(rng)
    ]
    if rng.random() < 0.5:
        return " ".join(turn.assistant for turn in turns)
    mark, reply = rng.choice((("Q", "A"), ("Question", "Answer"), ("User", "Assistant")))
    return "\n".join(f"{mark}: {turn.user}\n{reply}: {turn.assistant}" for turn in turns)
