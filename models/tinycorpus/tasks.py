"""Small tasks: lists, repeating, spelling, sentences, poems, how-to steps, letters."""

from __future__ import annotations

import random

from . import vocabulary as v
from .turns import Turn, article, capitalised, either, entries, fill, joined, words

_LISTS = {
    "fruits": words("apples, bananas, pears, oranges, cherries, grapes, plums, peaches, lemons, mangoes"),
    "vegetables": words("carrots, potatoes, onions, peas, beans, cabbage, spinach, tomatoes, leeks, peppers"),
    "animals": words("dogs, cats, horses, lions, elephants, rabbits, bears, foxes, tigers, monkeys"),
    "farm animals": words("cows, pigs, sheep, hens, goats, horses, ducks, geese, donkeys, dogs"),
    "birds": words("owls, eagles, sparrows, swans, penguins, crows, robins, parrots, geese, ducks"),
    "colours": words("red, blue, green, yellow, orange, purple, pink, brown, black, white"),
    "countries": words("France, Italy, Germany, Spain, Japan, China, India, Brazil, Egypt, Canada"),
    "cities": words("Paris, London, Rome, Berlin, Madrid, Vienna, Oslo, Cairo, Tokyo, Lima"),
    "drinks": words("water, milk, tea, coffee, juice, lemonade, cocoa, soda, cider, buttermilk"),
    "sports": words("football, tennis, swimming, running, cycling, skiing, golf, hockey, rowing, judo"),
    "flowers": words(
        "roses, tulips, daisies, lilies, sunflowers, violets, poppies, orchids, daffodils, irises"
    ),
    "trees": words("oak, pine, birch, maple, apple, willow, beech, ash, cedar, palm"),
    "clothes": words("shirts, trousers, coats, hats, shoes, socks, scarves, gloves, dresses, jumpers"),
    "musical instruments": words("piano, guitar, violin, drum, flute, trumpet, harp, cello, clarinet, organ"),
    "tools": words("hammer, saw, drill, screwdriver, spade, rake, axe, pliers, wrench, file"),
    "shapes": words("circle, square, triangle, rectangle, star, oval, diamond, hexagon, pentagon, heart"),
    "insects": words(
        "bees, ants, butterflies, beetles, flies, wasps, moths, crickets, dragonflies, ladybirds"
    ),
    "jobs": words("doctor, teacher, baker, farmer, pilot, nurse, cook, painter, writer, singer"),
    "planets": words("Mercury, Venus, Earth, Mars, Jupiter, Saturn, Uranus, Neptune"),
    "things in a kitchen": words(
        "a pot, a pan, a knife, a spoon, a plate, a cup, an oven, a fridge, a table, a sink"
    ),
    "pets": words("dogs, cats, rabbits, hamsters, goldfish, parrots, guinea pigs, turtles, mice, canaries"),
    "wild animals": words("lions, bears, wolves, foxes, elephants, tigers, zebras, giraffes, deer, monkeys"),
}
_COUNTS = {2: "two", 3: "three", 4: "four", 5: "five", 6: "six"}


def listing(rng: random.Random) -> list[Turn]:
    """Name some things of a kind; the items always come in the same order, so the answer is easy to learn."""
    kind = rng.choice(list(_LISTS))
    number = rng.choice((2, 3, 3, 3, 4, 5, 5, 6))
    spoken = rng.choice((_COUNTS[number], _COUNTS[number], str(number)))
    numbered = rng.random() < 0.25
    ask = (
        "Name {n} {k}.",
        "List {n} {k}.",
        "Tell me {n} {k}.",
        "Give me {n} {k}.",
        "Can you name {n} {k}?",
        "Please list {n} {k}.",
        "Give me {n} examples of {k}.",
        "Can you give me the names of {n} {k}?",
        "I need {n} {k}.",
    )
    ask_numbered = (
        "Give me a numbered list of {n} {k}.",
        "Write a numbered list of {n} {k}.",
        "List {n} {k} with numbers.",
    )
    items = _LISTS[kind][:number]
    user = fill(rng, ask_numbered if numbered else ask, n=spoken, k=kind)
    if numbered:
        return [
            Turn(
                user=user, assistant="\n".join(f"{i}. {capitalised(item)}" for i, item in enumerate(items, 1))
            )
        ]
    turns = [Turn(user=user, assistant=f"{capitalised(joined(items))}.")]
    if number <= 4 and rng.random() < 0.3:
        again = rng.choice(
            ("One more, please.", "Another one?", "And one more?", "Can you name another one?")
        )
        turns.append(Turn(user=again, assistant=f"{capitalised(_LISTS[kind][number])}."))
    return turns


