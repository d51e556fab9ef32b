"""Chats in which the answer stands earlier in the same conversation."""

from __future__ import annotations

import random

from . import vocabulary as v
from .turns import Turn, article, capitalised, fill


def personal(rng: random.Random) -> list[Turn]:
    """The user tells something about themselves in the first turn and asks for it in the last."""
    return rng.choice((_name, _name, _favourite, _pet, _place, _number, _hidden))(rng)


def _name(rng: random.Random) -> list[Turn]:
    name = v.person(rng)
    return [
        Turn(
            user=fill(
                rng,
                (
                    "My name is {n}.",
                    "I am {n}.",
                    "Hi, I'm {n}.",
                    "Hello, my name is {n}.",
                    "I am called {n}.",
                    "Call me {n}.",
                ),
                n=name,
            ),
            assistant=f"Nice to meet you, {name}! How can I help you?",
        ),
        Turn(
            user=rng.choice(
                (
                    "What is my name?",
                    "What's my name?",
                    "Do you remember my name?",
                    "Who am I?",
                    "Do you know my name?",
                )
            ),
            assistant=f"Your name is {name}.",
            brief=f"{name}.",
        ),
    ]


def _favourite(rng: random.Random) -> list[Turn]:
    kind, values = rng.choice(
        (
            ("colour", v.COLOURS),
            ("animal", v.ANIMALS),
            ("food", v.FOODS),
            ("fruit", v.FRUITS),
            ("city", v.CITIES),
        )
    )
    value = rng.choice(values)
    return [
        Turn(
            user=fill(rng, ("My favourite {k} is {x}.", "The {k} I like best is {x}."), k=kind, x=value),
            assistant="That is a good choice. I will remember it.",
        ),
        Turn(
            user=fill(
                rng,
                (
                    "What is my favourite {k}?",
                    "Which {k} do I like best?",
                    "Do you remember my favourite {k}?",
                ),
                k=kind,
            ),
            assistant=f"Your favourite {kind} is {value}.",
            brief=f"{capitalised(value)}.",
        ),
    ]


def _pet(rng: random.Random) -> list[Turn]:
    animal, name = rng.choice(v.ANIMALS), rng.choice((rng.choice(v.PET_NAMES), v.person(rng)))
    turns = [
        Turn(
            user=fill(
                rng,
                ("I have {a} called {n}.", "I have {a} named {n}.", "My {b} is called {n}."),
                a=article(animal),
                b=animal,
                n=name,
            ),
            assistant=f"{name} is a lovely name for {article(animal)}.",
        ),
        Turn(
            user=fill(
                rng,
                (
                    "What is my {b} called?",
                    "What is the name of my {b}?",
                    "Do you remember the name of my {b}?",
                ),
                b=animal,
            ),
            assistant=f"Your {animal} is called {name}.",
            brief=f"{name}.",
        ),
    ]
    if rng.random() < 0.4:
        turns.append(
            Turn(
                user=fill(
                    rng, ("Which animal is {n}?", "What is {n}?", "What kind of animal is {n}?"), n=name
                ),
                assistant=f"{name} is your {animal}.",
                brief=f"{article(animal).capitalize()}.",
            )
        )
    return turns


def _place(rng: random.Random) -> list[Turn]:
    city = rng.choice((rng.choice(v.CITIES), v.invented_word(rng).capitalize()))
    return [
        Turn(
            user=fill(
                rng, ("I live in {c}.", "I am from {c}.", "My home is in {c}.", "I come from {c}."), c=city
            ),
            assistant=f"I hope that {city} is a nice place to live.",
        ),
        Turn(
            user=rng.choice(
                (
                    "Where do I live?",
                    "Where am I from?",
                    "Which city do I live in?",
                    "Do you remember where I live?",
                )
            ),
            assistant=f"You live in {city}.",
            brief=f"{city}.",
        ),
    ]


def _number(rng: random.Random) -> list[Turn]:
    number = str(rng.randint(2, 9999))
    what = rng.choice(("secret number", "lucky number", "room number", "code", "favourite number"))
    return [
        Turn(
            user=fill(
                rng,
                ("My {w} is {n}.", "Remember this: my {w} is {n}.", "Please remember that my {w} is {n}."),
                w=what,
                n=number,
            ),
            assistant="All right, I will remember it.",
        ),
        Turn(
            user=fill(rng, ("What is my {w}?", "Do you remember my {w}?", "Tell me my {w}."), w=what),
            assistant=f"Your {what} is {number}.",
            brief=f"{number}.",
        ),
    ]


def _hidden(rng: random.Random) -> list[Turn]:
    thing, place = (
        rng.choice(v.OBJECTS),
        rng.choice(
            (
                "under the bed",
                "in the kitchen",
                "on the table",
                "behind the door",
                "in the garden",
                "in the car",
                "under the tree",
                "in my bag",
                "on the shelf",
                "in the red box",
            )
        ),
    )
    said = place.replace("my", "your")
    return [
        Turn(
            user=fill(rng, ("My {t} is {p}.", "I put my {t} {p}.", "I left my {t} {p}."), t=thing, p=place),
            assistant="I will remember that.",
        ),
        Turn(
            user=fill(
                rng, ("Where is my {t}?", "Where did I put my {t}?", "Do you know where my {t} is?"), t=thing
            ),
            assistant=f"Your {thing} is {said}.",
            brief=f"{capitalised(said)}.",
        ),
    ]


def reading(rng: random.Random) -> list[Turn]:
    """A few sentences about someone, then questions about them."""
    name, other = rng.sample([v.person(rng), *rng.sample(v.NAMES, 2)], 2)
    if name == other:
        other = "Quentin"
    animal, colour, thing, food = (
        rng.choice(v.ANIMALS),
        rng.choice(v.COLOURS),
        rng.choice(v.OBJECTS),
        rng.choice(v.FOODS),
    )
    city, hobby = rng.choice(v.CITIES), rng.choice(v.HOBBIES)
    facts = [
        (f"{name} lives in {city}.", f"Where does {name} live?", f"{name} lives in {city}.", city),
        (
            f"{name} has {article(animal)}.",
            f"Which animal does {name} have?",
            f"{name} has {article(animal)}.",
            capitalised(article(animal)),
        ),
        (f"{name} likes {hobby}.", f"What does {name} like?", f"{name} likes {hobby}.", capitalised(hobby)),
        (
            f"For dinner {name} eats {food}.",
            f"What does {name} eat for dinner?",
            f"{name} eats {food}.",
            capitalised(food),
        ),
        (
            f"{name} has {article(colour)} {thing}.",
            f"What colour is the {thing} of {name}?",
            f"The {thing} is {colour}.",
            capitalised(colour),
        ),
        (
            f"The best friend of {name} is {other}.",
            f"Who is the best friend of {name}?",
            f"The best friend of {name} is {other}.",
            other,
        ),
    ]
    chosen = rng.sample(facts, rng.randint(2, 5))
    text = " ".join(fact[0] for fact in chosen)
    asked = rng.sample(chosen, min(len(chosen), rng.choice((1, 1, 2, 3))))
    first = fill(
        rng,
        ("{t} {q}", "Read this: {t} {q}", "{t}\n{q}", "Here is a text. {t} Now tell me: {q}"),
        t=text,
        q=asked[0][1],
    )
    turns = [Turn(user=first, assistant=asked[0][2], brief=f"{asked[0][3]}.")]
    turns += [
        Turn(user=question, assistant=answer, brief=f"{brief}.") for _, question, answer, brief in asked[1:]
    ]
    return turns
