"""Everyday facts: colours, animals, opposites, categories, jobs, simple definitions."""

from __future__ import annotations

from .families import Family
from .turns import table

_COLOURS = table("""
the sky: blue; the sea: blue; grass: green; a leaf: green; snow: white; milk: white; a banana: yellow
the sun: yellow; a lemon: yellow; a strawberry: red; a tomato: red; blood: red; a carrot: orange
an orange: orange; a pumpkin: orange; coal: black; the night sky: black; chocolate: brown; a bear: brown
wood: brown; an elephant: grey; a mouse: grey; a flamingo: pink; a pig: pink; a plum: purple
a frog: green; a cucumber: green; a crow: black; a swan: white; a fire engine: red; a cloud: white
salt: white; sugar: white; a cherry: red; a ruby: red; an emerald: green; gold: yellow; a rose: red
spinach: green; a polar bear: white; corn: yellow; a fox: orange; sand: yellow; rice: white
a blueberry: blue; honey: golden; the ocean: blue; a tree: green; an apple: red; ice: white; a lime: green
""")

_SOUNDS = table("""
dog: woof; cat: meow; cow: moo; pig: oink; sheep: baa; duck: quack; horse: neigh; lion: roar; frog: croak
bee: buzz; owl: hoot; mouse: squeak; snake: hiss; hen: cluck; rooster: cock-a-doodle-doo; goose: honk
crow: caw; donkey: hee-haw; wolf: howl; bear: growl; goat: bleat; bird: tweet; elephant: trumpet
tiger: roar
""")

_YOUNG = table("""
dog: puppy; cat: kitten; cow: calf; horse: foal; sheep: lamb; pig: piglet; hen: chick; duck: duckling
goat: kid; lion: cub; bear: cub; deer: fawn; frog: tadpole; goose: gosling; swan: cygnet; kangaroo: joey
rabbit: kit; owl: owlet; elephant: calf; whale: calf; fox: cub; wolf: pup; seal: pup
butterfly: caterpillar; eagle: eaglet
""")

_HOMES = table("""
bird: a nest; bee: a hive; dog: a kennel; rabbit: a burrow; fox: a den; bear: a cave; spider: a web
horse: a stable; pig: a sty; fish: the water; lion: the savanna; penguin: the cold south
camel: the desert; monkey: the trees; frog: a pond; owl: a hollow tree; ant: an anthill; beaver: a lodge
whale: the ocean; cow: a barn; snail: its shell; mole: a tunnel under the ground; polar bear: the Arctic
crab: the seashore; squirrel: a tree; eagle: a nest
""")

_LEGS = table("""
dog: four legs; cat: four legs; cow: four legs; horse: four legs; bird: two legs; hen: two legs
spider: eight legs; ant: six legs; bee: six legs; butterfly: six legs; snake: no legs; fish: no legs
person: two legs; duck: two legs; elephant: four legs; octopus: eight arms; crab: ten legs
frog: four legs; snail: no legs; lion: four legs; table: four legs; penguin: two legs; worm: no legs
mouse: four legs; beetle: six legs
""")

_DIETS = table("""
cows: grass; rabbits: grass and carrots; bears: fish, berries and honey; cats: fish and mice
dogs: meat and dog food; monkeys: fruit and leaves; pandas: bamboo; squirrels: nuts; lions: meat
bees: nectar; birds: seeds and worms; horses: grass and hay; mice: seeds and cheese; pigs: almost anything
frogs: insects; owls: mice; koalas: leaves; elephants: grass, leaves and fruit; penguins: fish
caterpillars: leaves; goats: grass and leaves; sheep: grass; giraffes: leaves from tall trees
wolves: meat; spiders: insects; ducks: plants and small insects; whales: tiny sea animals
""")