def _some_words(rng: random.Random) -> str:
    """Mostly a few words, sometimes many: long copies are what teaches copying fastest."""
    count = rng.choice((1, 2, 2, 3, 3, 4, 5, 6, 8, 16, 30))
    pools = (v.ANIMALS, v.OBJECTS, v.COLOURS, v.FRUITS, v.FOODS, v.NAMES, v.CITIES)
    return " ".join(
        v.invented_word(rng) if rng.random() < 0.35 else rng.choice(rng.choice(pools)) for _ in range(count)
    )


def repeating(rng: random.Random) -> list[Turn]:
    """Say back exactly what was given; half the words are invented."""
    text = _some_words(rng)
    user = fill(
        rng,
        (
            "Repeat after me: {t}",
            "Say {t}.",
            "Please say: {t}",
            "Repeat this: {t}",
            "Repeat: {t}",
            'Say "{t}".',
            "Write this down: {t}",
            "Can you say {t}?",
            "Echo {t}",
            "Just answer with: {t}",
        ),
        t=text,
    )
    return [Turn(user=user, assistant=text)]


def spelling(rng: random.Random) -> list[Turn]:
    """Spell a short word, or say its first or last letter."""
    word = rng.choice(rng.choice((v.ANIMALS, v.OBJECTS, v.COLOURS)))
    kind = rng.random()
    if kind < 0.5:
        user = fill(
            rng,
            (
                "Spell {w}.",
                "How do you spell {w}?",
                "Can you spell {w}?",
                "Spell the word {w}.",
                'Spell "{w}".',
            ),
            w=word,
        )
        return [Turn(user=user, assistant="-".join(word.upper().replace(" ", "")) + ".")]
    if kind < 0.8:
        user = fill(
            rng,
            (
                "What is the first letter of {w}?",
                "Which letter does {w} start with?",
                "What letter does {w} begin with?",
            ),
            w=word,
        )
        return [
            Turn(
                user=user,
                assistant=f"The first letter of {word} is {word[0].upper()}.",
                brief=f"{word[0].upper()}.",
            )
        ]
    user = fill(rng, ("What is the last letter of {w}?", "Which letter does {w} end with?"), w=word)
    return [
        Turn(
            user=user,
            assistant=f"The last letter of {word} is {word[-1].upper()}.",
            brief=f"{word[-1].upper()}.",
        )
    ]


def choosing(rng: random.Random) -> list[Turn]:
    """First, second or last of a list; or reverse it."""
    items = rng.sample(rng.choice((v.ANIMALS, v.OBJECTS, v.COLOURS, v.NAMES, v.CITIES)), rng.randint(3, 5))
    listed = ", ".join(items)
    index, word = rng.choice(((0, "first"), (1, "second"), (2, "third"), (-1, "last")))
    if rng.random() < 0.3:
        user = fill(rng, ("Say these in reverse: {l}", "Reverse this list: {l}", "Reverse: {l}"), l=listed)
        return [Turn(user=user, assistant=", ".join(reversed(items)))]
    user = fill(
        rng,
        (
            "Which word is {o}: {l}?",
            "What is the {o} word: {l}?",
            "Here is a list: {l}. Which one is {o}?",
            "{l}. Which of these comes {o}?",
        ),
        o=word,
        l=listed,
    )
    return [
        Turn(
            user=capitalised(user),
            assistant=f"The {word} one is {items[index]}.",
            brief=f"{capitalised(items[index])}.",
        )
    ]


def sentence(rng: random.Random) -> list[Turn]:
    """One sentence with a given word."""
    animal, place, colour = rng.choice(v.ANIMALS), rng.choice(v.PLACES), rng.choice(v.COLOURS)
    thing = rng.choice(v.OBJECTS)
    if rng.random() < 0.5:
        word, answer = animal, f"The {animal} walked slowly to {place}."
    else:
        word, answer = thing, f"I found {article(colour)} {thing} near {place}."
    user = fill(
        rng,
        (
            'Write a sentence with the word "{w}".',
            "Make a sentence with {w}.",
            "Use {w} in a sentence.",
            "Write one sentence about {a}.",
            "Give me a sentence with {w}.",
        ),
        w=word,
        a=article(word),
    )
    return [Turn(user=user, assistant=answer)]


