"""Little stories: a hero, a place, a trouble, a friend who helps, and a good end."""

from __future__ import annotations

import random
from dataclasses import dataclass

from . import vocabulary as v
from .turns import Turn, article, capitalised, fill, words

_MOODS = words("""
little, young, kind, clever, shy, brave, curious, cheerful, small, friendly, quiet, gentle, old, lazy,
hungry, happy, lonely, funny, proud, tiny, sleepy, wise, polite, grumpy, magic, lost, big, hard-working,
merry, careful
""")


@dataclass(frozen=True, kw_only=True)
class Cast:
    """Who and what a story is about; every sentence of one story uses the same cast."""

    hero: str
    name: str
    mood: str
    place: str
    friend: str
    friend_name: str
    thing: str
    colour: str

    def slots(self) -> dict[str, str]:
        """The names that story templates use."""
        return {
            "hero": self.hero,
            "n": self.name,
            "mood": self.mood,
            "a_mood": article(self.mood),
            "place": self.place,
            "friend": self.friend,
            "f": self.friend_name,
            "a_friend": article(self.friend),
            "thing": self.thing,
            "a_thing": article(self.thing),
            "colour": self.colour,
            "a_colour": article(self.colour),
        }


def cast(rng: random.Random) -> Cast:
    """A random cast; hero and friend are different, and so are their names."""
    hero, friend = rng.sample(v.ANIMALS + v.CHARACTERS, 2)
    if rng.random() < 0.18:
        hero = rng.choice(v.OBJECTS) if rng.random() < 0.6 else v.invented_word(rng)
    name, friend_name = rng.sample(v.NAMES + v.PET_NAMES, 2)
    if rng.random() < 0.15:
        name = v.invented_word(rng).capitalize()
    return Cast(
        hero=hero,
        name=name,
        mood=rng.choice(_MOODS),
        place=rng.choice(v.PLACES),
        friend=friend,
        friend_name=friend_name,
        thing=rng.choice(v.OBJECTS),
        colour=rng.choice(v.COLOURS),
    )


_OPENINGS = (
    "Once upon a time there was {a_mood} {hero} called {n}.",
    "Once upon a time, there was {a_mood} {hero} named {n}.",
    "There once was {a_mood} {hero} whose name was {n}.",
    "Long ago, {a_mood} {hero} called {n} lived near {place}.",
    "Near {place} there lived {a_mood} {hero} called {n}.",
)
_LIVES = (
    "{n} lived near {place} and loved to look at the stars.",
    "Every morning {n} walked to {place} and said hello to the sun.",
    "{n} had a small house near {place}, with a round door and a warm fire.",
    "Everyone near {place} knew {n}, because {n} was always ready to help.",
    "{n} liked quiet days, sweet berries and long walks to {place}.",
)

