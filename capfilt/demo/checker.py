"""Is a text true of a scene? It is read by the grammar of `grammar` and held against the facts.

    sentence   = [opening verb] things [relation things] [lead background]       as `say` says it
               | things [[verb] relation things] [lead background]
               | lead background "," things [[verb] relation things]
    label      = things [relation things] [("on" | ",") background]     as `say_tersely` says it
               | thing {"," thing} [relation things] ["," background]
    things     = thing [("and" | "with") thing] | thing {"," thing} "and" thing
    thing      = [article | some | two | three | four] [size] [colour] noun
    background = [article] [pattern] [colour] [pattern] "background"
               | [article] "background fading from" colour "to" colour
               | [article] colour "to" colour "gradient"

Articles stand wherever a sentence needs them, and never in a label. It reads what these two say and
nothing else: a text with unknown words is not true, nor one that is no English ("two mouse", "a
apple", "there is dog", "a dog a blue background") or is it in a way of its own ("a dog, and a
cat"), nor a thing without a choice of colours that is given one. What a claim means is said in
`claim`.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from typing import TypeVar

from capfilt.demo.claim import SOME, Claim, Mention
from capfilt.demo.grammar import LEADS, OPENINGS, RELATION_WORDS, SIZE_WORDS
from capfilt.demo.nouns import (
    BACKGROUND_COLOURS,
    NOUNS,
    NUMBERS,
    PATTERNS,
    THING_COLOURS,
    Noun,
    article,
)
from capfilt.demo.scene import Background, Scene

VERSION = 3  # counts up when some text is judged otherwise
_SIZES = {word: size for size, words in SIZE_WORDS.items() for word in words}
_RELATIONS = {word: name for name, words in RELATION_WORDS.items() for word in words}
_NUMBERS = {word: number for number, word in NUMBERS.items()}
_SINGULAR = {noun.name: noun for noun in NOUNS.values()}
_PLURAL = {noun.plural: noun for noun in NOUNS.values()}
_ARTICLES = ("a", "an")

ReadT = TypeVar("ReadT")


def is_true(text: str, scene: Scene) -> bool:
    """Whether a text is read and everything that it says is true of a scene."""
    claim = parse(text)
    return claim is not None and claim.holds(scene)


def parse(text: str) -> Claim | None:
    """What a text says; None where it is not understood. Case and a final full stop are ignored."""
    words = re.findall(r"[a-z]+|\S", text.lower().strip().removesuffix("."))
    for is_label in (False, True):
        reader = _Reader(words, is_label=is_label)
        claim = reader.attempt(reader.claim)
        if claim is not None:
            return claim
    return None


class _UnreadableError(Exception):
    """The words are not of the grammar."""


class _Reader:
    """Reads a sentence or a label from left to right; a method reads its part or raises."""

    def __init__(self, words: list[str], *, is_label: bool) -> None:
        self._words = words
        self._is_label = is_label
        self._at = 0

    def claim(self) -> Claim:
        """All of the text."""
        claim = self._label() if self._is_label else self._sentence()
        if self._at < len(self._words):
            raise _UnreadableError
        return claim

    def attempt(self, read: Callable[[], ReadT]) -> ReadT | None:
        """What a method reads; None where it cannot, and then nothing is taken."""
        start = self._at
        try:
            return read()
        except _UnreadableError:
            self._at = start
            return None

    def _sentence(self) -> Claim:
        if self._take(*LEADS):
            background = self._background()
            self._need(",")
            return replace(self._statement(), background=background)
        claim = self._introduced() if self._take(*OPENINGS) else self._statement()
        return replace(claim, background=self._background()) if self._take(*LEADS) else claim

    def _introduced(self) -> Claim:
        verb = self._need("is", "are")
        subjects = self._list()
        _agree(verb, subjects[:1])
        return self._related(subjects)

    def _statement(self) -> Claim:
        subjects = self._list()
        verb = self._take("is", "are")
        if verb:
            _agree(verb, subjects)
        return self._related(subjects, verb=verb)

    def _label(self) -> Claim:
        subjects, is_joined = self._things()
        claim = self._related(subjects)
        leads = (",",) if len(subjects) > 1 and not is_joined else ("on", ",")
        return replace(claim, background=self._background()) if self._take(*leads) else claim

    def _related(self, subjects: list[Mention], *, verb: str = "") -> Claim:
        """Subjects and what follows them, up to a background."""
        relation = self._need(*_RELATIONS) if verb else self._take(*_RELATIONS)
        if not relation:
            return Claim(tuple(subjects))
        return Claim((*subjects, *self._list()), len(subjects), _RELATIONS[relation])

    def _list(self) -> list[Mention]:
        things, is_joined = self._things()
        if len(things) > 1 and not is_joined:
            raise _UnreadableError
        return things

    def _things(self) -> tuple[list[Mention], bool]:
        """Things, and whether a word stands before the last."""
        things = [self._thing()]
        while (another := self.attempt(self._another)) is not None:
            things.append(another)
        joint = self._take("and") or (self._take("with") if len(things) == 1 else "")
        if joint:
            things.append(self._thing())
        return things, bool(joint)

    def _another(self) -> Mention:
        self._need(",")
        return self._thing()

    def _thing(self) -> Mention:
        determiner = self._article() or self._take("some", *_NUMBERS)
        size = self._take(*_SIZES)
        colour = self._take(*THING_COLOURS)
        word = self._next()
        self._at += 1
        noun = _SINGULAR.get(word) or _PLURAL.get(word)
        if noun is None or (colour and colour not in noun.colours):
            raise _UnreadableError
        return Mention(noun.name, self._count(determiner, noun, word), _SIZES.get(size, ""), colour)

    def _count(self, determiner: str, noun: Noun, word: str) -> int:
        """How many things a determiner and a noun in this form are."""
        is_bare_one = self._is_label and not determiner and word == noun.name
        if determiner in _ARTICLES or is_bare_one:
            count, form = 1, noun.name
        else:
            count, form = _NUMBERS.get(determiner, SOME), noun.plural
        some: tuple[str, ...] = ("", "some")
        if noun.plural == noun.name:
            some = ("some",)  # "sheep" alone could be one
        elif self._is_label:
            some = ("",)
        if word != form or (count == SOME and determiner not in some):
            raise _UnreadableError
        return count

    def _article(self) -> str:
        """The article that comes next; a label has none."""
        taken = "" if self._is_label else self._take(*_ARTICLES)
        if taken and taken != article(self._next() or "-"):
            raise _UnreadableError
        return taken

    def _background(self) -> Background:
        if not self._article() and not self._is_label:
            raise _UnreadableError
        if self._take("background fading from"):
            return self._gradient()
        if self._next(1) == "to":
            background = self._gradient()
            self._need("gradient")
            return background
        pattern = self._take("plain", "gradient", *PATTERNS)
        colour = "" if pattern == "gradient" else self._take(*BACKGROUND_COLOURS)
        pattern = pattern or self._take(*PATTERNS)
        self._need("background")
        if not (pattern or colour):
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