_OPPOSITES = table("""
hot: cold; big: small; tall: short; fast: slow; happy: sad; up: down; left: right; open: closed
day: night; old: young; hard: soft; heavy: light; full: empty; wet: dry; loud: quiet; clean: dirty
rich: poor; strong: weak; early: late; good: bad; black: white; long: short; thick: thin; high: low
near: far; inside: outside; push: pull; start: stop; begin: end; win: lose; buy: sell; give: take
love: hate; true: false; yes: no; always: never; first: last; top: bottom; front: back; in: out; on: off
light: dark; sweet: sour; smooth: rough; sharp: blunt; wide: narrow; deep: shallow; awake: asleep
brave: afraid; easy: difficult; cheap: expensive; same: different; before: after; summer: winter
morning: evening; north: south; east: west; question: answer; friend: enemy; laugh: cry; sit: stand
come: go; remember: forget; find: lose; more: less; many: few; kind: unkind; polite: rude; calm: nervous
safe: dangerous; cold: hot; small: big; slow: fast; sad: happy; down: up; right: left; night: day
young: old; soft: hard; dry: wet; quiet: loud; dirty: clean; poor: rich; weak: strong; late: early
bad: good; white: black; low: high; far: near; never: always; last: first; dark: light; winter: summer
south: north; west: east; empty: full; difficult: easy
""")

_CATEGORIES = table("""
apple: fruit; banana: fruit; pear: fruit; grape: fruit; cherry: fruit; mango: fruit; carrot: vegetable
potato: vegetable; onion: vegetable; cabbage: vegetable; dog: animal; cat: animal; lion: animal
elephant: animal; sparrow: bird; eagle: bird; penguin: bird; owl: bird; salmon: fish; shark: fish
ant: insect; bee: insect; butterfly: insect; rose: flower; tulip: flower; daisy: flower; oak: tree
pine: tree; guitar: musical instrument; piano: musical instrument; violin: musical instrument
drum: musical instrument; hammer: tool; saw: tool; chair: piece of furniture; table: piece of furniture
bed: piece of furniture; car: vehicle; bus: vehicle; bicycle: vehicle; shirt: piece of clothing
hat: piece of clothing; coat: piece of clothing; circle: shape; square: shape; triangle: shape
""")

_KINDS = table("""
red: colour; blue: colour; green: colour; Monday: day of the week; Friday: day of the week; May: month
July: month; Mars: planet; Venus: planet; Earth: planet; gold: metal; iron: metal; silver: metal
milk: drink; tea: drink; coffee: drink; football: sport; tennis: sport; France: country; Japan: country
Italy: country; Paris: city; Rome: city; London: city; Europe: continent; Africa: continent
Asia: continent; English: language; French: language
""")

_JOBS = table("""
baker: bakes bread and cakes; doctor: helps sick people to get well; teacher: helps people to learn
farmer: grows food and looks after animals; pilot: flies aeroplanes; sailor: works on a ship
cook: prepares meals; painter: paints pictures or walls; carpenter: makes things out of wood
tailor: makes and mends clothes; gardener: looks after plants; firefighter: puts out fires
police officer: keeps people safe; dentist: looks after teeth; nurse: takes care of patients
singer: sings songs; writer: writes books; plumber: repairs water pipes
mechanic: repairs cars and machines; vet: looks after sick animals; postman: brings letters and parcels
librarian: looks after the books in a library; astronaut: travels into space; fisherman: catches fish
shepherd: looks after sheep; programmer: writes programs for computers
scientist: studies how the world works; bus driver: drives people around town; musician: plays music
architect: plans houses; judge: decides in a court
""")