# Each plot is a list of steps, each step a tuple of ways to say it.
_PLOTS: tuple[tuple[tuple[str, ...], ...], ...] = (
    (  # something lost
        ("One day {n} lost {a_colour} {thing}.", "One morning the {colour} {thing} of {n} was gone."),
        (
            "{n} looked under the bed, behind the door and in the grass, but could not find it.",
            "{n} looked everywhere, but the {thing} was not there.",
        ),
        ("Then {n} met {a_friend} called {f}.", "On the way to {place}, {n} met {a_friend} named {f}."),
        ('"Why are you so sad?" asked {f}.', '"What are you looking for?" asked {f}.'),
        ('"I have lost my {thing}," said {n}.', '"My {colour} {thing} is gone," said {n}.'),
        ('"Let us look for it together," said {f}.', '"Do not worry, I will help you," said {f}.'),
        (
            "They looked for a long time, and at last they found the {thing} under an old tree.",
            "They searched until the sun went down, and there was the {thing}, right beside a big stone.",
        ),
        (
            "{n} was so happy that they both danced in the moonlight.",
            "{n} laughed with joy and gave {f} a big hug.",
        ),
    ),
    (  # a storm
        (
            "One night a great storm came to {place}.",
            "One evening the wind began to blow and dark clouds came.",
        ),
        (
            "The rain fell, the thunder rolled, and {n} was afraid.",
            "The thunder was loud, and {n} hid under a blanket.",
        ),
        ("Suddenly there was a knock at the door.", "Then {n} heard a quiet voice outside."),
        (
            "It was {a_friend} called {f}, wet and cold.",
            "There stood {a_friend} named {f}, who was very wet.",
        ),
        ('"Please come in," said {n}. "It is warm in here."', '"Come in and sit by the fire," said {n}.'),
        (
            "{n} made hot soup, and they told each other stories all night.",
            "They drank warm tea and listened to the rain together.",
        ),
        (
            "In the morning the storm was over and the sky was clear.",
            "When the sun came up, the storm was gone.",
        ),
        (
            '"Thank you," said {f}. "Now I have a friend."',
            '"With a friend, a storm is not so bad," said {f}.',
        ),
    ),
    (  # wanting to learn
        (
            "{n} wanted to learn how to sing.",
            "More than anything, {n} wanted to learn to dance.",
            "{n} had a dream: to learn how to swim.",
        ),
        ('"You will never learn that," said the others.', "The others laughed and said it was too hard."),
        ("But {n} did not give up.", "{n} was sad, but only for a little while."),
        (
            "One day {n} asked {a_friend} called {f} for help.",
            "Then {n} met {a_friend} named {f}, who was very wise.",
        ),
        (
            '"You must practise a little every day," said {f}.',
            '"Try again, and again, and then once more," said {f}.',
        ),
        (
            "So {n} practised in the morning and in the evening.",
            "So {n} tried every single day, in sun and in rain.",
        ),
        ("After a while it was not so hard any more.", "Slowly, step by step, it became easier."),
        (
            "At the end of the summer, everyone came to watch, and they cheered for {n}.",
            "In the end even the others clapped, and {n} was proud.",
        ),
    ),
    (  # sharing
        ("One winter there was very little food near {place}.", "One year the winter was long and cold."),
        ("{n} had only one small basket of nuts left.", "{n} had just one loaf of bread left."),
        (
            "Then {a_friend} called {f} came by and looked very hungry.",
            "One day {a_friend} named {f} sat by the road, too tired to walk.",
        ),
        ('"I have not eaten for two days," said {f}.', '"Do you have something to eat?" asked {f}.'),
        ("{n} thought for a moment and then smiled.", "{n} did not have much, but {n} had a good heart."),
        ('"Half of it is yours," said {n}.', '"Let us share," said {n}.'),
        (
            "When spring came, {f} returned with a basket full of fruit.",
            "In spring {f} came back with honey and sweet cherries.",
        ),
        (
            "They shared a big meal, and nobody was hungry any more.",
            "From then on they shared everything they had.",
        ),
    ),
    (  # a treasure
        ("One day {n} found an old map.", "One day {n} found {a_colour} bottle with a map inside."),
        (
            "The map showed the way to a treasure near {place}.",
            "On the map there was a red cross, not far from {place}.",
        ),
        (
            "{n} asked {a_friend} called {f} to come along.",
            "{n} did not want to go alone and asked {f}, {a_friend}, for help.",
        ),
        (
            "They crossed a river, climbed a hill and walked through a dark wood.",
            "They walked all day, over hills and through a deep forest.",
        ),
        (
            "At last they came to a big stone and began to dig.",
            "In the evening they reached the place and dug a deep hole.",
        ),
        (
            "They found a box, but there was no gold in it.",
            "There was a chest, and inside it lay only {a_thing}.",
        ),
        (
            '"The real treasure is our adventure," said {f}.',
            '"We found no gold, but we had a wonderful day," said {f}.',
        ),
        ("{n} laughed, and they walked home under the stars.", "They sang all the way home."),
    ),
    (  # a promise of help
        ("One day {n} heard a cry for help.", "One afternoon {n} heard somebody calling near {place}."),
        (
            "It was {a_friend} called {f}, who had fallen into a deep hole.",
            "{f}, {a_friend}, was stuck between two rocks.",
        ),
        ('"Help me, please!" cried {f}.', '"I cannot get out!" called {f}.'),
        ("{n} was small, but {n} had an idea.", "{n} thought hard and then had a clever idea."),
        ("{n} found a long rope and tied it to a tree.", "{n} took a strong branch and held it out."),
        (
            '"Hold on tight!" said {n} and pulled with all might.',
            '"Do not let go!" called {n} and pulled as hard as possible.',
        ),
        ("Slowly, very slowly, {f} came out.", "At last {f} was free again."),
        (
            '"You saved me," said {f}. "I will never forget it."',
            '"Thank you, {n}," said {f}. "You are very brave."',
        ),
    ),
    (  # a gift
        (
            "It was almost the birthday of {f}, {a_friend} and the best friend of {n}.",
            "{n} wanted to give a present to {f}, {a_friend} who lived nearby.",
        ),
        ("But {n} had no money at all.", "But what could {n} give?"),
        (
            "{n} went to {place} and thought about it for a long time.",
            "{n} walked around and looked at everything.",
        ),
        ("Then {n} found {a_colour} {thing} that nobody wanted.", "There, in the grass, lay an old {thing}."),
        ("{n} cleaned it, painted it and put a ribbon around it.", "{n} worked all night to make it shine."),
        (
            "On the birthday {f} opened the present with big eyes.",
            "The next day {n} gave it to {f} with a smile.",
        ),
        ('"This is the best gift of all, because you made it," said {f}.', '"It is beautiful!" said {f}.'),
        ("They ate cake and laughed until the evening.", "They celebrated together until the moon came up."),
    ),
    (  # far from home
        (
            "One day {n} walked too far and lost the way home.",
            "One day {n} followed a butterfly and forgot the way.",
        ),
        ("The trees were tall and everything looked the same.", "It grew dark, and nothing looked familiar."),
        ("{n} sat down on a stone and began to cry.", "{n} was scared, but took a deep breath."),
        ("Then {a_friend} called {f} came along the path.", "Soon {a_friend} named {f} appeared."),
        ('"Are you lost?" asked {f} kindly.', '"Can I help you?" asked {f}.'),
        ('"I want to go home," said {n}.', '"I cannot find my home," said {n}.'),
        (
            "{f} knew the way and walked with {n} through the night.",
            '"Follow me," said {f}, and they walked side by side.',
        ),
        (
            "When they saw the lights of the house, {n} jumped for joy.",
            "Before sunrise they reached the door, and {n} was home again.",
        ),
    ),
)
_ENDINGS = (
    "From that day on, {n} and {f} were the best of friends.",
    "And they lived happily ever after.",
    "And {n} never forgot that a good friend is the greatest treasure.",
    "Since then {n} and {f} meet every day near {place}.",
    "That night {n} fell asleep with a smile.",
)


