"""Word lists that several kinds of talk draw from."""

from __future__ import annotations

import random

from .turns import words

NAMES = words("""
Anna, Ben, Clara, David, Emma, Felix, Grace, Henry, Ida, Jack, Kate, Leo, Mia, Nora, Oscar, Paul, Rosa,
Sam, Tom, Lily, Max, Lucy, Tim, Sara, Peter, Julia, Alex, Maria, Daniel, Sophie, Omar, Aisha, Yuki, Ravi,
Elena, Hugo, Nina, Victor, Zoe, Finn, Ella, Noah, Amy, Adam, Alice, Bob, Carol, Eve, George, Hannah, Ivan,
Jane, Karl, Laura, Martin, Olga, Robert, Susan, Theo, William, John, Mary, James, Linda, Michael, Priya,
Chen, Fatima, Diego, Ingrid, Kofi
""")

PET_NAMES = words("""
Pip, Milo, Bella, Coco, Rusty, Luna, Teddy, Misty, Bruno, Daisy, Toby, Poppy, Rex, Nala, Biscuit, Pepper,
Willow, Hazel, Bramble, Sunny, Clover, Button, Maple, Ginger, Shadow, Dot, Fern, Olive, Pickle, Ziggy
""")

ANIMALS = words("""
fox, rabbit, bear, mouse, owl, frog, hedgehog, squirrel, cat, dog, duck, goat, lion, elephant, turtle,
wolf, deer, horse, cow, pig, sheep, hen, penguin, monkey, tiger, giraffe, bee, butterfly, snail, whale,
dolphin, crab, parrot, camel, kangaroo, panda, otter, badger, mole, beaver, donkey, crow, swan, seal,
zebra, crocodile, spider, ant, bat, snake, fish, octopus, koala, goose, kitten, puppy, lamb, sparrow,
robin, eagle
""")

CHARACTERS = words("""
boy, girl, king, queen, prince, princess, knight, wizard, witch, farmer, baker, fisherman, pirate, robot,
dragon, giant, fairy, sailor, painter, gardener, musician, teacher, doctor, shepherd, tailor, astronaut,
snowman, ghost, unicorn, monster, train, boat, cloud, star, tree, kite, teapot, clock, balloon, car,
computer, scientist, singer, carpenter, dancer, explorer, mermaid, toy soldier, little engine, lighthouse,
keeper, old man, old woman
""")

PLACES = words("""
the forest, the garden, the village, the mountain, the river, the beach, the farm, the castle, the lake,
the town, the island, the meadow, the hill, the valley, the market, the harbour, the school, the park,
the, old mill, the desert
""")

COLOURS = words("red, blue, green, yellow, orange, purple, pink, brown, black, white, grey, golden, silver")

FRUITS = words(
    "apples, pears, bananas, oranges, cherries, plums, grapes, peaches, lemons, strawberries, mangoes, kiwis"
)
VEGETABLES = words(
    "carrots, potatoes, onions, peas, beans, cabbage, spinach, tomatoes, pumpkins, leeks, peppers, corn"
)
FOODS = words("""
pizza, soup, bread, cheese, pasta, rice, salad, cake, pancakes, noodles, ice cream, chocolate, apple pie,
curry, fish, eggs, honey, sandwiches, porridge, cookies
""")
HOBBIES = words("""
reading, swimming, painting, singing, dancing, cooking, gardening, running, cycling, fishing, drawing,
hiking, skating, playing chess, playing the piano, playing football, knitting, climbing, sailing, baking
""")
OBJECTS = words("""
ball, key, hat, book, lamp, cup, spoon, ring, kite, bell, basket, map, coin, feather, shell, button, drum,
scarf, lantern, mirror, whistle, umbrella, box, letter, stone, flute, boot, blanket, ladder, pencil
""")
CITIES = words("""
Paris, London, Rome, Berlin, Madrid, Vienna, Oslo, Cairo, Tokyo, Delhi, Lima, Boston, Chicago, Sydney,
Toronto, Dublin, Prague, Athens, Lisbon, Warsaw, Hamburg, Munich, Milan, Zurich, Geneva, Lyon, Porto,
Krakow, Seattle, Osaka
""")

_ONSETS = words("b, br, c, ch, d, dr, f, g, gr, h, j, k, l, m, n, p, pr, r, s, sh, st, t, tr, v, w, z")
_VOWELS = words("a, e, i, o, u, ai, ee, oo")
_CODAS = ("", "", "l", "n", "r", "s", "k", "m", "x", "th")


def invented_word(rng: random.Random) -> str:
    """A pronounceable word of two or three syllables that means nothing: teaches copying, not recall."""
    parts = (
        rng.choice(_ONSETS) + rng.choice(_VOWELS) + rng.choice(_CODAS)
        for _ in range(rng.choice((1, 2, 2, 3)))
    )
    return "".join(parts)


def person(rng: random.Random) -> str:
    """A first name; one in five is invented so that the model learns to copy names it has never seen."""
    return invented_word(rng).capitalize() if rng.random() < 0.2 else rng.choice(NAMES)