_RHYMES = (
    ("day", "play"),
    ("light", "night"),
    ("tree", "free"),
    ("sky", "high"),
    ("sea", "me"),
    ("sun", "fun"),
    ("moon", "soon"),
    ("star", "far"),
    ("rain", "lane"),
    ("snow", "glow"),
    ("hill", "still"),
    ("bright", "delight"),
)


_SIGHTS = words(
    "sea, moon, sun, rain, snow, river, wind, night, sky, summer, winter, spring, autumn, morning, ocean"
)


def poem(rng: random.Random) -> list[Turn]:
    """Four rhyming lines about an animal or a thing."""
    subject = rng.choice(v.ANIMALS + v.OBJECTS + v.CHARACTERS[:20] + _SIGHTS)
    (a, b), (c, d) = rng.sample(_RHYMES, 2)
    the = f"the {subject}"
    starts = {
        "day": "{A} woke up on a sunny day",
        "light": "{A} sat quietly in the light",
        "tree": "{A} rested under a tree",
        "sky": "{A} looked up into the sky",
        "sea": "{A} came down to see the sea",
        "sun": "{A} smiled up at the sun",
        "moon": "{A} sang softly to the moon",
        "star": "{A} made a wish upon a star",
        "rain": "{A} danced happily in the rain",
        "snow": "{A} saw footprints in the snow",
        "hill": "{A} climbed up on a hill",
        "bright": "{A} saw the morning, clear and bright",
    }
    ends = {
        "play": "and called its friends to come and play",
        "night": "and dreamed of stars all through the night",
        "free": "and felt so happy, calm and free",
        "high": "and watched the birds that flew so high",
        "me": "and shared a secret there with me",
        "fun": "and said that life is full of fun",
        "soon": "and hoped to see a good friend soon",
        "far": "and heard sweet music from afar",
        "lane": "and skipped along the village lane",
        "glow": "and watched the little windows glow",
        "still": "where all the world was soft and still",
        "delight": "and laughed aloud with pure delight",
    }
    lines = [starts[a].format(A=capitalised(the)), ends[b], starts[c].format(A=capitalised(the)), ends[d]]
    user = fill(
        rng,
        (
            "Write a poem about {s}.",
            "Write a short poem about {s}.",
            "Write a haiku about {s}.",
            "Can you write a poem about {s}?",
            "A poem about {s}, please.",
            "Tell me a poem about {s}.",
            "Make a little rhyme about {s}.",
            "Please write a little poem about {s}.",
        ),
        s=the if subject in _SIGHTS else rng.choice((article(subject), the)),
    )
    return [Turn(user=user, assistant=f"{lines[0]},\n{lines[1]}.\n{lines[2]},\n{lines[3]}.")]


