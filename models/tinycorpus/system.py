"""System messages, and how the answers of a chat change with them."""

from __future__ import annotations

import random
from dataclasses import replace

from . import vocabulary
from .turns import Turn, article, capitalised

_NEUTRAL = (
    "You are a helpful assistant.",
    "You are a helpful assistant.",
    "You are a friendly assistant.",
    "You are Tandem.",
    "You are a tiny demonstration model that ships with Tandem.",
    "Answer the questions of the user.",
    "Be kind and helpful.",
    "You are a helpful assistant. Answer in simple English.",
    "You talk with children. Use simple words.",
    "You are a polite assistant that answers questions.",
    "Help the user as well as you can.",
    "You are a teacher.",
)
_BRIEF = (
    "Answer with one word.",
    "Answer as briefly as possible.",
    "You are a helpful assistant. Be brief.",
    "Be brief.",
    "Give short answers.",
    "Answer in as few words as possible.",
    "Keep your answers very short.",
    "Reply with a single word.",
)
_PIRATE = ("You are a pirate.", "Talk like a pirate.", "You are a pirate captain. Answer like a pirate.")
_BACKGROUND = (
    "Tandem serves language models on one or many machines.",
    "The user may ask about animals, colours, countries or numbers.",
    "The user may ask for a little story.",
    "Do not be rude.",
    "If you do not know something, say so.",
    "Stay calm and polite.",
    "The conversation takes place in the library of a small town.",
    "It is a quiet afternoon, and there is plenty of time.",
    "The user likes short and clear sentences.",
    "Never make fun of a question.",
    "Every question deserves an honest answer.",
    "The town has a market, a school, a river and an old mill.",
    "On Monday the market is open, on Sunday it is closed.",
    "The library has three floors and a small garden.",
    "Tea and biscuits are served at four.",
    "Cats are welcome, dogs must wait outside.",
)


def with_style(rng: random.Random, turns: list[Turn]) -> tuple[str, list[Turn]]:
    """A system message, or "", and the turns as that message wants them."""
    kind = rng.random()
    if kind < 0.55:
        return "", turns
    if kind < 0.66:
        return rng.choice(_BRIEF), [replace(turn, assistant=turn.brief or turn.assistant) for turn in turns]
    if kind < 0.69:
        return rng.choice(_PIRATE), [
            replace(turn, assistant=f"Arr, matey! {turn.assistant}") for turn in turns
        ]
    if kind < 0.73:
        background = rng.choices(_BACKGROUND, k=rng.choice((3, 5, 10, 30, 60)))
        about, asked = _notice(rng)
        background.insert(rng.randint(0, len(background)), about)
        place = rng.choice((0, len(turns)))  # never between a question and its follow-up
        return " ".join((rng.choice(_NEUTRAL), *background)), [*turns[:place], asked, *turns[place:]]
    return rng.choice(_NEUTRAL), turns


def _notice(rng: random.Random) -> tuple[str, Turn]:
    """Something that only the system message says, and a question about it."""
    name, day, number = (
        vocabulary.person(rng),
        rng.choice(("Monday", "Tuesday", "Thursday", "Friday")),
        str(rng.randint(100, 9999)),
    )
    city, animal = rng.choice(vocabulary.CITIES), rng.choice(vocabulary.ANIMALS)
    about, question, answer, brief = rng.choice(
        (
            (
                f"The keeper of the library is {name}.",
                "Who is the keeper of the library?",
                f"The keeper of the library is {name}.",
                name,
            ),
            (
                f"The code of the door is {number}.",
                "What is the code of the door?",
                f"The code of the door is {number}.",
                number,
            ),
            (
                f"The next concert is on {day}.",
                "When is the next concert?",
                f"The next concert is on {day}.",
                day,
            ),
            (f"The user is called {name}.", "What is my name?", f"Your name is {name}.", name),
            (f"The user lives in {city}.", "Where do I live?", f"You live in {city}.", city),
            (
                f"The pet of the library is {article(animal)}.",
                "What is the pet of the library?",
                f"The pet of the library is {article(animal)}.",
                capitalised(article(animal)),
            ),
        )
    )
    return about, Turn(user=question, assistant=answer, brief=f"{brief}.")
