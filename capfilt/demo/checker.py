"""Is a text true of a scene? It is read by a small grammar of English and held against the facts.

    text       = [opening verb] things [[verb] relation things] [background]
               | background "," things [[verb] relation things]
    things     = thing {("," | "and" | ", and" | "with") thing}
    thing      = [a | an | one | some | two | three | four] [size] [colour] noun
    background = [","] [on | against] [a | an] [pattern] [colour] [pattern] "background"
               | ... "background fading from" colour "to" colour | ... colour "to" colour "gradient"

A text that is not of this grammar is not true: unknown words, "two mouse", "a apple", "a dog are",
a thing without a choice of colours that is given one. What a claim means is said in `claim`.
"""

from __future__ import annotations

import re

from capfilt.demo.claim import SOME, Claim, Mention
from capfilt.demo.grammar import LEADS, OPENINGS, RELATION_WORDS, SIZE_WORDS
from capfilt.demo.nouns import (
    BACKGROUND_COLOURS,
    NOUNS,
    NUMBERS,
    PATTERNS,
    THING_COLOURS,
    article,
)
from capfilt.demo.scene import Background, Scene

_SIZES = {word: size for size, words in SIZE_WORDS.items() for word in words}
_RELATIONS = {word: name for name, words in RELATION_WORDS.items() for word in words}
_NUMBERS = {word: number for number, word in NUMBERS.items()}
_SINGULAR = {noun.name: noun for noun in NOUNS.values()}
_PLURAL = {noun.plural: noun for noun in NOUNS.values()}
_ONE, _SEVERAL = ("a", "an", "one"), ("some", *_NUMBERS)


def is_true(text: str, scene: Scene) -> bool:
    """Whether a text is read and everything that it says is true of a scene."""
    claim = parse(text)
    return claim is not None and claim.holds(scene)


def parse(text: str) -> Claim | None:
    """What a text says; None where it is not understood. Case and a final full stop are ignored."""
    words = re.findall(r"[a-z]+|\S", text.lower().rstrip(" ."))
    try:
        return _Reader(words).claim()
    except _UnreadableError:
        return None


class _UnreadableError(Exception):
    """The words are not of the grammar."""


class _Reader:
    """Reads from left to right; a method reads its part or raises."""

    def __init__(self, words: list[str]) -> None:
        self._words = words
        self._at = 0

    def claim(self) -> Claim:
        """All of the text."""
        background = self._try_background()
        if background is not None:
            self._need(",")
        opening = background is None and self._take(*OPENINGS)
        verb = self._need("is", "are") if opening else ""
        subjects = self._things()
        if verb:
            _agree(verb, subjects[:1])
        verb = "" if verb else self._take("is", "are")
        relation = self._need(*_RELATIONS) if verb else self._take(*_RELATIONS)
        objects: list[Mention] = []
        if verb:
            _agree(verb, subjects)
        if relation:
            objects = self._things()
        if background is None:
            background = self._try_background()
        if self._at < len(self._words):
            raise _UnreadableError
        mentions = (*subjects, *objects)
        return Claim(
            mentions, len(subjects) if relation else 0, _RELATIONS.get(relation, ""), background
        )

    def _things(self) -> list[Mention]:
        things = [self._thing()]
        while True:
            start = self._at
            if not self._take(", and", ",", "and", "with"):
                return things
            try:
                things.append(self._thing())
            except _UnreadableError:  # a background after a comma
                self._at = start
                return things

    def _thing(self) -> Mention:
        determiner = self._take(*_ONE, *_SEVERAL)
        if determiner in ("a", "an") and determiner != article(self._next() or "-"):
            raise _UnreadableError
        size = self._take(*_SIZES)
        colour = self._take(*THING_COLOURS)
        word = self._next()
        self._at += 1
        is_one = determiner in _ONE or (not determiner and word in _SINGULAR)
        noun = (_SINGULAR if is_one else _PLURAL).get(word)
        if noun is None or (colour and colour not in noun.colours):
            raise _UnreadableError
        count = 1 if is_one else _NUMBERS.get(determiner, SOME)
        return Mention(noun.name, count, _SIZES.get(size, ""), colour)

    def _try_background(self) -> Background | None:
        start = self._at
        try:
            return self._background()
        except _UnreadableError:
            self._at = start
            return None

    def _background(self) -> Background:
        self._take(",")
        self._take(*LEADS)
        determiner = self._take("a", "an")
        if determiner and determiner != article(self._next() or "-"):
            raise _UnreadableError
        if self._take("background fading from"):
            return self._gradient()
        if self._next(1) == "to":
            background = self._gradient()
            self._need("gradient")
            return background
        pattern = self._take("plain", "gradient", *PATTERNS)
        colour = self._take(*BACKGROUND_COLOURS)
        pattern = pattern or self._take(*PATTERNS)
        self._need("background")
        if not (pattern or colour) or (pattern == "gradient" and colour):
            raise _UnreadableError
        return Background(pattern, colour)

    def _gradient(self) -> Background:
        top = self._need(*BACKGROUND_COLOURS)
        self._need("to")
        return Background("gradient", top, self._need(*BACKGROUND_COLOURS))

    def _next(self, ahead: int = 0) -> str:
        """The next word without taking it, "" at the end."""
        return self._words[self._at + ahead] if self._at + ahead < len(self._words) else ""

    def _take(self, *phrases: str) -> str:
        """Take the first of these phrases that comes next; "" where none does."""
        for phrase in phrases:
            words = phrase.split()
            if self._words[self._at : self._at + len(words)] == words:
                self._at += len(words)
                return phrase
        return ""

    def _need(self, *phrases: str) -> str:
        found = self._take(*phrases)
        if not found:
            raise _UnreadableError
        return found


def _agree(verb: str, things: list[Mention]) -> None:
    if (verb == "is") != (len(things) == 1 and things[0].count == 1):
        raise _UnreadableError
