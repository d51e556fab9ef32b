"""Arithmetic on small numbers, counting, and what comes before or after in a well-known order."""

from __future__ import annotations

import random

from .turns import Turn, joined, words

_WORDS = words("""
zero, one, two, three, four, five, six, seven, eight, nine, ten, eleven, twelve, thirteen, fourteen,
fifteen, sixteen, seventeen, eighteen, nineteen, twenty
""")
_DAYS = words("Monday, Tuesday, Wednesday, Thursday, Friday, Saturday, Sunday")
_MONTHS = words("""
January, February, March, April, May, June, July, August, September, October, November, December
""")
_SEASONS = words("spring, summer, autumn, winter")
_LETTERS = tuple("ABCDEFGHIJKLMNOPQRSTUVWXYZ")

_ASK = (
    "What is {e}?",
    "What is {e}?",
    "What's {e}?",
    "How much is {e}?",
    "Calculate {e}.",
    "{e}?",
    "{e} = ?",
    "{e}",
    "Can you work out {e}?",
    "Tell me what {e} is.",
    "What does {e} make?",
    "Compute {e}.",
    "Solve {e}.",
)
_NEXT = ("And {e}?", "What about {e}?", "And what is {e}?", "{e}?")


def _problem(rng: random.Random) -> tuple[str, str, int]:
    """An expression as asked, the same in figures, and its value."""
    operation = rng.choices(("+", "-", "*"), (5, 3, 2))[0]
    if operation == "*":
        a, b = rng.randint(0, 10), rng.randint(0, 10)
        spoken, value = rng.choice(("times", "times", "multiplied by", "*", "x")), a * b
    else:
        top = 10 if rng.random() < 0.75 else 20
        a, b = rng.randint(0, top), rng.randint(0, top)
        if operation == "-":
            a, b = max(a, b), min(a, b)
            spoken, value = rng.choice(("minus", "-", "take away")), a - b
        else:
            spoken, value = rng.choice(("plus", "plus", "+", "and")), a + b
    asked = f"{a}{spoken}{b}" if spoken in "+-*x" and rng.random() < 0.4 else f"{a} {spoken} {b}"
    if spoken not in "+-*x" and rng.random() < 0.3:
        asked = f"{_WORDS[a]} {spoken} {_WORDS[b]}"
    name = {"+": "plus", "-": "minus", "*": "times"}[operation]
    return asked, f"{a} {name} {b}", value


def arithmetic(rng: random.Random) -> list[Turn]:
    """One to three sums in a row."""
    turns = []
    for index in range(rng.choice((1, 1, 1, 2, 3))):
        asked, figures, value = _problem(rng)
        question = rng.choice(_ASK if index == 0 else _NEXT).format(e=asked)
        turns.append(Turn(user=question, assistant=f"{figures} is {value}.", brief=f"{value}."))
    return turns


def counting(rng: random.Random) -> list[Turn]:
    """Count up or down; the end is at most 50 so that the answer fits any limit on tokens."""
    end = rng.choice((3, 5, 5, 8, 10, 10, 10, 12, 15, 20, 20, 25, 30, 40, 50, rng.randint(2, 50)))
    kind = rng.random()
    if kind < 0.55:
        question = rng.choice(
            (
                "Count to {n}.",
                "Count to {n}.",
                "Can you count to {n}?",
                "Count from 1 to {n}.",
                "Count up to {n}.",
                "Please count to {n} for me.",
                "List the numbers from 1 to {n}.",
                "Say the numbers from one to {n}.",
            )
        )
        asked = _WORDS[end] if end <= 20 and rng.random() < 0.4 else str(end)
        return [Turn(user=question.format(n=asked), assistant=", ".join(map(str, range(1, end + 1))) + ".")]
    if kind < 0.8:
        start = rng.randint(2, 30)
        stop = start + rng.randint(2, 12)
        question = rng.choice(
            ("Count from {a} to {b}.", "List the numbers from {a} to {b}.", "Go from {a} to {b}.")
        )
        return [
            Turn(
                user=question.format(a=start, b=stop),
                assistant=", ".join(map(str, range(start, stop + 1))) + ".",
            )
        ]
    start = min(end, 20)
    question = rng.choice(
        (
            "Count down from {n}.",
            "Count backwards from {n}.",
            "Can you count down from {n}?",
            "Count down from {n} to 1.",
        )
    )
    return [Turn(user=question.format(n=start), assistant=", ".join(map(str, range(start, 0, -1))) + ".")]


