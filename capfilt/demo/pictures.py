"""Pictures that the project draws itself: a few coloured shapes, a true caption, a web text.

A stand-in for a crawl, with its vices: a third of the web texts is of another picture, or junk, or
empty. What is true is known, so what a filter keeps can be compared with it. Everything follows
from the seed; the same seed draws the same bytes (with the same Pillow).
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image, ImageDraw

SIDE = 256  # pixels
_SCALE = 4  # drawn this much larger and reduced: edges without steps

COLOURS = {
    "red": (214, 58, 52), "orange": (240, 140, 40), "yellow": (243, 202, 62),
    "green": (62, 156, 92), "blue": (52, 104, 204), "purple": (134, 78, 178),
    "pink": (236, 130, 170), "brown": (134, 90, 58), "black": (38, 38, 44),
}  # fmt: skip
SHAPES = ("circle", "square", "triangle", "star")
SIZES = {"small": 0.1, "": 0.15, "big": 0.21}  # half the width, as a share of the side
_BACKGROUNDS = ((246, 244, 238), (222, 236, 246), (232, 244, 226), (250, 234, 220), (238, 232, 248))
_FRAMES = ("{}", "a picture of {}", "{} on a plain background", "photo: {}")
_JUNK = (
    "IMG_{n}.JPG", "click here to enlarge", "free shipping, buy now", "image {n}",
    "home | about us", "stock photo {n}", "untitled", "best price 2019", "DSC0{n}", "logo",
)  # fmt: skip
WORDS = (
    *COLOURS, *SHAPES, *filter(None, SIZES), "a", "an", "and", "above", "below", "left",
    "right", "to", "the", "of", "on", "plain", "background", "picture", "photo",
)  # fmt: skip


@dataclass(frozen=True)
class Thing:
    """One shape; `x` and `y` are its centre, in [0, 1] from the top left."""

    shape: str
    colour: str
    size: str
    x: float
    y: float

    def __str__(self) -> str:
        words = " ".join(filter(None, (self.size, self.colour, self.shape)))
        return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


@dataclass(frozen=True)
class Picture:
    """A picture in its folder, and what is said of it."""

    file: str  # within the folder
    caption: str  # true
    web_text: str
    web_kind: str  # true, other (of another picture), junk or empty


def make_pictures(folder: Path, count: int, seed: int = 0) -> list[Picture]:
    """Draw pictures into a folder, JPEG and some PNG.

    Args:
        folder: Made if absent.
        count: How many.
        seed: Decides everything.
    """
    folder.mkdir(parents=True, exist_ok=True)
    scenes = []
    for number in range(count):
        rng = random.Random(f"{seed}-{number}")
        things = _arrange(rng)
        image = _draw(things, rng)
        # One in five is a PNG, for formats to differ.
        file = f"{number:06d}.png" if rng.random() < 0.2 else f"{number:06d}.jpg"
        image.save(folder / file, quality=92)
        scenes.append((file, describe(things)))
    rng = random.Random(f"{seed}-texts")
    captions = [caption for _, caption in scenes]
    return [Picture(f, c, *_web_text(c, captions, rng)) for f, c in scenes]


def write_list(path: Path, pictures: list[Picture], base_url: str) -> None:
    """Write the Parquet list of a download: url, caption, and the truth as two more columns."""
    columns = {
        "url": [f"{base_url}/{picture.file}" for picture in pictures],
        "caption": [picture.web_text for picture in pictures],
        "true_caption": [picture.caption for picture in pictures],
        "web_kind": [picture.web_kind for picture in pictures],
    }
    pq.write_table(pa.table({name: pa.array(v, pa.string()) for name, v in columns.items()}), path)


def describe(things: list[Thing]) -> str:
    """The true caption of a scene.

    >>> describe([Thing("circle", "red", "", 0.5, 0.2), Thing("square", "blue", "big", 0.5, 0.8)])
    'a red circle above a big blue square'
    """
    if len(things) != 2:
        *most, last = map(str, things)
        return f"{', '.join(most)} and {last}" if most else last
    first, second = things
    across, down = second.x - first.x, second.y - first.y
    if abs(down) >= abs(across):
        return f"{first} {'above' if down > 0 else 'below'} {second}"
    return f"{first} to the {'left' if across > 0 else 'right'} of {second}"


def _arrange(rng: random.Random) -> list[Thing]:
    """One to three shapes, none alike, far enough apart that none is hidden."""
    count = rng.choices((1, 2, 3), (3, 5, 2))[0]
    things: list[Thing] = []
    while len(things) < count:
        size = rng.choice(list(SIZES))
        x, y = rng.uniform(0.22, 0.78), rng.uniform(0.22, 0.78)
        thing = Thing(rng.choice(SHAPES), rng.choice(list(COLOURS)), size, x, y)
        apart = all(
            math.hypot(x - t.x, y - t.y) > 1.3 * (SIZES[size] + SIZES[t.size]) for t in things
        )
        if apart and thing.colour not in {t.colour for t in things}:
            things.append(thing)
        elif rng.random() < 0.02:
            things.clear()  # two big ones in the middle leave no room for a third
    return things


def _draw(things: list[Thing], rng: random.Random) -> Image.Image:
    side = SIDE * _SCALE
    top, bottom = rng.choice(_BACKGROUNDS), rng.choice(_BACKGROUNDS)
    image = Image.new("RGB", (1, 2))
    image.putpixel((0, 0), top)
    image.putpixel((0, 1), bottom)
    image = image.resize((side, side), Image.Resampling.BILINEAR)
    draw = ImageDraw.Draw(image)
    for thing in things:
        x, y, half = thing.x * side, thing.y * side, SIZES[thing.size] * side
        _draw_shape(draw, thing.shape, x, y, half, COLOURS[thing.colour])
    return image.resize((SIDE, SIDE), Image.Resampling.LANCZOS)


def _draw_shape(
    draw: ImageDraw.ImageDraw, shape: str, x: float, y: float, half: float,
    colour: tuple[int, int, int],
) -> None:  # fmt: skip
    if shape == "circle":
        draw.ellipse((x - half, y - half, x + half, y + half), fill=colour)
        return
    # Points at equal angles from the top; a star's lie on two rings, a square's on its diagonals.
    corners, rings, turn = {
        "square": (4, (1.25, 1.25), math.pi / 4),
        "triangle": (3, (1.15, 1.15), 0.0),
        "star": (10, (1.15, 0.48), 0.0),
    }[shape]
    points = []
    for corner in range(corners):
        angle = turn + 2 * math.pi * corner / corners
        radius = half * rings[corner % 2]
        points.append((x + radius * math.sin(angle), y - radius * math.cos(angle)))
    draw.polygon(points, fill=colour)


def _web_text(caption: str, captions: list[str], rng: random.Random) -> tuple[str, str]:
    kind = rng.choices(("true", "other", "junk", "empty"), (64, 18, 14, 4))[0]
    if kind == "true":
        return rng.choice(_FRAMES).format(caption), kind
    if kind == "other":
        others = [c for c in captions if c != caption]
        if others:
            return rng.choice(_FRAMES).format(rng.choice(others)), kind
        kind = "junk"
    if kind == "junk":
        return rng.choice(_JUNK).format(n=rng.randrange(1000, 10_000)), kind
    return "", kind