def story(rng: random.Random, people: Cast) -> str:
    """One story in three paragraphs about `people`."""
    slots = people.slots()
    plot = rng.choice(_PLOTS)
    start = [fill(rng, _OPENINGS, **slots), fill(rng, _LIVES, **slots)]
    steps = [fill(rng, step, **slots) for step in plot]
    middle, last = steps[:4], [*steps[4:], fill(rng, _ENDINGS, **slots)]
    return "\n\n".join(" ".join(map(capitalised, part)) for part in (start, middle, last))


_ASK = (
    "Tell me a story about {a}.",
    "Tell me a story about {a}.",
    "Write a story about {a}.",
    "Can you tell me a story about {a}?",
    "Please tell me a little story about {a}.",
    "Write a short story about {a}.",
    "I want to hear a story about {a}.",
    "A story about {a}, please.",
    "Do you know a story about {a}?",
    "Could you write a tale about {a}?",
    "Story about {a}",
)
_ASK_NAMED = (
    "Tell me a story about {a} called {n}.",
    "Write a story about {a} named {n}.",
    "Tell me about {a} called {n}.",
    "Write a short story about {n} the {h}.",
    "Tell me a story about {n}, {a}.",
)
_ASK_MOOD = (
    "Tell me a story about {m} {h}.",
    "Write a story about {m} {h}.",
    "Can you tell me a story about {m} {h}?",
    "Tell me about {m} {h} called {n}.",
)
_ASK_TWO = (
    "Tell me a story about {a} and {b}.",
    "Write a story about {a} and {b}.",
    "Tell me a tale of {a} and {b}.",
)
_ASK_PLACE = ("Tell me a story about {a} near {p}.", "Write a story about {a} near {p}.")
_ASK_ANY = (
    "Tell me a story.",
    "Tell me a story.",
    "Tell me a bedtime story.",
    "Can you tell me a story?",
    "Write a story.",
    "Please tell me a short story.",
    "I would like to hear a story.",
    "Do you know a story?",
    "Make up a story.",
    "A story, please.",
    "Tell me a fairy tale.",
)
_ASK_AGAIN = (
    "Tell me another story.",
    "Another story, please.",
    "One more story, please.",
    "Tell me another one.",
    "Again, please!",
)
_WHO = (
    "Who was the story about?",
    "Who is the story about?",
    "What was the story about?",
    "Who is the hero of the story?",
)
_WHO_FRIEND = (
    "Who helped in the story?",
    "Who was the friend in the story?",
    "What is the name of the friend?",
)


def told(rng: random.Random) -> list[Turn]:
    """A story on request, with what was asked for in it; sometimes another one, or a question about it."""
    people = cast(rng)
    slots = {
        "a": article(people.hero),
        "n": people.name,
        "h": people.hero,
        "m": article(people.mood),
        "b": article(people.friend),
        "p": people.place,
    }
    ask = rng.choices((_ASK, _ASK_NAMED, _ASK_MOOD, _ASK_TWO, _ASK_PLACE, _ASK_ANY), (6, 2, 2, 2, 1, 2))[0]
    turns = [Turn(user=fill(rng, ask, **slots), assistant=story(rng, people))]
    after = rng.random()
    if after < 0.12:
        turns.append(
            Turn(
                user=rng.choice(_WHO),
                assistant=f"The story was about {article(people.hero)} called {people.name}.",
            )
        )
    elif after < 0.18:
        turns.append(
            Turn(
                user=rng.choice(_WHO_FRIEND),
                assistant=f"The friend was {article(people.friend)} called {people.friend_name}.",
            )
        )
    elif after < 0.26:
        turns.append(Turn(user=rng.choice(_ASK_AGAIN), assistant=story(rng, cast(rng))))
    return turns


def plain(rng: random.Random) -> str:
    """A story as bare text, for completion without a chat."""
    return story(rng, cast(rng))
