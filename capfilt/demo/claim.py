"""What a text says of a scene, as facts: drawn true, turned into a lie, or held against a scene.

A claim is true if everything that it says is:

- "a dog": there is one or more. "dogs", "some dogs": two or more. "two dogs": exactly two.
- A size or colour is that of all things of the noun. The same noun twice is never true: no two
  groups share a noun.
- Left of, right of, above, below: where the middle of one group lies from that of the other, by
  the larger distance (`scene.direction`), so exactly one of them is true. Next to: left or right.
  With several things on a side, each of them.
- A background's colour alone is that of a plain or patterned one (its main colour); a gradient is
  described by both, from the top.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from capfilt.demo.nouns import BACKGROUND_COLOURS, NOUNS, THING_COLOURS
from capfilt.demo.scene import COUNTS, Background, Group, Scene, direction

SOME = 0  # as a count: two or more
RELATIONS = ("next to", "above", "below", "left", "right")


@dataclass(frozen=True)
class Mention:
    """Things of a noun; what is "" is not said. `count` is 1 (or more), `SOME`, or exact."""

    noun: str
    count: int
    size: str = ""
    colour: str = ""

    def holds(self, group: Group | None) -> bool:
        """Whether the group of this noun, if there is one, is as said."""
        return (
            group is not None
            and (group.count >= 2 if self.count == SOME else self.count in (1, group.count))
            and self.size in ("", group.size)
            and self.colour in ("", group.colour)
        )


@dataclass(frozen=True)
class Claim:
    """The first `subjects` mentions stand in `relation` to the rest; "" and 0 for no relation."""

    mentions: tuple[Mention, ...]
    subjects: int = 0
    relation: str = ""
    background: Background | None = None  # "" in it is not said

    def holds(self, scene: Scene) -> bool:
        """Whether everything in it is true of a scene."""
        groups = [scene.group(mention.noun) for mention in self.mentions]
        found = [group for group in groups if group is not None]
        return (
            len({mention.noun for mention in self.mentions}) == len(found)
            and all(m.holds(group) for m, group in zip(self.mentions, groups, strict=True))
            and self._relation_holds(found)
            and (self.background is None or _is_background(self.background, scene.background))
        )

    def _relation_holds(self, groups: list[Group]) -> bool:
        subjects, objects = groups[: self.subjects], groups[self.subjects :]
        turns = {direction(one, other) for one in subjects for other in objects}
        return turns <= ({"left", "right"} if self.relation == "next to" else {self.relation})


def draw_claim(scene: Scene, rng: random.Random) -> Claim:
    """Say something true of a scene: mostly of all that is in it, and some of how it is."""
    groups = list(scene.groups)
    rng.shuffle(groups)
    if len(groups) == 3 and rng.random() < 0.4:
        groups.pop()
    mentions = tuple(_draw_mention(group, rng) for group in groups)
    background = _draw_background(scene.background, rng) if rng.random() < 0.55 else None
    claim = Claim(mentions, background=background)
    related = [
        replace(claim, subjects=subjects, relation=relation)
        for subjects in range(1, len(mentions))
        for relation in RELATIONS
    ]
    true = [candidate for candidate in related if candidate.holds(scene)]
    return rng.choice(true) if true and rng.random() < 0.7 else claim


def draw_lie(
    claim: Claim, scene: Scene, rng: random.Random, nouns: Sequence[str] = tuple(NOUNS)
) -> tuple[Claim, str]:
    """Make one word of a true claim wrong; a wrong noun is one of `nouns`.

    Returns:
        A claim that does not hold, and what is wrong in it: noun, count, colour or relation.
    """
    makers: dict[str, Callable[[], Claim]] = {
        "noun": lambda: _other_noun(claim, rng, nouns),
        "count": lambda: _other_count(claim, rng),
    }
    if claim.relation:
        makers["relation"] = lambda: replace(claim, relation=rng.choice(RELATIONS))
    if any(m.colour for m in claim.mentions) or (claim.background and claim.background.colour):
        makers["colour"] = lambda: _other_colour(claim, rng)
    wrong = rng.choice(list(makers))
    while True:
        lie = makers[wrong]()
        if not lie.holds(scene):
            return lie, wrong


def _draw_mention(group: Group, rng: random.Random) -> Mention:
    count = SOME if group.count > 1 and rng.random() < 0.12 else group.count
    size = group.size if rng.random() < 0.4 else ""
    return Mention(group.noun, count, size, group.colour if rng.random() < 0.7 else "")


def _draw_background(background: Background, rng: random.Random) -> Background:
    """A background as it is, or only its colour or its pattern."""
    less = [background]
    if background.pattern == "plain":
        less += 2 * [replace(background, pattern="")]
    elif background.pattern == "gradient":
        less.append(Background("gradient", ""))
    else:
        less += [replace(background, pattern=""), replace(background, colour="")]
    return rng.choice(less)


def _is_background(said: Background, there: Background) -> bool:
    if said.pattern == "gradient" or there.pattern == "gradient":
        return said == there or (said == Background("gradient", "") and there.pattern == "gradient")
    return said.pattern in ("", there.pattern) and said.colour in ("", there.colour)


def _other_noun(claim: Claim, rng: random.Random, nouns: Sequence[str]) -> Claim:
    number = rng.randrange(len(claim.mentions))
    mention = claim.mentions[number]
    unused = sorted(set(nouns) - {m.noun for m in claim.mentions})
    dyed = [name for name in unused if NOUNS[name].colours]
    if mention.colour and not dyed:  # a small world has few things that could be of that colour
        mention = replace(mention, colour="")
    noun = rng.choice(dyed if mention.colour else unused)
    return _with_mention(claim, number, replace(mention, noun=noun))


def _other_count(claim: Claim, rng: random.Random) -> Claim:
    number = rng.randrange(len(claim.mentions))
    several = [count for count in COUNTS if count > 1]  # a lie of one would be true of more
    count = rng.choices(several, [COUNTS[count] for count in several])[0]
    return _with_mention(claim, number, replace(claim.mentions[number], count=count))


def _other_colour(claim: Claim, rng: random.Random) -> Claim:
    coloured = [number for number, m in enumerate(claim.mentions) if m.colour]
    if claim.background and claim.background.colour and (not coloured or rng.random() < 0.5):
        part = "second" if claim.background.second and rng.random() < 0.5 else "colour"
        others = set(BACKGROUND_COLOURS) - {claim.background.colour, claim.background.second}
        colour = rng.choice(sorted(others))
        return replace(claim, background=replace(claim.background, **{part: colour}))
    number = rng.choice(coloured)
    colour = rng.choice(list(THING_COLOURS))
    return _with_mention(claim, number, replace(claim.mentions[number], colour=colour))


def _with_mention(claim: Claim, number: int, mention: Mention) -> Claim:
    mentions = (*claim.mentions[:number], mention, *claim.mentions[number + 1 :])
    return replace(claim, mentions=mentions)
