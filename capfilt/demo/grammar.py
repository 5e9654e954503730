"""From a claim to English: lower case, several ways to say the same. `checker` reads it back."""

from __future__ import annotations

import itertools
import random

from capfilt.demo.claim import SOME, Claim, Mention, draw_claim
from capfilt.demo.nouns import (
    BACKGROUND_COLOURS,
    NOUNS,
    NUMBERS,
    PATTERNS,
    THING_COLOURS,
    article,
)
from capfilt.demo.scene import Background, Scene

SIZE_WORDS = {"small": ("small", "little", "tiny"), "big": ("big", "large")}
RELATION_WORDS = {
    "next to": ("next to", "beside"),
    "above": ("above", "over"),
    "below": ("below", "under"),
    "left": ("to the left of", "left of"),
    "right": ("to the right of", "right of"),
}
OPENINGS = ("there", "here")  # and a verb
LEADS = ("on", "against")  # to a background
_LENGTHS = (5, 14)  # of a human caption, in words
_OTHERS = "a an some and with is are plain gradient background fading from to"


def words() -> list[str]:
    """Every word that captions have, sorted; for a tokenizer's vocabulary."""
    nouns = [name for noun in NOUNS.values() for name in (noun.name, noun.plural)]
    phrases = itertools.chain(*SIZE_WORDS.values(), *RELATION_WORDS.values(), [_OTHERS])
    lists = (nouns, THING_COLOURS, BACKGROUND_COLOURS, PATTERNS, NUMBERS.values(), OPENINGS, LEADS)
    return sorted({word for text in itertools.chain(phrases, *lists) for word in text.split()})


def caption(scene: Scene, rng: random.Random) -> str:
    """A true sentence of 5 to 14 words, as a person would write it."""
    while True:
        text = say(draw_claim(scene, rng), rng)
        if _LENGTHS[0] <= len(text.split()) <= _LENGTHS[1]:
            return text


def say(claim: Claim, rng: random.Random) -> str:
    """A claim as a phrase with articles, or a sentence.

    >>> say(Claim((Mention("owl", 1), Mention("mouse", 2)), 1, "above"), random.Random(3))
    'an owl above two mice'
    """
    first, *_ = claim.mentions
    opening = f"{rng.choice(OPENINGS)} {_verb(first.count == 1)} " if rng.random() < 0.12 else ""
    subjects, objects = _split(claim)
    text = _list([_phrase(m, rng) for m in subjects], rng)
    if claim.relation:
        if not opening and rng.random() < 0.2:
            text += f" {_verb(len(subjects) == 1 and first.count == 1)}"
        text += f" {rng.choice(RELATION_WORDS[claim.relation])} "
        text += _list([_phrase(m, rng) for m in objects], rng)
    if claim.background is None:
        return opening + text
    background = f"{rng.choice(LEADS)} {_background(claim.background, rng)}"
    if not opening and rng.random() < 0.12:
        return f"{background}, {text}"
    return f"{opening}{text} {background}"


def say_tersely(claim: Claim, rng: random.Random) -> str:
    """A claim without articles and verbs, as labels and shops have it.

    >>> say_tersely(Claim((Mention("car", 1, colour="red"), Mention("dog", 2))), random.Random(0))
    'red car and two dogs'
    """
    subjects, objects = _split(claim)
    parts = [[_bare(mention, rng) for mention in mentions] for mentions in (subjects, objects)]
    comma = rng.random() < 0.3
    text = ", ".join(parts[0]) if comma else _list(parts[0], rng)
    if claim.relation:
        text += f" {rng.choice(RELATION_WORDS[claim.relation])} {_list(parts[1], rng)}"
    if claim.background is None:
        return text
    described = _background(claim.background, rng).partition(" ")[2]  # without the article
    return f"{text}{',' if comma else rng.choice((' on', ','))} {described}"


def _split(claim: Claim) -> tuple[tuple[Mention, ...], tuple[Mention, ...]]:
    count = claim.subjects if claim.relation else len(claim.mentions)
    return claim.mentions[:count], claim.mentions[count:]


def _verb(is_one: bool) -> str:
    return "is" if is_one else "are"


def _list(phrases: list[str], rng: random.Random) -> str:
    *most, last = phrases
    if not most:
        return last
    joint = "with" if len(most) == 1 and rng.random() < 0.2 else "and"
    return f"{', '.join(most)} {joint} {last}"


def _phrase(mention: Mention, rng: random.Random) -> str:
    bare = _bare(mention, rng)
    if mention.count == 1:
        return f"{article(bare)} {bare}"
    is_open = mention.count == SOME and not bare.startswith("some ")
    return f"some {bare}" if is_open and rng.random() < 0.5 else bare


def _bare(mention: Mention, rng: random.Random) -> str:
    noun = NOUNS[mention.noun]
    number = NUMBERS.get(mention.count, "")
    if mention.count == SOME and noun.plural == noun.name:
        number = "some"  # "sheep" alone could be one
    size = rng.choice(SIZE_WORDS[mention.size]) if mention.size else ""
    name = noun.name if mention.count == 1 else noun.plural
    return " ".join(filter(None, (number, size, mention.colour, name)))


def _background(background: Background, rng: random.Random) -> str:
    colour, second, pattern = background.colour, background.second, background.pattern
    if second:
        if rng.random() < 0.5:
            return f"a background fading from {colour} to {second}"
        return f"{article(colour)} {colour} to {second} gradient"
    words = [word for word in (pattern, colour) if word]
    if pattern not in ("", "plain") and rng.random() < 0.4:
        words.reverse()
    return f"{article(words[0])} {' '.join(words)} background"
