from __future__ import annotations

import itertools

import pytest

from capfilt.evaluate.vqa_accuracy import vqa_accuracy, without_articles, without_punctuation


@pytest.mark.parametrize(
    ("agreeing", "wanted"), [(0, 0.0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1.0), (10, 1.0)]
)
def test_accuracy_is_the_mean_over_all_nine_of_ten(agreeing: int, wanted: float) -> None:
    people = ["red"] * agreeing + ["blue"] * (10 - agreeing)
    by_subsets = [
        min(sum(text == "red" for text in nine) / 3, 1)
        for nine in itertools.combinations(people, 9)
    ]
    assert sum(by_subsets) / 10 == pytest.approx(wanted)
    assert vqa_accuracy("Red", people) == pytest.approx(wanted)


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("red-green", "red green"),  # a blank in its place
        ("red, green", "red green"),  # beside a blank it goes
        ("1,000", "1000"),  # a number's comma goes, and so does all other punctuation
        ("1,000-2", "10002"),
        ("3.5", "3.5"),
        ("yes.", "yes"),
        ("a.m.", "am"),
        ("what?!", "what  "),
        ("don't", "don't"),
    ],
)
def test_punctuation_goes_as_the_benchmark_has_it(text: str, wanted: str) -> None:
    assert without_punctuation(text) == wanted


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("The Two dogs", "2 dogs"),
        ("none", "0"),
        ("ten an a", "10"),
        ("I dont know", "i don't know"),
        ("couldnt've couldn'tve", "couldn't've couldn't've"),
        ("ow's'at 'ows'at 'ow'sat", "'ow's'at 'ow's'at 'ow's'at"),
        ("twas yall'd've", "'twas y'all'd've"),
        ("Ive", "ive"),  # the benchmark's own table has it with a capital, which never comes
    ],
)
def test_words_are_those_of_the_benchmark(text: str, wanted: str) -> None:
    assert without_articles(text) == wanted


def test_people_who_agree_are_taken_by_their_word() -> None:
    assert vqa_accuracy("light-blue", ["light-blue"] * 10) == 0  # what is said is normalised
    assert vqa_accuracy("light-blue", ["light-blue"] * 9 + ["blue"]) == 1
    assert vqa_accuracy("the\tred", ["red"] * 10) == 1
