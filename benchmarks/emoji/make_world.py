"""Makes the emoji world that the bundled checkpoint is trained and measured on.

python benchmarks/emoji/make_world.py FOLDER

human/    60,000 pictures with five human captions each
web/      10,000 with one alt text of the web each, of which only the true ones were kept, as if
          people had read them
family/   40,000 in families of 16: the same things on the same background, in other numbers,
          sizes, colours and places. Their texts tell a picture from its family. A family lies
          together, so that a training's batch has several of it: negatives that differ in a
          count or a relation alone, which pictures drawn one by one hardly ever are
evaluation/  1,000 of unseen scenes to measure on
vocab.txt    the words of all
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from capfilt.demo.claim import Claim, draw_claim
from capfilt.demo.dataset import make_world, write_human
from capfilt.demo.demo import SIDE
from capfilt.demo.grammar import say, words
from capfilt.demo.scene import Scene, draw_scene, draw_variation
from capfilt.demo.tiny import vocabulary
from capfilt.demo.web import WebMix, WebText, write_claim
from capfilt.demo.web import words as web_words
from capfilt.demo.world import Picture

ALL_TRUE = WebMix(true=1.0, lie=0.0, other=0.0, junk=0.0, empty=0.0)
PROMPT = "a picture of"
SEED = 1  # the demo's pictures are of another world
FAMILY = 16
Style = Callable[[Claim, random.Random], str]
# Of a member's texts: people's and the web's.
_STYLES: tuple[Style, ...] = (say, say, write_claim, write_claim)
_TRIES = 30


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the files."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args(arguments).folder
    make_world(
        folder, web=10_000, human=60_000, evaluation=1_000, seed=SEED, side=SIDE, mix=ALL_TRUE
    )
    members = [member for number in range(2500) for member in draw_family(number)]
    write_human(folder / "family", members, SIDE)
    lines = vocabulary([*words(), *web_words(), *PROMPT.split()])
    (folder / "vocab.txt").write_text("\n".join(lines) + "\n")


def draw_family(number: int) -> Iterator[Picture]:
    """Draw the pictures of a family."""
    rng = random.Random(f"{SEED}/family/{number}")
    first = _draw_first(rng)
    scenes = [first, *(_draw_sibling(first, rng) for _ in range(FAMILY - 1))]
    for place, scene in enumerate(scenes):
        siblings = [other for other in scenes if other is not scene]
        texts = tuple(_tell(scene, siblings, style, rng) for style in _STYLES)
        yield Picture(f"{number * FAMILY + place:06d}", scene, texts, WebText("", "empty"))


def _draw_first(rng: random.Random) -> Scene:
    while True:
        scene = draw_scene(rng)
        if not scene.is_held_out:
            return scene


def _draw_sibling(first: Scene, rng: random.Random) -> Scene:
    while True:
        scene = draw_variation(first, rng)
        if not scene.is_held_out:
            return scene


def _tell(scene: Scene, siblings: Sequence[Scene], style: Style, rng: random.Random) -> str:
    """A true text that is true of one sibling at most, or the best of some tries."""
    best, fewest = None, FAMILY
    for _ in range(_TRIES):
        claim = draw_claim(scene, rng)
        shared = sum(claim.holds(other) for other in siblings)
        if shared < fewest:
            best, fewest = claim, shared
        if fewest <= 1:
            break
    assert best is not None
    return style(best, rng)


if __name__ == "__main__":
    main()
