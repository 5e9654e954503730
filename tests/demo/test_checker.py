import random

import pytest

from capfilt.demo.checker import is_true, parse
from capfilt.demo.claim import Claim, Mention, draw_claim, draw_lie
from capfilt.demo.grammar import caption, say, say_tersely, words
from capfilt.demo.scene import Background, Group, Scene, draw_scene
from tests.demo.sayings import can_be_said, spaced

RANDOM_SCENES = 3000
MUTANTS = 3000
# Two big red cars to the left of a small dog, an owl below both.
CARS = Group("car", "red", "big", False, ((0.25, 0.25), (0.25, 0.45)))
DOG = Group("dog", "", "small", False, ((0.75, 0.3),))
OWL = Group("owl", "", "small", False, ((0.5, 0.9),))
SCENE = Scene((CARS, DOG, OWL), Background("striped", "blue"))
FADING = Scene((DOG,), Background("gradient", "red", "pink"))


@pytest.mark.parametrize(
    "text",
    [
        "a dog", "dog", "a small dog", "a tiny dog", "A dog.", " a  dog ",
        "two cars", "cars", "some cars", "a car", "two big red cars", "two cars and a dog",
        "two cars, a dog and an owl", "two cars, dog, owl", "two cars with a dog",
        "two cars next to a dog", "a dog beside two cars", "a dog is to the right of two cars",
        "two cars are left of a dog", "two cars and a dog over an owl", "an owl below a dog",
        "there is a dog next to two cars", "here are two cars", "there is a dog and two cars",
        "on a blue background, a dog", "a dog on a striped blue background",
        "a dog against a blue striped background", "dog, blue background",
        "dog on blue background", "dog , two cars , striped background",
        "dog and two cars on striped background", "dog, small owl, two big cars",
    ],
)  # fmt: skip
def test_is_true_of_what_the_scene_shows(text: str) -> None:
    assert is_true(text, SCENE)


@pytest.mark.parametrize(
    "text",
    [
        "a cat", "two dogs", "dogs", "some dogs", "three cars", "four cars", "a big dog",
        "two small cars", "two blue cars", "two cars above a dog", "two cars right of a dog",
        "a dog left of two cars", "an owl next to a dog", "an owl left of a dog", "a dog and a cat",
        "a dog and a dog", "a car next to a car", "two cars, a dog and two owls",
        "two cars and an owl next to a dog", "a dog on a red background",
        "a dog on a plain background", "a dog on a dotted blue background",
        "a dog on a gradient background", "a dog on a blue to pink gradient",
    ],
)  # fmt: skip
def test_is_true_not_of_anything_else(text: str) -> None:
    assert parse(text) is not None
    assert not is_true(text, SCENE)


@pytest.mark.parametrize(
    "text",
    [
        "", ".", "a", "dog dog", "a dog a dog", "a apple", "an dog", "a unicorn unicorn",
        "two mouse", "a mice", "two sheeps", "a wug", "a red dog", "a red small car", "a dog and",
        "a dog next to", "next to a dog", "there are a dog", "there is two cars", "a dog are",
        "a dog are next to two cars", "two cars is next to a dog", "a dog is",
        "a dog on a background", "a dog on a an blue background", "a dog on a orange background",
        "on a blue background a dog", "a dog on a blue", "a dog is on a blue background",
        "a dog on a red to gradient", "a dog!", "a dog?", "buy now free shipping", "2 cars",
        "a dog next to a cat next to a dog", "a dog on a blue background background",
        # A sentence without its articles, or a label with some.
        "there is dog", "there is small dog next to red cars", "a dog and cat", "dog and a cat",
        "a dog on blue background", "dog on a blue background", "dog is above two cars",
        "on blue background, a dog", "dog against blue background", "dog a blue background",
        # Things and a background with nothing between them, or the wrong thing.
        "a dog a blue background", "a blue background, a dog", "dog blue background",
        "here is a dog, two cars, a blue background", "a dog, two cars", "a dog, and two cars",
        "two cars, a dog, and an owl", "dog, owl on blue background", "a dog, a blue background",
        "two cars with a dog with an owl", "a dog, two cars with an owl",
        "a dog above two cars, owls",
        "here is a dog is above two cars", "on a blue background, there is a dog",
        # "sheep" is one in a label and too little in a sentence.
        "there are sheep", "sheep are below cars", "a dog above fish", "some sheep and dog are",
        "one dog", "some dogs on blue background", "some dog", "a red plain background",
    ],
)  # fmt: skip
def test_parse_refuses_what_is_no_english_of_this_world(text: str) -> None:
    assert parse(text) is None
    assert not is_true(text, SCENE)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a dog on a background fading from red to pink", True),
        ("a dog on a red to pink gradient", True),
        ("a dog on a gradient background", True),
        ("a dog on a pink to red gradient", False),
        ("a dog on a red background", False),
        ("a dog on a plain red background", False),
    ],
)
def test_is_true_a_gradient_is_said_from_the_top(text: str, expected: bool) -> None:
    assert is_true(text, FADING) is expected


