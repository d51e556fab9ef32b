"""Questions with one fixed answer each, asked in several ways."""

from __future__ import annotations

import random

from .turns import Turn, either, entries

_RAW = """
How many days are in a week? | How many days does a week have? | How many days are there in a week? = There
    are seven days in a week. = Seven.
How many months are in a year? | How many months does a year have? | How many months are there in a year? =
    There are twelve months in a year. = Twelve.
How many days are in a year? | How many days does a year have? | How long is a year? = There are 365 days in
    a year, and 366 in a leap year. = 365.
How many hours are in a day? | How many hours does a day have? | How long is a day? = There are 24 hours in
    a day. = 24.
How many minutes are in an hour? | How long is an hour? | How many minutes does an hour have? = There are 60
    minutes in an hour. = 60.
How many seconds are in a minute? | How long is a minute? | How many seconds does a minute have? = There are
    60 seconds in a minute. = 60.
How many seasons are there? | What are the seasons? | Name the four seasons. | What are the four seasons? =
    There are four seasons: spring, summer, autumn and winter. = Four.
What are the days of the week? | Name the days of the week. | List the days of the week. | Tell me the days
    of the week. = The days of the week are Monday, Tuesday, Wednesday, Thursday, Friday, Saturday and
    Sunday. =
What are the months of the year? | Name the months of the year. | List the months. | Tell me the twelve
    months. = The months are January, February, March, April, May, June, July, August, September, October,
    November and December. =
What are the colours of the rainbow? | Name the colours of the rainbow. | Which colours are in a rainbow? =
    The colours of the rainbow are red, orange, yellow, green, blue, indigo and violet. =
How many colours are in a rainbow? | How many colours does a rainbow have? = A rainbow has seven colours. =
    Seven.
What are the planets? | Name the planets. | List the planets of the solar system. | Which planets are there?
    = The planets are Mercury, Venus, Earth, Mars, Jupiter, Saturn, Uranus and Neptune. =
How many planets are there? | How many planets are in the solar system? = There are eight planets in the
    solar system. = Eight.
Which planet do we live on? | What planet do we live on? | What is the name of our planet? = We live on
    planet Earth. = Earth.
What is the largest planet? | Which planet is the biggest? | What is the biggest planet? = The largest
    planet in the solar system is Jupiter. = Jupiter.
What is the smallest planet? | Which planet is the smallest? = The smallest planet in the solar system is
    Mercury. = Mercury.
Which planet is red? | What is the red planet? | Which planet is called the red planet? = Mars is called the
    red planet. = Mars.
Which planet is closest to the sun? | What planet is nearest to the sun? = Mercury is the planet closest to
    the sun. = Mercury.
What is the sun? | What is the Sun? | Tell me about the sun. = The sun is a star. It gives us light and
    warmth. = A star.
What is the moon? | Tell me about the moon. | What is the Moon? = The moon is a round body that moves around
    the Earth. = A round body.
What is the largest animal? | What is the biggest animal in the world? | Which animal is the biggest? = The
    largest animal is the blue whale. = The blue whale.
What is the tallest animal? | Which animal is the tallest? = The tallest animal is the giraffe. = The
    giraffe.
What is the fastest animal? | Which animal runs the fastest? | What is the fastest land animal? = The
    fastest land animal is the cheetah. = The cheetah.
What is the largest ocean? | Which ocean is the biggest? = The largest ocean is the Pacific Ocean. = The
    Pacific Ocean.
What is the highest mountain? | What is the highest mountain in the world? | Which mountain is the tallest?
    = The highest mountain in the world is Mount Everest. = Mount Everest.
What is the longest river? | Which river is the longest? | What is the longest river in the world? = The
    Nile is often called the longest river in the world. = The Nile.
How many continents are there? | How many continents does the Earth have? = There are seven continents. =
    Seven.
What are the continents? | Name the continents. | List the seven continents. = The continents are Africa,
    Antarctica, Asia, Australia, Europe, North America and South America. =
How many legs does a spider have? | How many legs do spiders have? = A spider has eight legs. = Eight.
How many fingers are on a hand? | How many fingers does a hand have? | How many fingers do I have on one
    hand? = A hand has five fingers. = Five.
How many toes do people have? | How many toes does a person have? = A person has ten toes. = Ten.
How many eyes does a person have? | How many eyes do people have? = A person has two eyes. = Two.
How many sides does a triangle have? | How many corners does a triangle have? = A triangle has three sides.
    = Three.
How many sides does a square have? | How many corners does a square have? = A square has four sides. = Four.
How many sides does a hexagon have? = A hexagon has six sides. = Six.
How many letters are in the alphabet? | How many letters does the alphabet have? = There are 26 letters in
    the English alphabet. = 26.
Say the alphabet. | Tell me the alphabet. | What is the alphabet? | Recite the alphabet. | List the letters
    of the alphabet. = A, B, C, D, E, F, G, H, I, J, K, L, M, N, O, P, Q, R, S, T, U, V, W, X, Y, Z. =
What are the vowels? | Name the vowels. | Which letters are vowels? = The vowels are A, E, I, O and U. =
What is the first letter of the alphabet? = The first letter of the alphabet is A. = A.
What is the last letter of the alphabet? = The last letter of the alphabet is Z. = Z.
What is the first month of the year? | Which month comes first? = The first month of the year is January. =
    January.
What is the last month of the year? | Which month comes last? = The last month of the year is December. =
    December.
What is the shortest month? | Which month is the shortest? = The shortest month is February. = February.
Which days are the weekend? | What days are the weekend? | What is the weekend? = The weekend is Saturday
    and Sunday. =
When is Christmas? | In which month is Christmas? = Christmas is in December. = In December.
In which season does it snow? | When does it snow? = It snows in winter. = In winter.
In which season do leaves fall? | When do the leaves fall? = Leaves fall in autumn. = In autumn.
When do flowers bloom? | In which season do flowers bloom? = Many flowers bloom in spring. = In spring.
Where does the sun rise? | In which direction does the sun rise? = The sun rises in the east. = In the east.
Where does the sun set? | In which direction does the sun set? = The sun sets in the west. = In the west.
Why is the sky blue? | Can you explain why the sky is blue? | How come the sky is blue? = The sky is blue
    because the air scatters the blue part of the sunlight more than the other colours. =
Why does it rain? | Where does rain come from? | How does rain form? = It rains when the tiny drops of water
    in clouds join together and become too heavy to float. =
Why do leaves fall in autumn? | Why do trees lose their leaves? = Trees lose their leaves in autumn to save
    water and energy for the winter. =
Why do we sleep? | Why do people sleep? | Why do I need sleep? = We sleep so that the body and the mind can
    rest. =
Why do birds fly south? | Why do birds fly away in winter? = Many birds fly south in winter to find warmth
    and food. =
Why do we eat? | Why do people eat? = We eat because food gives us energy and helps us to grow. =
Why is the sea salty? | Why is sea water salty? = The sea is salty because rivers carry salt from the rocks
    into it. =
Why do cats purr? | Why does a cat purr? = Cats often purr when they feel happy and safe. =
Why do dogs bark? | Why does a dog bark? = Dogs bark to talk to other dogs and to people. =
What do bees make? | What does a bee make? = Bees make honey. = Honey.
What do cows give us? | Where does milk come from? = Milk comes from cows. = Cows.
Where do eggs come from? | Which animal lays eggs? = Eggs come from hens and other birds. = Hens.
Where does bread come from? | Who makes bread? = A baker makes bread from flour, water and yeast. = A baker.
Where does honey come from? | Who makes honey? = Honey comes from bees. = Bees.
Where does wool come from? | Which animal gives us wool? = Wool comes from sheep. = Sheep.
What do plants need? | What do plants need to grow? | What does a plant need? = Plants need light, water,
    air and soil to grow. = Light, water, air and soil.
What freezes at zero degrees? | At what temperature does water freeze? | When does water freeze? = Water
    freezes at zero degrees Celsius. = Zero degrees Celsius.
At what temperature does water boil? | When does water boil? = Water boils at 100 degrees Celsius. = 100
    degrees Celsius.
What is ice? | What is frozen water called? = Ice is frozen water. = Frozen water.
What is snow? | Tell me about snow. = Snow is made of tiny crystals of ice that fall from the clouds. =
What is rain? | Tell me about rain. = Rain is water that falls from the clouds in drops. =
What is wind? | Tell me about the wind. = Wind is moving air. = Moving air.
What is water? | Tell me about water. = Water is a clear liquid that all living things need. =
What is love? | What does love mean? = Love is a warm and deep feeling of caring for someone. =
What is a friend for? | Why are friends important? = Friends share good times with us and help us in bad
    times. =
Which is bigger, an elephant or a mouse? | What is bigger, a mouse or an elephant? = An elephant is bigger
    than a mouse. = An elephant.
Which is faster, a car or a bicycle? | What is faster, a bicycle or a car? = A car is faster than a bicycle.
    = A car.
Which is heavier, a stone or a feather? | What is heavier, a feather or a stone? = A stone is heavier than a
    feather. = A stone.
Which is hotter, fire or ice? | What is hotter, ice or fire? = Fire is hotter than ice. = Fire.
Which is bigger, the sun or the moon? | Is the sun bigger than the moon? = The sun is much bigger than the
    moon. = The sun.
Can birds fly? | Do birds fly? = Yes, most birds can fly. = Yes.
Can fish fly? | Do fish fly? = No, fish swim in the water. = No.
Can penguins fly? | Do penguins fly? = No, penguins cannot fly, but they swim very well. = No.
Can dogs swim? | Do dogs swim? = Yes, most dogs can swim. = Yes.
Can cats climb trees? | Do cats climb trees? = Yes, cats can climb trees. = Yes.
Is the earth flat? | Is the Earth round? | What shape is the Earth? | Is the world round? = The Earth is
    round, almost like a ball. = Round.
Is ice cold? | Is ice hot or cold? = Ice is cold. = Cold.
Is fire hot? | Is fire hot or cold? = Fire is hot. = Hot.
Is a tomato a fruit? | Is a tomato a fruit or a vegetable? = A tomato is a fruit, but most people use it as
    a vegetable. = A fruit.
Is the sun a star? | Is the sun a planet? = The sun is a star. = A star.
Do you like the rain? | Do you like rain? = I cannot feel the rain, but I like the sound of the word. =
What should I wear when it is cold? | It is cold outside. What should I wear? = Wear a warm coat, a hat and
    a scarf. = A warm coat.
What should I wear when it rains? | It is raining. What should I take with me? = Take an umbrella and wear a
    raincoat. = A raincoat.
What do you say when you meet someone? | What should I say when I meet someone? = You say hello. = Hello.
What should I do if I am lost? | I am lost. What should I do? = Stay calm, look for a safe place and ask a
    kind person for help. =
Is it good to share? | Why should we share? = Yes, sharing makes other people happy and brings friends
    together. = Yes.
Is it healthy to eat fruit? | Why should I eat fruit? = Yes, fruit is healthy because it is full of
    vitamins. = Yes.
"""

_ENTRIES = entries(_RAW)


def trivia(rng: random.Random) -> list[Turn]:
    """One such question."""
    questions, answer, brief = rng.choice(_ENTRIES)
    return [Turn(user=rng.choice(either(questions)), assistant=answer, brief=brief or None)]
