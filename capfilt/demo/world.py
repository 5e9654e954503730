"""The emoji world: pictures with human captions and a web text, everything about them known.

    draw_scene --> render --------> an image
        +--------> caption -------> human captions, true
        +--------> write_text ----> a web text: true, lie, other, junk or empty
                   is_true  <------ any text, such as a model's

A picture is a function of (seed, split, number) alone: it can be made anywhere, in any order. The
scenes of `EVALUATION` have no like in the other splits (`Scene.is_held_out`).
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from capfilt.demo.grammar import caption
from capfilt.demo.nouns import NOUNS
from capfilt.demo.scene import Scene, draw_scene
from capfilt.demo.web import KINDS, WebMix, WebText, write_text

WEB, HUMAN, EVALUATION = "web", "human", "evaluation"
SIDE = 96  # pixels, of an image unless told
_MIX = WebMix()
_ALL = tuple(NOUNS)


@dataclass(frozen=True)
class Picture:
    """A picture and what is known of it; `captions` are true, as people would write them."""

    key: str
    scene: Scene
    captions: tuple[str, ...]
    web: WebText

    @property
    def file(self) -> str:
        """Its image's name."""
        return f"{self.key}.jpg"

    @classmethod
    def from_dict(cls, tree: Mapping[str, Any]) -> Picture:
        """The picture of which `dataclasses.asdict` (or its JSON) is `tree`."""
        web = WebText(**tree["web"])
        return cls(tree["key"], Scene.from_dict(tree["scene"]), tuple(tree["captions"]), web)


def draw_pictures(
    count: int,
    split: str,
    *,
    seed: int = 0,
    captions: int = 5,
    mix: WebMix = _MIX,
    nouns: Sequence[str] = _ALL,
) -> Iterator[Picture]:
    """Draw pictures, one after the other.

    Args:
        count: How many.
        split: WEB, HUMAN or EVALUATION.
        seed: Another world for each.
        captions: Human captions of each picture, no two alike.
        mix: How often a web text is of which kind.
        nouns: Of all that is in the world.
    """
    for number in range(count):
        rng = random.Random(f"{seed}/{split}/{number}/texts")
        scene = scene_at(number, split, seed, nouns)
        human: dict[str, None] = {}
        while len(human) < captions:
            human[caption(scene, rng)] = None
        web = _write(mix.draw(rng), scene, number, split, seed, rng, nouns)
        yield Picture(f"{number:06d}", scene, tuple(human), web)


def scene_at(number: int, split: str, seed: int, nouns: Sequence[str] = _ALL) -> Scene:
    """The scene of a picture."""
    rng = random.Random(f"{seed}/{split}/{number}")
    while True:
        scene = draw_scene(rng, nouns)
        if scene.is_held_out == (split == EVALUATION):
            return scene


def draw_pairs(
    picture: Picture, split: str, seed: int = 0, nouns: Sequence[str] = _ALL
) -> list[WebText]:
    """More web texts for a picture that `draw_pictures` gave: one of every kind but empty."""
    number = int(picture.key)
    rng = random.Random(f"{seed}/{split}/{number}/pairs")
    kinds = [kind for kind in KINDS if kind != "empty"]
    return [_write(kind, picture.scene, number, split, seed, rng, nouns) for kind in kinds]


def _write(
    kind: str,
    scene: Scene,
    number: int,
    split: str,
    seed: int,
    rng: random.Random,
    nouns: Sequence[str],
) -> WebText:
    """A web text; "another picture" is one of the thousand that follow in the split."""
    start = number + 1 + rng.randrange(1000)
    others = (scene_at(other, split, seed, nouns) for other in itertools.count(start))
    return write_text(kind, scene, others, rng, nouns)