_DEFINITIONS = table("""
cat: a small furry animal that many people keep as a pet
dog: a friendly animal that many people keep as a pet
fox: a clever wild animal with orange fur and a bushy tail
owl: a bird that is awake at night and has big round eyes
elephant: a very large grey animal with a long trunk; bee: a small insect that makes honey
whale: a huge animal that lives in the ocean
penguin: a black and white bird that swims well but cannot fly
river: a long stream of water that flows to the sea; mountain: a very high piece of land
island: land with water all around it; lake: a large area of water with land around it
forest: a large area with many trees; desert: a dry place with very little rain
volcano: a mountain that can throw out hot melted rock
rainbow: a band of colours in the sky that appears when the sun shines through rain
cloud: a mass of tiny drops of water that floats in the sky
star: a huge ball of hot gas that shines in the night sky; moon: a round body that moves around a planet
planet: a large round body that moves around a star; book: a set of pages with words or pictures to read
computer: a machine that works with information
telephone: a device for talking to people who are far away
bicycle: a vehicle with two wheels that you move with your feet; train: a row of wagons that runs on rails
boat: a small vehicle that travels on water; bridge: a structure that lets you cross a river or a road
school: a place where children learn; library: a place where you can read and borrow books
hospital: a place where sick people are cared for; market: a place where people buy and sell things
museum: a place where interesting old things are shown
umbrella: a thing you hold over your head to stay dry in the rain; clock: a machine that shows the time
key: a small piece of metal that opens a lock; window: an opening in a wall that lets in light
mirror: a piece of glass in which you can see yourself; hammer: a tool for hitting nails
piano: a large musical instrument with black and white keys; guitar: a musical instrument with strings
garden: a place where flowers and vegetables grow; farm: a place where food is grown and animals are kept
friend: a person you like and trust; dragon: a creature in stories that can fly and breathe fire
robot: a machine that can do some jobs by itself; rabbit: a small animal with long ears that hops
bear: a big strong animal with thick fur; mouse: a very small animal with a long tail
frog: a small green animal that jumps and can swim; hedgehog: a small animal with sharp spines
squirrel: a small animal with a bushy tail that collects nuts; duck: a bird that swims on ponds and lakes
goat: an animal with horns that climbs well; lion: a big wild cat; turtle: a slow animal with a hard shell
wolf: a wild animal that looks like a big dog; deer: a shy animal of the forest
horse: a large animal that people can ride; cow: a large animal that gives milk
pig: a farm animal with a round nose; sheep: a farm animal that gives wool; hen: a bird that lays eggs
monkey: a clever animal that climbs in trees; tiger: a big wild cat with stripes
giraffe: a very tall animal with a long neck; butterfly: an insect with colourful wings
snail: a slow little animal that carries its house
dolphin: a clever animal that lives in the sea and loves to jump
crab: an animal with a hard shell and two claws; parrot: a colourful bird that can learn to speak
camel: an animal of the desert with a hump
kangaroo: an animal that jumps and carries its young in a pouch
panda: a black and white bear that eats bamboo; snake: a long animal without legs
fish: an animal that lives in water; octopus: a sea animal with eight arms
spider: a small animal with eight legs that spins webs; zebra: a wild animal with black and white stripes
ball: a round thing to play with; hat: a thing you wear on your head
cup: a small bowl with a handle for drinking; lamp: a thing that gives light
bell: a metal thing that rings; kite: a toy that flies in the wind; box: a thing to keep other things in
letter: a written message to somebody; drum: a musical instrument that you hit
flute: a musical instrument that you blow into; car: a vehicle with four wheels and an engine
bus: a big vehicle for many people; plane: a machine that flies in the air
house: a building where people live; castle: a large old building with strong walls
tree: a tall plant with a trunk and leaves; flower: the colourful part of a plant
apple: a round fruit that grows on trees; banana: a long yellow fruit
cake: a sweet food that people eat at parties; soup: a warm liquid food
song: words and music that people sing; picture: a drawing, a painting or a photo
story: words about things that happened or that somebody made up; baby: a very young child
king: a man who rules a country; queen: a woman who rules a country; village: a very small town
city: a very large town; beach: a place with sand beside the sea
storm: very bad weather with strong wind and rain
dream: pictures and stories in your mind while you sleep; holiday: a time when you do not have to work
language model: a program that continues text one piece at a time
token: a small piece of text that a language model reads or writes
""")

