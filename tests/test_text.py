from __future__ import annotations

import pytest

from capfilt.text import normalise


@pytest.mark.parametrize(
    ("raw", "seen"),
    [
        ("A Dog, on the Beach!", "a dog, on the beach"),
        ('"Sale" (50% off): buy*now#1;~', "sale 50% off buy now 1"),
        ("  two   spaces\n", "two spaces"),
        ("one\ttab stays", "one\ttab stays"),
        ("tabs\t\tfold", "tabs fold"),
        ("...", ""),
        ("", ""),
        ("Straße ÄÖ 猫", "straße äö 猫"),
        ("it's 3-in-1, isn't it?", "it's 3-in-1, isn't it?"),
    ],
)
def test_normalise_follows_the_published_rules(raw: str, seen: str) -> None:
    assert normalise(raw, max_words=30) == seen


def test_normalise_cuts_to_max_words() -> None:
    assert normalise(" ".join(map(str, range(40))), max_words=30) == " ".join(map(str, range(30)))
    assert normalise("a b c", max_words=3) == "a b c"
