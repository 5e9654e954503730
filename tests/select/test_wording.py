from __future__ import annotations

import random

import pyarrow as pa
import pytest

from capfilt.select.wording import count_words, repeats


@pytest.mark.parametrize(
    ("text", "repeated"),
    [
        ("a dog dog", True),
        ("A dog and a  dog and a cat", True),
        ("a dog and a cat", False),
        ("the cat and the hat", False),
        ("Bye bye", True),
        ("one two three four one two three four", True),
        ("one two three four five one two three four five", False),
        ("", False),
        ("   ", False),
        (None, False),
    ],
)
def test_repeats(text: str | None, repeated: bool) -> None:
    assert repeats(pa.array(["other", text, "dog"], pa.string())).tolist() == [
        False,
        repeated,
        False,
    ]


def test_repeats_agrees_with_the_rule_read_literally() -> None:
    generator = random.Random(0)
    texts = [" ".join(generator.choices("abc", k=generator.randint(0, 9))) for _ in range(500)]
    expected = []
    for text in texts:
        words = text.split()
        expected.append(
            any(
                words[i : i + n] == words[i + n : i + 2 * n]
                for n in range(1, 5)
                for i in range(len(words) - 2 * n + 1)
            )
        )
    assert repeats(pa.chunked_array([texts[:200], texts[200:]])).tolist() == expected
    assert 50 < sum(expected) < 450


def test_count_words_counts_what_white_space_separates() -> None:
    texts = pa.array(["a dog", "  a\tbig\n\ndog ", "", None, "dog"])
    assert count_words(texts).tolist() == [2, 3, 0, 0, 1]
    assert count_words(texts.slice(1, 2)).tolist() == [3, 0]