_PLURALS = table("""
cat: cats; dog: dogs; mouse: mice; child: children; foot: feet; tooth: teeth; man: men; woman: women
goose: geese; leaf: leaves; wolf: wolves; knife: knives; city: cities; baby: babies; box: boxes
bus: buses; fish: fish; sheep: sheep; house: houses; tree: trees; book: books; cherry: cherries
potato: potatoes; tomato: tomatoes; person: people; fox: foxes; apple: apples; bird: birds
flower: flowers; star: stars; story: stories; country: countries; day: days; wish: wishes
""")

_MATERIALS = table("""
bread: flour, water and yeast; a window: glass; a book: paper; a table: wood; a ring: gold or silver
ice: frozen water; cheese: milk; butter: cream; wine: grapes; chocolate: cocoa beans; a jumper: wool
a coin: metal; a candle: wax; paper: wood; an omelette: eggs; a snowman: snow; a sandcastle: sand
apple juice: apples; jam: fruit and sugar; a brick: clay; a tyre: rubber
""")

_PURPOSES = table("""
a knife: cutting; a pen: writing; scissors: cutting paper; a broom: sweeping the floor; a cup: drinking
a spoon: eating soup; a bed: sleeping; a chair: sitting; a lamp: giving light; an oven: baking
a fridge: keeping food cold; soap: washing; a towel: drying; a key: opening locks; a hammer: hitting nails
a ladder: climbing; a map: finding the way; a clock: telling the time
an umbrella: staying dry in the rain; a needle: sewing; a camera: taking pictures
a telephone: talking to people far away; a boat: travelling on water; a bag: carrying things
a comb: combing hair; a toothbrush: brushing teeth; a pillow: resting your head
""")