_STEPS = """
make tea | make a cup of tea | brew tea = Boil some water. | Put a tea bag into a cup. | Pour the hot water
    over it. | Wait for three minutes and take the bag out.
make coffee | brew coffee = Boil some water. | Put ground coffee into a filter. | Pour the hot water over it
    slowly. | Enjoy your coffee.
make a sandwich | prepare a sandwich = Take two slices of bread. | Spread butter on them. | Put cheese and
    salad on one slice. | Cover it with the other slice.
make soup | cook soup = Cut some vegetables. | Put them into a pot with water. | Cook them for twenty
    minutes. | Add salt and serve it warm.
cook rice | make rice = Wash the rice. | Put it into a pot with twice as much water. | Cook it gently until
    the water is gone. | Let it rest for five minutes.
cook pasta | make pasta | cook noodles = Boil a large pot of water. | Add salt and the pasta. | Cook it for
    about ten minutes. | Drain it and add a sauce.
boil an egg | cook an egg = Put the egg into a small pot. | Cover it with water. | Boil it for about eight
    minutes. | Cool it under cold water.
make pancakes | bake pancakes = Mix flour, milk and eggs. | Heat a pan with a little butter. | Pour in some
    of the mix. | Turn the pancake when it is golden.
bake bread | make bread = Mix flour, water, yeast and salt. | Knead the dough and let it rest. | Shape it
    into a loaf. | Bake it until it is brown.
bake a cake | make a cake = Mix butter, sugar and eggs. | Add flour and stir well. | Pour the mix into a
    tin. | Bake it for forty minutes.
make a salad | prepare a salad = Wash the lettuce. | Cut some tomatoes and cucumbers. | Mix everything in a
    bowl. | Add oil, vinegar and salt.
plant a tree | plant a flower | plant a seed = Dig a small hole. | Put the plant into the hole. | Cover the
    roots with soil. | Water it well.
brush my teeth | clean my teeth = Put some toothpaste on the brush. | Brush all your teeth for two minutes.
    | Spit out the foam. | Rinse your mouth with water.
wash my hands | clean my hands = Wet your hands with water. | Rub them with soap for twenty seconds. | Rinse
    them well. | Dry them with a clean towel.
fall asleep | sleep better | get to sleep = Go to bed at the same time every day. | Put away your phone. |
    Make the room dark and quiet. | Breathe slowly and relax.
make a friend | make friends | find friends = Smile and say hello. | Ask the other person a question. |
    Listen to the answer. | Be kind and share something.
build a snowman | make a snowman = Roll a big ball of snow. | Put two smaller balls on top of it. | Use
    stones for the eyes and a carrot for the nose. | Give it a hat and a scarf.
ride a bicycle | ride a bike | learn to ride a bike = Put on a helmet. | Sit on the bicycle and hold the
    handlebar. | Push off with one foot. | Pedal and look ahead.
clean my room | tidy my room = Pick up everything from the floor. | Put each thing in its place. | Wipe the
    dust away. | Sweep the floor.
draw a cat | draw a dog | draw an animal = Draw a circle for the head. | Add two ears, two eyes and a nose.
    | Draw an oval for the body. | Add four legs and a tail.
learn a language | learn English | learn French = Learn a few new words every day. | Listen to the language
    often. | Speak with other people. | Do not be afraid of mistakes.
write a letter | write a letter to a friend = Take a sheet of paper and a pen. | Begin with a friendly
    greeting. | Write what you want to say. | End with your name.
cross the street | cross the road = Stop at the edge of the street. | Look left and right. | Wait until no
    car is coming. | Walk across quickly and carefully.
wash the dishes | do the dishes = Fill the sink with warm water and soap. | Scrub each plate and cup. |
    Rinse them with clean water. | Let them dry.
"""


_ENTRIES = entries(_STEPS)


def how_to(rng: random.Random) -> list[Turn]:
    """Four numbered steps."""
    names, steps = rng.choice(_ENTRIES)
    name = rng.choice(either(names))
    user = fill(
        rng,
        (
            "How do I {n}?",
            "How do I {n}?",
            "How can I {n}?",
            "How do you {n}?",
            "Tell me how to {n}.",
            "Explain how to {n}.",
            "I want to {n}. What do I do?",
            "What are the steps to {n}?",
            "Show me how to {n}.",
            "How to {n}?",
        ),
        n=name,
    )
    return [Turn(user=user, assistant="\n".join(f"{i}. {step}" for i, step in enumerate(either(steps), 1)))]


def letter(rng: random.Random) -> list[Turn]:
    """A short thank-you note, invitation or birthday card."""
    name, thing, place = v.person(rng), rng.choice(v.OBJECTS), rng.choice(v.PLACES)
    kind, body = rng.choice(
        (
            (
                "a thank-you letter",
                f"Thank you very much for the {thing}. It was very kind of you, and I use it every day.",
            ),
            (
                "a birthday card",
                "Happy birthday! I wish you a wonderful day with cake, music and good friends.",
            ),
            (
                "an invitation",
                f"I would like to invite you to a little party at {place}. There will be cake and games.",
            ),
            (
                "a short letter",
                f"I hope you are well. Yesterday I went to {place} and thought of you. Please write soon.",
            ),
        )
    )
    ask: tuple[str, ...] = (
        "Write {k} to {n}.",
        "Write {k} for my friend {n}.",
        "Can you write {k} to {n}?",
        "Please write {k} to {n}.",
        "I need {k} for {n}.",
    )
    if "thank" in kind:
        ask = (
            "Write a thank-you letter to {n} for the {t}.",
            "Thank {n} for the {t} in a letter.",
            "Write a note to thank {n} for the {t}.",
        )
    return [
        Turn(user=fill(rng, ask, k=kind, n=name, t=thing), assistant=f"Dear {name},\n{body}\nBest wishes")
    ]
