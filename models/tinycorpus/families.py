"""A family of facts: a table of (subject, fact) pairs that all answer the same kind of question."""

from __future__ import annotations

import random
from dataclasses import dataclass

from .turns import Turn, article, capitalised, plural


@dataclass(frozen=True, kw_only=True)
class Family:
    """Questions of one kind and the table that answers them.

    In templates `{x}` is the subject, `{y}` the fact, `{a_x}` and `{a_y}` the same with an article, `{xs}`
    the plural of the subject. There is one answer template, on purpose: greedy decoding then has one clear
    best continuation at every step.
    `weight` is how often the family is asked relative to the others.
    """

    rows: tuple[tuple[str, str], ...]
    questions: tuple[str, ...]
    answer: str
    follow_ups: tuple[str, ...] = ("And {x}?", "What about {x}?")
    brief: str = "{y}."
    weight: float = 1.0

    def turns(self, rng: random.Random, count: int) -> list[Turn]:
        """`count` questions about different subjects; all but the first are short follow-ups."""
        rows = rng.sample(self.rows, min(count, len(self.rows)))
        return [
            self._turn(row, rng.choice(self.questions if index == 0 else self.follow_ups))
            for index, row in enumerate(rows)
        ]

    def _turn(self, row: tuple[str, str], question: str) -> Turn:
        x, y = row
        slots = {"x": x, "y": y, "a_x": article(x), "a_y": article(y), "xs": plural(x)}
        return Turn(
            user=capitalised(question.format(**slots)),
            assistant=capitalised(self.answer.format(**slots)),
            brief=capitalised(self.brief.format(**slots)),
        )