FAMILIES = (
    Family(
        rows=_COLOURS,
        questions=(
            "What colour is {x}?",
            "What colour is {x}?",
            "What color is {x}?",
            "Which colour is {x}?",
            "What colour does {x} have?",
            "What is the colour of {x}?",
            "What's the colour of {x}?",
            "Tell me the colour of {x}.",
            "What is the color of {x}?",
            "Which color does {x} have?",
        ),
        answer="{x} is {y}.",
        follow_ups=("And {x}?", "What about {x}?", "And what colour is {x}?", "How about {x}?"),
        weight=3.5,
    ),
    Family(
        rows=_SOUNDS,
        questions=(
            "What sound does {a_x} make?",
            "What sound do {xs} make?",
            "What does {a_x} say?",
            "What noise does {a_x} make?",
            "Which sound does {a_x} make?",
            "How does {a_x} sound?",
            "What sound do you hear from {a_x}?",
        ),
        answer='{a_x} says "{y}".',
        follow_ups=("And {a_x}?", "What about {a_x}?", "And what does {a_x} say?"),
        weight=1.5,
    ),
    Family(
        rows=_YOUNG,
        questions=(
            "What is a baby {x} called?",
            "What do you call a baby {x}?",
            "What is a young {x} called?",
            "What's the name for a baby {x}?",
            "How do you call a young {x}?",
        ),
        answer="A baby {x} is called {a_y}.",
        brief="{a_y}.",
        follow_ups=("And a baby {x}?", "What about {a_x}?", "And {a_x}?"),
        weight=1.5,
    ),
    Family(
        rows=_HOMES,
        questions=(
            "Where does {a_x} live?",
            "Where do {xs} live?",
            "Where do {xs} live?",
            "What is the home of {a_x}?",
            "Where would I find {a_x}?",
            "Where can {a_x} live?",
        ),
        answer="{a_x} lives in {y}.",
        follow_ups=("And {a_x}?", "What about {a_x}?", "And where does {a_x} live?"),
    ),
    Family(
        rows=_LEGS,
        questions=(
            "How many legs does {a_x} have?",
            "How many legs do {xs} have?",
            "How many legs has {a_x} got?",
            "What number of legs does {a_x} have?",
            "Count the legs of {a_x}.",
        ),
        answer="{a_x} has {y}.",
        follow_ups=("And {a_x}?", "What about {a_x}?", "How many does {a_x} have?"),
        weight=1.5,
    ),
    Family(
        rows=_DIETS,
        questions=(
            "What do {x} eat?",
            "What do {x} like to eat?",
            "What is the food of {x}?",
            "What should {x} eat?",
        ),
        answer="{x} eat {y}.",
        follow_ups=("And {x}?", "What about {x}?", "And what do {x} eat?"),
        weight=1.5,
    ),
    Family(
        rows=_OPPOSITES,
        questions=(
            "What is the opposite of {x}?",
            "What's the opposite of {x}?",
            "Tell me the opposite of {x}.",
            "Give me the opposite of {x}.",
            "The opposite of {x} is what?",
            "Opposite of {x}?",
            'What is the opposite of "{x}"?',
            "Which word means the opposite of {x}?",
            "What is the antonym of {x}?",
        ),
        answer="The opposite of {x} is {y}.",
        follow_ups=("And of {x}?", "And {x}?", "What about {x}?", "And the opposite of {x}?"),
        weight=4.0,
    ),
    Family(
        rows=_CATEGORIES,
        questions=(
            "What kind of thing is {a_x}?",
            "What sort of thing is {a_x}?",
            "Which group does {a_x} belong to?",
            "What type of thing is {a_x}?",
            "Is {a_x} a fruit, an animal or something else?",
        ),
        answer="{a_x} is {a_y}.",
        brief="{a_y}.",
        follow_ups=("And {a_x}?", "What about {a_x}?"),
    ),
    Family(
        rows=_KINDS,
        questions=("What is {x}?", "What kind of thing is {x}?", "What's {x}?", "What sort of thing is {x}?"),
        answer="{x} is {a_y}.",
        brief="{a_y}.",
        weight=0.7,
    ),
    Family(
        rows=_JOBS,
        questions=(
            "What does {a_x} do?",
            "What is the job of {a_x}?",
            "What is {a_x}?",
            "Tell me what {a_x} does.",
            "What does {a_x} do all day?",
            "Who is {a_x}?",
        ),
        answer="{a_x} {y}.",
        follow_ups=("And {a_x}?", "What about {a_x}?", "And what does {a_x} do?"),
        weight=1.5,
    ),
    Family(
        rows=_DEFINITIONS,
        questions=(
            "What is {a_x}?",
            "What is {a_x}?",
            "What's {a_x}?",
            "Explain what {a_x} is.",
            "Can you explain what {a_x} is?",
            'What does the word "{x}" mean?',
            "What does {x} mean?",
            "Define {x}.",
            "Describe {a_x}.",
            "Tell me about {a_x}.",
            "Tell me what {a_x} is.",
        ),
        answer="{a_x} is {y}.",
        follow_ups=("And {a_x}?", "What about {a_x}?", "And what is {a_x}?"),
        weight=3.5,
    ),
    Family(
        rows=_PLURALS,
        questions=(
            "What is the plural of {x}?",
            "What's the plural of {x}?",
            'What is the plural of "{x}"?',
            "How do you say {x} in the plural?",
            "One {x}, two what?",
            "Tell me the plural of {x}.",
        ),
        answer="The plural of {x} is {y}.",
        follow_ups=("And of {x}?", "And {x}?", "What about {x}?"),
    ),
    Family(
        rows=_MATERIALS,
        questions=(
            "What is {x} made of?",
            "What do you need to make {x}?",
            "What's {x} made of?",
            "What is in {x}?",
        ),
        answer="{x} is made of {y}.",
        follow_ups=("And {x}?", "What about {x}?", "And what is {x} made of?"),
    ),
    Family(
        rows=_PURPOSES,
        questions=(
            "What is {x} for?",
            "What do you use {x} for?",
            "What can I do with {x}?",
            "Why do people need {x}?",
            "What is the use of {x}?",
        ),
        answer="You use {x} for {y}.",
        follow_ups=("And {x}?", "What about {x}?", "And what is {x} for?"),
    ),
)