def test_parse_gives_the_facts() -> None:
    assert parse("two large red cars and a mouse are above some geese on a pink background") == (
        Claim(
            (Mention("car", 2, "big", "red"), Mention("mouse", 1), Mention("goose", 0)),
            2,
            "above",
            Background("", "pink"),
        )
    )


def test_checker_accepts_every_true_text_and_refuses_every_lie() -> None:
    wrongs = set()
    for seed in range(RANDOM_SCENES):
        rng = random.Random(seed)
        scene = draw_scene(rng)
        claim = draw_claim(scene, rng)
        lie, wrong = draw_lie(claim, scene, rng)
        wrongs.add(wrong)
        for phrasing in (say, say_tersely):
            text, false = phrasing(claim, rng), phrasing(lie, rng)
            assert is_true(text, scene), (text, claim, scene)
            assert parse(false) is not None, false
            assert not is_true(false, scene), (false, lie, scene)
            # What is said is what is read: nothing is lost and nothing is added.
            assert parse(text) == claim, text
    assert wrongs == {"noun", "count", "colour", "relation"}


def test_parse_reads_nothing_that_would_not_be_said() -> None:
    """Texts with a word too many, too few, elsewhere or other: one that is read can be said."""
    vocabulary = [*words(), ","]
    read, refused = 0, 0
    for seed in range(MUTANTS):
        rng = random.Random(f"mutant/{seed}")
        claim = draw_claim(draw_scene(rng), rng)
        text = spaced(rng.choice((say, say_tersely))(claim, rng))
        assert can_be_said(claim, text)
        text = _mutated(text.split(), vocabulary, rng)
        found = parse(text)
        if found is None:
            refused += 1
        else:
            read += 1
            assert can_be_said(found, text), (text, found)
    assert min(read, refused) > MUTANTS // 10


def _mutated(text: list[str], vocabulary: list[str], rng: random.Random) -> str:
    at = rng.randrange(len(text))
    kind = rng.choice(("drop", "insert", "replace", "swap", "end"))
    if kind == "drop":
        del text[at]
    elif kind == "insert":
        text.insert(at, rng.choice(vocabulary))
    elif kind == "replace":
        text[at] = rng.choice(vocabulary)
    elif kind == "swap":
        text[at : at + 2] = reversed(text[at : at + 2])
    else:
        del text[at + 1 :]
    return " ".join(text)


def test_draw_lie_differs_from_the_claim_in_one_thing() -> None:
    def facts(claim: Claim) -> list[object]:
        mentions = [fact for m in claim.mentions for fact in (m.noun, m.count, m.size, m.colour)]
        b = claim.background or Background("", "")
        return [*mentions, claim.subjects, claim.relation, b.pattern, b.colour, b.second]

    for seed in range(RANDOM_SCENES):
        rng = random.Random(seed)
        scene = draw_scene(rng)
        claim = draw_claim(scene, rng)
        lie, _ = draw_lie(claim, scene, rng)
        assert sum(a != b for a, b in zip(facts(claim), facts(lie), strict=True)) == 1


def test_caption_is_true_varied_and_of_5_to_14_words() -> None:
    rng = random.Random(0)
    for _ in range(RANDOM_SCENES // 5):
        scene = draw_scene(rng)
        texts = {caption(scene, rng) for _ in range(10)}
        assert len(texts) > 3
        for text in texts:
            assert is_true(text, scene), (text, scene)
            assert 5 <= len(text.split()) <= 14
            assert text == text.lower()


def test_words_are_those_of_the_texts() -> None:
    rng = random.Random(0)
    said = set()
    for _ in range(RANDOM_SCENES):
        claim = draw_claim(draw_scene(rng), rng)
        said |= {*f"{say(claim, rng)} {say_tersely(claim, rng)}".replace(",", "").split()}
    assert sorted(said) == words()


def test_lies_name_relations_backgrounds_and_colours_as_often_as_truths() -> None:
    rng = random.Random(0)
    counts = {True: [0, 0, 0], False: [0, 0, 0]}
    for _ in range(RANDOM_SCENES):
        scene = draw_scene(rng)
        claim = draw_claim(scene, rng)
        for said in (claim, draw_lie(claim, scene, rng)[0]):
            found = counts[said is claim]
            found[0] += said.relation != ""
            found[1] += said.background is not None
            found[2] += any(mention.colour for mention in said.mentions)
    assert counts[True] == counts[False]
