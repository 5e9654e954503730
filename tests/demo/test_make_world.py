"""What the bundled checkpoint is trained on: pictures that texts tell apart by one thing alone."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

from capfilt.demo.checker import is_true
from capfilt.demo.scene import Scene, direction
from capfilt.demo.web import statement
from capfilt.demo.world import Picture

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks/emoji/make_world.py"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_world", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def tell_true(picture: Picture, scene: Scene) -> list[bool]:
    return [is_true(statement(text), scene) for text in picture.captions]


def directions(scene: Scene) -> list[str]:
    return [direction(a, b) for a in scene.groups for b in scene.groups if a is not b]


def test_a_fours_pictures_differ_in_numbers_alone_and_their_texts_say_so(
    script: ModuleType,
) -> None:
    for number in range(40):
        four = list(script.draw_four(number))
        scenes = [member.scene for member in four]
        assert not any(scene.is_held_out for scene in scenes)
        alike = {
            (*((g.noun, g.colour) for g in scene.groups), *directions(scene), scene.background)
            for scene in scenes
        }
        assert len(alike) == 1
        for counts in zip(*([g.count for g in scene.groups] for scene in scenes), strict=True):
            assert sorted(counts) == [1, 2, 3, 4]
        for member in four:
            assert all(tell_true(member, member.scene))
            for other in scenes:
                if other is not member.scene:
                    assert not any(tell_true(member, other))


def test_a_threes_pictures_differ_in_one_group_alone_and_their_texts_say_so(
    script: ModuleType,
) -> None:
    for number in range(60):
        three = list(script.draw_three(number))
        scenes = [member.scene for member in three]
        assert not any(scene.is_held_out for scene in scenes)
        assert len({(*directions(scene), scene.background) for scene in scenes}) == 1
        groups = list(zip(*(scene.groups for scene in scenes), strict=True))
        assert all(len({g.size for g in same}) == 1 for same in groups)
        nouns = [len({g.noun for g in same}) for same in groups]
        counts = [len({g.count for g in same}) for same in groups]
        one, alike = sorted([3, *[1] * (len(groups) - 1)]), [1] * len(groups)
        assert (sorted(nouns), sorted(counts)) in ((one, alike), (alike, one))
        for member in three:
            assert all(tell_true(member, member.scene))
            for other in scenes:
                if other is not member.scene:
                    assert not any(tell_true(member, other))


def test_twins_differ_in_places_alone_and_their_texts_say_so(script: ModuleType) -> None:
    for number in range(40):
        one, other = script.draw_twins(number)
        assert [(g.noun, g.colour, g.count) for g in one.scene.groups] == [
            (g.noun, g.colour, g.count) for g in other.scene.groups
        ]
        assert all(tell_true(one, one.scene))
        assert not any(tell_true(one, other.scene))


def test_a_familys_texts_tell_a_picture_from_most_of_it(script: ModuleType) -> None:
    told = []
    for number in range(5):
        family = list(script.draw_family(number))
        assert len({tuple(g.noun for g in member.scene.groups) for member in family}) == 1
        for member in family:
            assert all(tell_true(member, member.scene))
            others = [other.scene for other in family if other is not member]
            told += [sum(tell_true(member, other)) for other in others]
    assert sum(told) / len(told) < 0.4  # of four texts
