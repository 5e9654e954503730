"""What is in a picture of the emoji world: things on a background. Facts, drawn by a generator.

A scene has one to three groups; a group is one to four things of one noun, size and colour. No two
groups share a noun, so a noun names a group. Lengths are shares of the picture's side.
"""

from __future__ import annotations

import random
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from capfilt.demo.nouns import BACKGROUND_COLOURS, NOUNS, PATTERNS, SIZES

_Box = tuple[float, float, float, float]

_GROUPS = ((1, 2, 3), (30, 50, 20))
COUNTS = {1: 50, 2: 22, 3: 16, 4: 12}  # with how often each is drawn
_PITCH = 1.06  # from one thing of a group to the next, in sides of a thing
_CLEAR = 0.2  # by how much one direction from a group to another outweighs the other
# Where groups may lie: left, top, width, height. No two overlap, so no thing hides another.
_LEFT, _RIGHT = (0.0, 0.0, 0.5, 1.0), (0.5, 0.0, 0.5, 1.0)
_TOP, _BOTTOM = (0.0, 0.0, 1.0, 0.5), (0.0, 0.5, 1.0, 0.5)
_CORNERS = tuple((x, y, 0.5, 0.5) for y in (0.0, 0.5) for x in (0.0, 0.5))
_LAYOUTS: dict[int, list[tuple[_Box, ...]]] = {
    1: [((0.0, 0.0, 1.0, 1.0),)],
    2: [(_LEFT, _RIGHT), (_TOP, _BOTTOM)],
    3: [
        (_TOP, _CORNERS[2], _CORNERS[3]), (_CORNERS[0], _CORNERS[1], _BOTTOM),
        (_LEFT, _CORNERS[1], _CORNERS[3]), (_CORNERS[0], _CORNERS[2], _RIGHT),
    ],
}  # fmt: skip


@dataclass(frozen=True)
class Group:
    """Things of one kind that lie together; `places` are their centres, x and y from top left."""

    noun: str
    colour: str  # "" where the noun has no choice of one
    size: str
    mirrored: bool
    places: tuple[tuple[float, float], ...]

    @property
    def count(self) -> int:
        """How many things."""
        return len(self.places)

    @property
    def centre(self) -> tuple[float, float]:
        """The mean of their centres."""
        x, y = (sum(axis) / self.count for axis in zip(*self.places, strict=True))
        return x, y


@dataclass(frozen=True)
class Background:
    """`pattern` is plain, gradient (from `colour` at the top to `second`) or of `PATTERNS`."""

    pattern: str
    colour: str
    second: str = ""


@dataclass(frozen=True)
class Scene:
    """Everything that a picture shows."""

    groups: tuple[Group, ...]
    background: Background

    def group(self, noun: str) -> Group | None:
        """The things of this noun; None where there are none."""
        return next((group for group in self.groups if group.noun == noun), None)

    @property
    def is_held_out(self) -> bool:
        """Whether the scene is one of the fifth that is kept for evaluation.

        By what is in it and how it is laid out, jitter aside: no training scene is like one of
        these in all of nouns, counts, sizes, colours, relations and background.
        """
        groups = sorted((g.noun, g.colour, g.size, g.count) for g in self.groups)
        ordered = sorted(self.groups, key=lambda g: g.noun)
        turns = [direction(a, b) for a in ordered for b in ordered if a.noun < b.noun]
        content = repr((groups, turns, self.background))
        return zlib.crc32(content.encode()) % 5 == 0

    @classmethod
    def from_dict(cls, tree: Mapping[str, Any]) -> Scene:
        """The scene of which `dataclasses.asdict` (or its JSON) is `tree`."""
        groups = [
            Group(**{**group, "places": tuple((x, y) for x, y in group["places"])})
            for group in tree["groups"]
        ]
        return cls(tuple(groups), Background(**tree["background"]))


def direction(one: Group, other: Group) -> str:
    """Where `one` lies from `other`: left, right, above or below, by the larger distance.

    It is clear in every scene: that distance is larger than the one across by 0.2 at least.
    """
    across, down = one.centre[0] - other.centre[0], one.centre[1] - other.centre[1]
    if abs(across) > abs(down):
        return "left" if across < 0 else "right"
    return "above" if down < 0 else "below"


def draw_scene(rng: random.Random, nouns: Sequence[str] = tuple(NOUNS)) -> Scene:
    """Draw a scene of some of these nouns; only `rng` decides."""
    while True:
        boxes = list(rng.choice(_LAYOUTS[rng.choices(*_GROUPS)[0]]))
        rng.shuffle(boxes)
        groups = _draw_groups(rng.sample(list(nouns), len(boxes)), boxes, rng)
        if groups:
            return Scene(groups, _draw_background(rng))


