"""Makes the emoji world that the bundled checkpoint is trained and measured on.

python benchmarks/emoji/make_world.py FOLDER

human/    60,000 pictures with five human captions each
web/      10,000 with one alt text of the web each, of which only the true ones were kept, as if
          people had read them
family/   40,000 in families of 16: the same things, half of them on the same background, in other
          numbers, sizes, colours and places, and each of these with a twin that differs in places
          alone. Their texts tell a picture from its family: captions.json has people's and the
          web's, human.json people's. A family lies together, so that a training's batch has
          several of it: negatives that differ in a count, a colour or a relation alone, which
          pictures drawn one by one hardly ever are
pairs/    48,000 of two kinds of things, each beside one of the same things elsewhere. Their texts
          say where the ones are from the others, and nothing else: in human/ and family/ that is
          a word or two among many, and stayed unlearned. Lists as in family/
counts/   24,000 in fours: the same things in other numbers, smaller where they must be. Their texts
          are true of one of the four
details/  48,000 in threes that differ in one group alone: in how many there are, or in what they
          are. In counts/ all groups differ, and any of them gives a wrong text away
evaluation/  1,000 of unseen scenes to measure on
vocab.txt    the words of all
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from capfilt.demo.claim import Claim, Mention, draw_claim
from capfilt.demo.dataset import make_world, write_human
from capfilt.demo.demo import SIDE
from capfilt.demo.grammar import say, words
from capfilt.demo.nouns import NOUNS
from capfilt.demo.scene import (
    COUNTS,
    Group,
    Scene,
    direction,
    draw_scene,
    draw_variation,
    rearrange,
    recount,
)
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
    families = [member for number in range(2500) for member in draw_family(number)]
    write_both(folder / "family", families, SIDE)
    twins = [twin for number in range(24_000) for twin in draw_twins(number)]
    write_both(folder / "pairs", twins, SIDE // 2)
    fours = [member for number in range(6000) for member in draw_four(number)]
    write_both(folder / "counts", fours, SIDE)
    threes = [member for number in range(16_000) for member in draw_three(number)]
    write_both(folder / "details", threes, SIDE)
    lines = vocabulary([*words(), *web_words(), *PROMPT.split()])
    (folder / "vocab.txt").write_text("\n".join(lines) + "\n")


def write_both(folder: Path, pictures: Sequence[Picture], side: int) -> None:
    """Write pictures with all their texts, and a second list of the human ones alone."""
    write_human(folder, pictures, side)
    rows = json.loads((folder / "captions.json").read_text())
    for row in rows:
        row["caption"] = row["caption"][: len(_STYLES) // 2]
    (folder / "human.json").write_text(json.dumps(rows, indent=0))


def draw_family(number: int) -> Iterator[Picture]:
    """Draw the pictures of a family."""
    rng = random.Random(f"{SEED}/family/{number}")
    first = draw_scene(rng)
    pairs = [_draw_pair(first, rng) for _ in range(FAMILY // 2)]
    scenes = [scene for pair in pairs for scene in pair]
    for place, scene in enumerate(scenes):
        siblings = [other for other in scenes if other is not scene]
        texts = tuple(_tell(scene, siblings, [scenes[place ^ 1]], style, rng) for style in _STYLES)
        yield Picture(f"{number * FAMILY + place:06d}", scene, texts, WebText("", "empty"))


def draw_twins(number: int) -> Iterator[Picture]:
    """Draw two kinds of things, mostly few of them, and the same elsewhere."""
    rng = random.Random(f"{SEED}/pair/{number}")
    while True:
        scene = draw_scene(rng)
        if len(scene.groups) == 2 and (
            sum(g.count for g in scene.groups) <= 3 or rng.random() < 0.3
        ):
            twin = _draw_twin(scene, rng)
            if not scene.is_held_out and not twin.is_held_out:
                break
    for place, member in enumerate((scene, twin)):
        texts = tuple(
            style(_relate(member, turned=turn % 2 == 1), rng) for turn, style in enumerate(_STYLES)
        )
        yield Picture(f"{2 * number + place:06d}", member, texts, WebText("", "empty"))


def draw_four(number: int) -> Iterator[Picture]:
    """Draw the same things in other numbers."""
    rng = random.Random(f"{SEED}/four/{number}")
    while True:
        first = draw_scene(rng)
        counts = list(zip(*(rng.sample(list(COUNTS), 4) for _ in first.groups), strict=True))
        # Of one alone there is no text that is false of more.
        if len(first.groups) > 1 and all(max(c) > 1 for c in counts):
            scenes = [recount(first, numbers, rng) for numbers in counts]
            if not any(scene.is_held_out for scene in scenes):
                break
    for place, scene in enumerate(scenes):
        others = [other for other in scenes if other is not scene]
        texts = tuple(_tell(scene, [], others, style, rng) for style in _STYLES)
        yield Picture(f"{4 * number + place:06d}", scene, texts, WebText("", "empty"))


def draw_three(number: int) -> Iterator[Picture]:
    """Draw things of which one group, in each picture, has another number or is of other things."""
    rng = random.Random(f"{SEED}/three/{number}")
    draw = _draw_numbers if number % 2 else _draw_things
    while True:
        scenes = draw(draw_scene(rng), rng)
        if scenes and not any(scene.is_held_out for scene in scenes):
            break
    for place, scene in enumerate(scenes):
        others = [other for other in scenes if other is not scene]
        texts = tuple(_tell(scene, [], others, style, rng) for style in _STYLES)
        yield Picture(f"{3 * number + place:06d}", scene, texts, WebText("", "empty"))


def _draw_numbers(first: Scene, rng: random.Random) -> list[Scene]:
    """Two, three and four of a group's things, none where their sizes would tell."""
    changed = rng.randrange(len(first.groups))
    scenes = []
    for count in (2, 3, 4):  # of one alone there is no text that is false of more
        counts = [group.count for group in first.groups]
        counts[changed] = count
        scenes.append(recount(first, counts, rng))
    sizes = {tuple(group.size for group in scene.groups) for scene in scenes}
    return scenes if len(sizes) == 1 else []


