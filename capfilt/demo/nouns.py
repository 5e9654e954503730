"""The words of the emoji world: what is in a scene, in which size and colour, on what.

The nouns are easy to tell apart at twenty pixels: one feline, no rat beside the mouse, no tomato
beside the apple. None is also a colour, and each has a singular.
"""

from __future__ import annotations

from dataclasses import dataclass

from capfilt.errors import ConfigError

# A plural that is not noun + s stands after a slash.
_DRAWN = """
    dog 🐶, cat 🐱, mouse/mice 🐭, rabbit 🐰, fox/foxes 🦊, bear 🐻, panda 🐼, lion 🦁,
    cow 🐮, pig 🐷, frog 🐸, unicorn 🦄, chick 🐥, penguin 🐧, owl 🦉, elephant 🐘,
    sheep/sheep 🐑, snake 🐍, turtle 🐢, fish/fish 🐟, octopus/octopuses 🐙, crab 🦀,
    snail 🐌, butterfly/butterflies 🦋, flamingo 🦩, goose/geese 🪿, apple 🍎, banana 🍌,
    strawberry/strawberries 🍓, pineapple 🍍, watermelon 🍉, carrot 🥕, pizza 🍕,
    hamburger 🍔, donut 🍩, mushroom 🍄, avocado 🥑, bus/buses 🚌, tractor 🚜, bicycle 🚲,
    train 🚂, airplane ✈, rocket 🚀, sailboat ⛵, tree 🌳, cactus/cactuses 🌵, sunflower 🌻,
    leaf/leaves 🍁, star ⭐, key 🔑, clock ⏰, camera 📷, guitar 🎸, drum 🥁, crown 👑,
    house 🏠, tent ⛺, snowman/snowmen ⛄, robot 🤖, pumpkin 🎃
"""
# These come in each of `THING_COLOURS`.
_DYED = """
    balloon 🎈, car 🚗, umbrella ☂, heart ❤, book 📕, bucket 🪣, backpack 🎒, teapot 🫖,
    dress/dresses 👗
"""

# The hue in degrees that the colourful part of a drawing gets, and the factor of its brightness.
THING_COLOURS = {
    "red": (4, 1.0), "yellow": (48, 1.2), "green": (134, 0.8), "blue": (214, 1.0),
    "purple": (282, 1.0),
}  # fmt: skip
BACKGROUND_COLOURS = {
    "white": (248, 248, 244), "gray": (168, 172, 178), "red": (222, 104, 98),
    "orange": (246, 172, 96), "yellow": (250, 232, 130), "green": (138, 206, 140),
    "blue": (126, 182, 240), "purple": (172, 142, 218), "pink": (250, 190, 214),
}  # fmt: skip
PATTERNS = ("striped", "dotted", "checkered")
SIZES = {"small": 0.23, "big": 0.40}  # the longer side of a thing, as a share of the picture's
NUMBERS = {2: "two", 3: "three", 4: "four"}


@dataclass(frozen=True)
class Noun:
    """A kind of thing."""

    name: str
    plural: str
    emoji: str
    colours: tuple[str, ...]  # that it comes in; none for a thing with colours of its own


def _read(table: str, colours: tuple[str, ...]) -> list[Noun]:
    nouns = []
    for entry in table.split(","):
        names, emoji = entry.split()
        name, _, plural = names.partition("/")
        nouns.append(Noun(name, plural or f"{name}s", emoji, colours))
    return nouns


NOUNS = {noun.name: noun for noun in [*_read(_DRAWN, ()), *_read(_DYED, tuple(THING_COLOURS))]}


def choose_nouns(count: int) -> tuple[str, ...]:
    """So many of `NOUNS`, evenly from all of the list: a smaller world, with things that are dyed.

    Raises:
        ConfigError: Fewer than four, or more than there are.
    """
    names = tuple(NOUNS)
    if not 4 <= count <= len(names):
        raise ConfigError(f"nouns: between 4 and {len(names)}, is {count}")
    return tuple(names[number * len(names) // count] for number in range(count))


def article(following: str) -> str:
    """The indefinite article before a word.

    >>> article("owl"), article("unicorn"), article("big")
    ('an', 'a', 'a')
    """
    return "an" if following[0] in "aeiou" and not following.startswith("uni") else "a"
