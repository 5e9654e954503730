"""What the filter sees of a text, and what a person does.

Stored texts stay raw; only the model's input is normalised.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

# `pre_caption` of BLIP's published code turns these into spaces.
_PUNCTUATION = re.compile(r"[.!\"()*#:;~]")
_WHITE_SPACE = re.compile(r"\s{2,}")
# What a terminal obeys rather than shows: C0 but tab and newline, DEL, C1, and the marks that turn
# the direction of writing around.
_OBEYED = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]")


def normalise(text: str, *, max_words: int) -> str:
    """Normalise a text as BLIP does before its tokenizer sees it.

    Lower-case; punctuation to spaces; runs of white space to one space; outer white space
    stripped; cut to the first `max_words` words.

    Source: BLIP, `pre_caption` of the published code (30 words for retrieval).

    Args:
        text: Any text.
        max_words: How many words are left at most; at least 1.

    Returns:
        The normalised text, "" when nothing is left.
    """
    text = _PUNCTUATION.sub(" ", text.lower())
    text = _WHITE_SPACE.sub(" ", text).rstrip("\n").strip(" ")
    words = text.split(" ")
    return " ".join(words[:max_words]) if len(words) > max_words else text


def printable(text: str) -> str:
    """A text as a terminal may see it: what it would obey becomes an escape that it shows.

    >>> printable("\\x1b[2J")
    '\\\\u001b[2J'
    """
    return _OBEYED.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def some(names: Sequence[str], most: int = 3) -> str:
    """The first names of many, for a line of a log.

    >>> some("abcde")
    'a, b, c and 2 more'
    """
    rest = len(names) - most
    return ", ".join(names[:most]) + (f" and {rest} more" if rest > 0 else "")