def comparison(rng: random.Random) -> list[Turn]:
    """Which of two numbers is bigger or smaller, or whether one is even."""
    a, b = rng.sample(range(100), 2)
    if rng.random() < 0.3:
        parity = "even" if a % 2 == 0 else "odd"
        question = rng.choice(
            ("Is {a} even or odd?", "Is {a} an even number?", "Is {a} an odd number?")
        ).format(a=a)
        return [
            Turn(
                user=question,
                assistant=f"{a} is {'an even' if parity == 'even' else 'an odd'} number.",
                brief=f"{parity.capitalize()}.",
            )
        ]
    word, value = rng.choice((("bigger", max(a, b)), ("smaller", min(a, b)), ("larger", max(a, b))))
    other = a + b - value
    question = rng.choice(
        ("Which is {w}, {a} or {b}?", "What is {w}: {a} or {b}?", "Which number is {w}, {a} or {b}?")
    )
    return [
        Turn(
            user=question.format(w=word, a=a, b=b),
            assistant=f"{value} is {word} than {other}.",
            brief=f"{value}.",
        )
    ]


def order(rng: random.Random) -> list[Turn]:
    """What comes after or before a day, month, season, letter or number; sometimes with a follow-up."""
    kind, items = rng.choice(
        (
            ("day", _DAYS),
            ("day", _DAYS),
            ("month", _MONTHS),
            ("season", _SEASONS),
            ("letter", _LETTERS),
            ("number", tuple(str(n) for n in range(101))),
        )
    )
    cyclic = kind in ("day", "month", "season")
    turns: list[Turn] = []
    for index in range(rng.choice((1, 1, 2, 3))):
        step, word = rng.choice(((1, "after"), (1, "after"), (-1, "before")))
        position = rng.randrange(len(items)) if cyclic else rng.randrange(1, len(items) - 1)
        here, there = items[position], items[(position + step) % len(items)]
        first = (
            f"What comes {word} {here}?",
            f"Which {kind} comes {word} {here}?",
            f"What {kind} is {word} {here}?",
        )
        again = (f"And {word} {here}?", f"What about {word} {here}?")
        question = rng.choice(first if index == 0 else again)
        turns.append(
            Turn(
                user=question,
                assistant=f"{there} comes {word} {here}.".capitalize()
                if kind == "season"
                else f"{there} comes {word} {here}.",
                brief=f"{there}.",
            )
        )
    if kind == "day" and rng.random() < 0.3:
        position = rng.randrange(7)
        today, tomorrow, yesterday = _DAYS[position], _DAYS[(position + 1) % 7], _DAYS[position - 1]
        if rng.random() < 0.5:
            return [
                Turn(
                    user=f"Today is {today}. What day is tomorrow?",
                    assistant=f"Tomorrow is {tomorrow}.",
                    brief=f"{tomorrow}.",
                )
            ]
        return [
            Turn(
                user=f"Today is {today}. What day was yesterday?",
                assistant=f"Yesterday was {yesterday}.",
                brief=f"{yesterday}.",
            )
        ]
    return turns


def word_problem(rng: random.Random) -> list[Turn]:
    """A sum dressed as a tiny story about apples and the like."""
    from .vocabulary import person

    name, thing = (
        person(rng),
        rng.choice(words("apples, books, coins, stones, shells, pens, eggs, toys, cookies, balls")),
    )
    a, b = rng.randint(2, 12), rng.randint(1, 8)
    if rng.random() < 0.5 or b >= a:
        question = rng.choice(
            (
                f"{name} has {a} {thing} and gets {b} more. How many {thing} does {name} have?",
                f"{name} has {a} {thing}. A friend gives {name} {b} more. How many {thing} is that?",
            )
        )
        return [
            Turn(
                user=question,
                assistant=f"{name} has {a + b} {thing}, because {a} plus {b} is {a + b}.",
                brief=f"{a + b}.",
            )
        ]
    question = rng.choice(
        (
            f"{name} has {a} {thing} and gives away {b}. How many {thing} are left?",
            f"{name} has {a} {thing} and loses {b}. How many {thing} does {name} have now?",
        )
    )
    return [
        Turn(
            user=question,
            assistant=f"{name} has {a - b} {thing} left, because {a} minus {b} is {a - b}.",
            brief=f"{a - b}.",
        )
    ]


def sorting(rng: random.Random) -> list[Turn]:
    """Put three to five numbers in order."""
    numbers = rng.sample(range(1, 60), rng.randint(3, 5))
    listed = joined([str(n) for n in numbers]) if rng.random() < 0.5 else ", ".join(map(str, numbers))
    question = rng.choice(("Sort these numbers: {n}.", "Put {n} in order.", "Sort {n} from small to big."))
    return [Turn(user=question.format(n=listed), assistant=", ".join(map(str, sorted(numbers))) + ".")]