def draw_variation(scene: Scene, rng: random.Random) -> Scene:
    """Draw a scene of the same nouns, half the time on the same background; all else is drawn."""
    nouns = [group.noun for group in scene.groups]
    background = scene.background if rng.random() < 0.5 else _draw_background(rng)
    while True:
        boxes = list(rng.choice(_LAYOUTS[len(nouns)]))
        rng.shuffle(boxes)
        groups = _draw_groups(nouns, boxes, rng)
        if groups:
            return Scene(groups, background)


def rearrange(scene: Scene, rng: random.Random) -> Scene:
    """Put the groups of a scene elsewhere; a place may be too small for them, then they are too."""
    while True:
        groups = _put([(group, group.count) for group in scene.groups], rng)
        if _are_clear(groups):
            return replace(scene, groups=groups)


def recount(scene: Scene, counts: Sequence[int], rng: random.Random) -> Scene:
    """Draw so many of each group's things, laid out as before; they may be smaller for it."""
    while True:
        groups = _put(list(zip(scene.groups, counts, strict=True)), rng)
        if _are_clear(groups) and _directions(groups) == _directions(scene.groups):
            return replace(scene, groups=groups)


def _draw_groups(
    nouns: Sequence[str], boxes: Sequence[_Box], rng: random.Random
) -> tuple[Group, ...] | None:
    """A group in each box; None where two of them lie in no clear direction."""
    groups = tuple(_draw_group(n, b, rng) for n, b in zip(nouns, boxes, strict=True))
    return groups if _are_clear(groups) else None


def _draw_group(noun: str, box: _Box, rng: random.Random) -> Group:
    count = rng.choices(list(COUNTS), list(COUNTS.values()))[0]
    size = rng.choice(list(SIZES))
    grids = list(_grids(count, SIZES[size], box))
    if not grids:
        size = "small"
        grids = list(_grids(count, SIZES[size], box))
    places = _arrange(count, rng.choice(grids), SIZES[size], box, rng)
    colours = NOUNS[noun].colours
    return Group(noun, rng.choice(colours) if colours else "", size, rng.random() < 0.5, places)


def _put(things: Sequence[tuple[Group, int]], rng: random.Random) -> tuple[Group, ...]:
    """So many of each group's things in the boxes of a layout."""
    boxes = list(rng.choice(_LAYOUTS[len(things)]))
    rng.shuffle(boxes)
    return tuple(_move(g, count, box, rng) for (g, count), box in zip(things, boxes, strict=True))


def _move(group: Group, count: int, box: _Box, rng: random.Random) -> Group:
    size = group.size if any(_grids(count, SIZES[group.size], box)) else "small"
    grids = list(_grids(count, SIZES[size], box))
    places = _arrange(count, rng.choice(grids), SIZES[size], box, rng)
    return replace(group, size=size, places=places)


def _grids(count: int, side: float, box: _Box) -> Iterator[tuple[int, int]]:
    """Columns and rows of things of this size that fit a box; the last row may have a gap."""
    for columns in range(1, count + 1):
        rows = -(-count // columns)
        fits = max(columns * side * _PITCH - box[2], rows * side * _PITCH - box[3]) <= 0
        if fits and (columns * rows == count or columns == rows == 2):
            yield columns, rows


def _arrange(
    count: int, grid: tuple[int, int], side: float, box: _Box, rng: random.Random
) -> tuple[tuple[float, float], ...]:
    columns, rows = grid
    pitch = side * _PITCH
    left = box[0] + rng.random() * (box[2] - columns * pitch)
    top = box[1] + rng.random() * (box[3] - rows * pitch)
    places = []
    for number in range(count):
        row, column = divmod(number, columns)
        gap = columns - min(columns, count - row * columns)  # a short last row is centred
        x = left + (column + gap / 2 + 0.5) * pitch
        places.append((round(x, 4), round(top + (row + 0.5) * pitch, 4)))
    return tuple(places)


def _directions(groups: Sequence[Group]) -> list[str]:
    return [direction(a, b) for a in groups for b in groups if a is not b]


def _are_clear(groups: Sequence[Group]) -> bool:
    return all(_is_clear(a, b) for a in groups for b in groups if a is not b)


def _is_clear(one: Group, other: Group) -> bool:
    across, down = one.centre[0] - other.centre[0], one.centre[1] - other.centre[1]
    return abs(abs(across) - abs(down)) >= _CLEAR


def _draw_background(rng: random.Random) -> Background:
    colour, second = rng.sample(list(BACKGROUND_COLOURS), 2)
    kind = rng.choices(("plain", "gradient", "textured"), (50, 20, 30))[0]
    if kind == "gradient":
        return Background(kind, colour, second)
    return Background(rng.choice(PATTERNS) if kind == "textured" else kind, colour)
