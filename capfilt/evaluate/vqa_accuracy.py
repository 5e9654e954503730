"""VQA accuracy, and the normalisation of answers that it goes with.

An answer is right to the degree that people gave it: min(how many / 3, 1), averaged over all
choices of nine of the ten people. That is the benchmark's definition with all its habits: the
model's answer is always normalised, people's lose their punctuation only where they differ.

Source: Antol et al., arXiv:1505.00468, section 5; the benchmark's own `vqaEval.py`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

_ARTICLES = ("a", "an", "the")
_NUMBERS = "zero one two three four five six seven eight nine ten"
_DIGITS = {"none": "0"} | {word: str(number) for number, word in enumerate(_NUMBERS.split())}
_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_GROUPED = re.compile(r"\d,\d")
_FULL_STOP = re.compile(r"\.(?!\d)")
# Words that may come with one apostrophe missing.
_CONTRACTIONS = """
    ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't
    haven't he'd he'd've he's how'd how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've
    might've mustn't must've needn't not've o'clock oughtn't 'ow's'at shan't she'd've should've
    shouldn't shouldn't've somebody'd've somebody'll somebody's someone'd someone'd've someone'll
    someone's something'd something'd've something'll that's there'd there'd've there're there's
    they'd they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll what're
    what's what've when's where'd where's where've who'd who'd've who'll who's who've why'll why're
    why's won't would've wouldn't wouldn't've y'all y'all'll y'all'd've you'd you'd've you'll you're
    you've
"""
_WHOLE = {
    word[:i] + word[i + 1 :]: word
    for word in _CONTRACTIONS.split()
    for i, character in enumerate(word)
    if character == "'"
} | {"somebody'd": "somebodyd"}


def vqa_accuracy(answer: str, people: Sequence[str]) -> float:
    """How right an answer is, in [0, 1].

    Args:
        answer: The model's.
        people: What people answered, ten in the benchmark, at least one.
    """
    said = without_articles(without_punctuation(_on_one_line(answer)))
    if len(set(people)) > 1:
        people = [without_punctuation(text) for text in people]
    agreeing = sum(text == said for text in people)
    # Whoever gave the same answer leaves one less among the others.
    degrees = [min((agreeing - (text == said)) / 3, 1.0) for text in people]
    return sum(degrees) / len(degrees)


def without_punctuation(text: str) -> str:
    """Punctuation beside a blank goes, other becomes a blank; full stops but decimal points go."""
    found = text
    for mark in _PUNCTUATION:
        is_beside_blank = f"{mark} " in text or f" {mark}" in text
        found = found.replace(mark, "" if is_beside_blank or _GROUPED.search(text) else " ")
    return _FULL_STOP.sub("", found)


def without_articles(text: str) -> str:
    """Lower-case, without articles, small numbers in digits, contractions with apostrophes."""
    words = [_DIGITS.get(word, word) for word in text.lower().split()]
    return " ".join(_WHOLE.get(word, word) for word in words if word not in _ARTICLES)


def _on_one_line(text: str) -> str:
    return text.replace("\n", " ").replace("\t", " ").strip()
