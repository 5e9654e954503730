import itertools
import json
import random
from dataclasses import asdict

import pytest

from capfilt.demo.nouns import NOUNS, SIZES, article
from capfilt.demo.scene import (
    Background,
    Group,
    Scene,
    direction,
    draw_scene,
    rearrange,
    recount,
)

SCENES = [draw_scene(random.Random(seed)) for seed in range(3000)]


def test_draw_scene_things_lie_in_the_picture_and_hide_no_other() -> None:
    for scene in SCENES:
        boxes = [
            (x - side / 2, y - side / 2, x + side / 2, y + side / 2)
            for group in scene.groups
            for side in [SIZES[group.size]]
            for x, y in group.places
        ]
        assert all(min(box) >= 0 and max(box) <= 1 for box in boxes)
        for a, b in itertools.combinations(boxes, 2):
            assert a[2] <= b[0] or b[2] <= a[0] or a[3] <= b[1] or b[3] <= a[1], scene


def test_draw_scene_directions_are_clear_and_turn_with_the_groups() -> None:
    opposite = {"left": "right", "right": "left", "above": "below", "below": "above"}
    for scene in SCENES:
        for a, b in itertools.combinations(scene.groups, 2):
            assert direction(b, a) == opposite[direction(a, b)]
            across, down = (abs(p - q) for p, q in zip(a.centre, b.centre, strict=True))
            assert abs(across - down) >= 0.2


def test_draw_scene_shows_everything_there_is() -> None:
    groups = [group for scene in SCENES for group in scene.groups]
    assert {(g.noun, g.colour) for g in groups} == {
        (noun.name, colour) for noun in NOUNS.values() for colour in noun.colours or ("",)
    }
    assert {(g.size, g.count) for g in groups} == set(itertools.product(SIZES, range(1, 5)))
    assert {len(scene.groups) for scene in SCENES} == {1, 2, 3}
    assert len({(s.background.pattern, s.background.colour) for s in SCENES}) == 5 * 9
    assert len(NOUNS) >= 60


def test_rearrange_keeps_things_and_moves_them() -> None:
    def tell(scene: Scene) -> list[tuple[str, str, int, bool]]:
        return [(g.noun, g.colour, g.count, g.mirrored) for g in scene.groups]

    turned = 0
    for seed, scene in enumerate(SCENES[:500]):
        other = rearrange(scene, random.Random(f"elsewhere/{seed}"))
        assert (tell(other), other.background) == (tell(scene), scene.background)
        for before, after in zip(scene.groups, other.groups, strict=True):
            assert after.size in (before.size, "small")  # a smaller place makes things small
        for a, b in itertools.combinations(other.groups, 2):
            across, down = (abs(p - q) for p, q in zip(a.centre, b.centre, strict=True))
            assert abs(across - down) >= 0.2
        if len(scene.groups) > 1:
            turned += direction(*other.groups[:2]) != direction(*scene.groups[:2])
    assert turned > 200  # of some 350 with two groups or more


def test_recount_changes_numbers_alone() -> None:
    def tell(scene: Scene) -> list[tuple[str, str, bool]]:
        return [(g.noun, g.colour, g.mirrored) for g in scene.groups]

    for seed, scene in enumerate(SCENES[:500]):
        rng = random.Random(f"others/{seed}")
        counts = [rng.randint(1, 4) for _ in scene.groups]
        other = recount(scene, counts, rng)
        assert [group.count for group in other.groups] == counts
        assert (tell(other), other.background) == (tell(scene), scene.background)
        for before, after in zip(scene.groups, other.groups, strict=True):
            assert after.size in (before.size, "small")  # more of them may have too little room
        for place, (a, b) in enumerate(itertools.combinations(scene.groups, 2)):
            c, d = list(itertools.combinations(other.groups, 2))[place]
            assert direction(c, d) == direction(a, b)


@pytest.mark.parametrize(
    ("other", "expected"),
    [((0.5, 0.9), "above"), ((0.5, 0.1), "below"), ((0.9, 0.6), "left"), ((0.1, 0.6), "right")],
)
def test_direction_is_that_of_the_larger_distance(
    other: tuple[float, float], expected: str
) -> None:
    one, two = (Group("dog", "", "small", False, (place,)) for place in ((0.5, 0.5), other))
    assert direction(one, two) == expected


def test_group_centre_is_the_mean_of_its_things() -> None:
    group = Group("dog", "", "small", False, ((0.1, 0.2), (0.3, 0.8)))
    assert group.centre == pytest.approx((0.2, 0.5))


def test_is_held_out_takes_a_fifth_whatever_the_jitter_and_the_order() -> None:
    assert 0.17 < sum(scene.is_held_out for scene in SCENES) / len(SCENES) < 0.23
    kinds = {scene.is_held_out for scene in SCENES if len(scene.groups) == 2}
    assert kinds == {True, False}
    a, b = (Group(n, "", "small", False, ((x, 0.5),)) for n, x in (("dog", 0.2), ("owl", 0.8)))
    moved = Group("owl", "", "small", True, ((0.7, 0.4),))
    for colour in ("red", "blue", "pink", "white", "gray"):
        background = Background("plain", colour)
        held = {Scene(g, background).is_held_out for g in ((a, b), (b, a), (a, moved))}
        assert len(held) == 1


def test_scene_from_dict_reads_its_json() -> None:
    for scene in SCENES[:50]:
        assert Scene.from_dict(json.loads(json.dumps(asdict(scene)))) == scene


def test_nouns_have_their_plurals_and_articles() -> None:
    irregular = {
        "mouse": "mice", "sheep": "sheep", "fish": "fish", "goose": "geese", "leaf": "leaves",
        "fox": "foxes", "bus": "buses", "butterfly": "butterflies", "snowman": "snowmen",
        "strawberry": "strawberries", "octopus": "octopuses", "cactus": "cactuses",
        "dress": "dresses",
    }  # fmt: skip
    for noun in NOUNS.values():
        assert noun.plural == irregular.get(noun.name, noun.name + "s")
    an = {"owl", "elephant", "octopus", "apple", "avocado", "airplane", "umbrella"}
    assert {name for name in NOUNS if article(name) == "an"} == an