def _draw_things(first: Scene, rng: random.Random) -> list[Scene]:
    """Three kinds of things in a group's place, of its colour if they come in it."""
    changed = rng.choice(first.groups)
    there = {group.noun for group in first.groups}
    others = rng.sample([noun for noun in NOUNS if noun not in there], 2)
    return [first, *(_rename(first, changed, noun, rng) for noun in others)]


def _rename(scene: Scene, changed: Group, noun: str, rng: random.Random) -> Scene:
    colours = NOUNS[noun].colours
    colour = changed.colour if changed.colour in colours else rng.choice(colours or ("",))
    renamed = replace(changed, noun=noun, colour=colour)
    return replace(scene, groups=tuple(renamed if g is changed else g for g in scene.groups))


def _relate(scene: Scene, *, turned: bool) -> Claim:
    """Say where the first group is from the second, or the second from the first."""
    groups = scene.groups[::-1] if turned else scene.groups
    mentions = tuple(Mention(group.noun, group.count) for group in groups)
    return Claim(mentions, 1, direction(*groups))


def _draw_pair(first: Scene, rng: random.Random) -> tuple[Scene, Scene]:
    while True:
        scene = draw_variation(first, rng)
        twin = _draw_twin(scene, rng)
        if not scene.is_held_out and not twin.is_held_out:
            return scene, twin


def _draw_twin(scene: Scene, rng: random.Random) -> Scene:
    if len(scene.groups) == 1:  # things alone are in no relation, whatever their place
        return draw_variation(scene, rng)
    while True:
        twin = rearrange(scene, rng)
        if direction(*twin.groups[:2]) != direction(*scene.groups[:2]):
            return twin


def _tell(
    scene: Scene,
    siblings: Sequence[Scene],
    twins: Sequence[Scene],
    style: Style,
    rng: random.Random,
) -> str:
    """A true text that is true of one sibling at most and of no twin, or the best of some."""
    best, fewest = None, 2 * FAMILY
    for _ in range(_TRIES):
        claim = draw_claim(scene, rng)
        shared = max(1, sum(claim.holds(other) for other in siblings))
        shared += sum(claim.holds(twin) for twin in twins)
        if shared < fewest:
            best, fewest = claim, shared
        if fewest <= 1:
            break
    assert best is not None
    return style(best, rng)


if __name__ == "__main__":
    main()
