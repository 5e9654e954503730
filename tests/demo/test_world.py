import itertools
import math
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from capfilt.demo.checker import is_true, parse
from capfilt.demo.nouns import BACKGROUND_COLOURS, NOUNS, THING_COLOURS, choose_nouns
from capfilt.demo.render import render, render_jpeg
from capfilt.demo.scene import Background, Group, Scene
from capfilt.demo.sprites import CELLS, sprite
from capfilt.demo.web import WebMix, statement
from capfilt.demo.world import EVALUATION, HUMAN, WEB, draw_pairs, draw_pictures
from capfilt.errors import ConfigError

PICTURES = list(draw_pictures(1500, WEB, captions=2))


def test_draw_pictures_captions_are_true_and_web_texts_what_their_kind_says() -> None:
    for picture in PICTURES:
        assert all(is_true(text, picture.scene) for text in picture.captions)
        assert len(set(picture.captions)) == 2
        said = statement(picture.web.content)
        assert is_true(said, picture.scene) == (picture.web.kind == "true"), picture
        assert (parse(said) is not None) == (picture.web.kind in ("true", "lie", "other"))
        assert (picture.web.content == "") == (picture.web.kind == "empty")
        assert (picture.web.wrong != "") == (picture.web.kind == "lie")


def test_draw_pictures_kinds_come_in_their_shares() -> None:
    counts = Counter(picture.web.kind for picture in PICTURES)
    for kind, share in {"true": 35, "lie": 20, "other": 20, "junk": 20, "empty": 5}.items():
        deviation = math.sqrt(1500 * share / 100 * (1 - share / 100))
        assert abs(counts[kind] - 15 * share) < 4 * deviation
    mix = WebMix(true=0, lie=1, other=0, junk=0, empty=0)
    assert {p.web.kind for p in draw_pictures(20, WEB, mix=mix)} == {"lie"}


def test_web_mix_shares_that_are_none_are_a_config_error() -> None:
    with pytest.raises(ConfigError, match="add up to 1"):
        WebMix(true=0.5)
    with pytest.raises(ConfigError, match="at least 0"):
        WebMix(true=-0.35, other=0.9)


def test_draw_pictures_is_a_function_of_seed_split_and_number() -> None:
    assert list(draw_pictures(5, WEB, captions=2)) == PICTURES[:5]
    for other in (draw_pictures(5, WEB, seed=1), draw_pictures(5, HUMAN)):
        assert not {p.scene for p in other} & {p.scene for p in PICTURES}


def test_draw_pictures_evaluation_scenes_have_no_like_in_training() -> None:
    assert all(picture.scene.is_held_out for picture in draw_pictures(200, EVALUATION))
    assert not any(picture.scene.is_held_out for picture in PICTURES)
    assert not any(picture.scene.is_held_out for picture in draw_pictures(200, HUMAN))


def test_draw_pairs_one_is_true_and_the_rest_false() -> None:
    for picture in PICTURES[:300]:
        pairs = draw_pairs(picture, WEB)
        assert [web.kind for web in pairs] == ["true", "lie", "other", "junk"]
        truths = [is_true(statement(web.content), picture.scene) for web in pairs]
        assert truths == [True, False, False, False]
        assert pairs == draw_pairs(picture, WEB)


def test_render_same_scene_gives_the_same_bytes() -> None:
    for picture in PICTURES[:20]:
        data = render_jpeg(picture.scene)
        assert data == render_jpeg(picture.scene)
        assert data[:2] == b"\xff\xd8"
    assert len({render_jpeg(picture.scene) for picture in PICTURES[:20]}) == 20


def test_render_draws_each_thing_at_its_place_and_nothing_elsewhere() -> None:
    group = Group("penguin", "", "big", False, ((0.25, 0.3), (0.75, 0.7)))
    pixels = np.asarray(render(Scene((group,), Background("plain", "white")), 100)).astype(int)
    drawn = np.abs(pixels - BACKGROUND_COLOURS["white"]).max(axis=2) > 8
    for x, y in ((25, 30), (75, 70)):
        assert drawn[y - 20 : y + 20, x - 20 : x + 20].mean() > 0.4
        drawn[y - 20 : y + 20, x - 20 : x + 20] = False
    assert not drawn.any()


@pytest.mark.parametrize(
    ("background", "top", "bottom"),
    [
        (Background("plain", "red"), "red", "red"),
        (Background("gradient", "red", "white"), "red", "white"),
    ],
)
def test_render_background_has_its_colours(background: Background, top: str, bottom: str) -> None:
    group = Group("dog", "", "small", False, ((0.5, 0.5),))
    image = render(Scene((group,), background), 64)
    assert image.getpixel((0, 0)) == BACKGROUND_COLOURS[top]
    assert image.getpixel((63, 63)) == BACKGROUND_COLOURS[bottom]


def test_render_every_background_differs_from_every_other() -> None:
    group = Group("dog", "", "small", False, ((0.5, 0.5),))
    patterns = ("plain", "striped", "dotted", "checkered")
    drawn = [
        np.asarray(render(Scene((group,), Background(pattern, colour)), 64)).astype(int)
        for pattern, colour in itertools.product(patterns, BACKGROUND_COLOURS)
    ]
    for a, b in itertools.combinations(drawn, 2):
        assert np.abs(a - b).mean() > 1


def test_sprite_every_drawing_is_there_and_unlike_the_others() -> None:
    drawn = {}
    for cell in CELLS:
        image = sprite(*cell, 24)
        assert (image.mode, image.size) == ("RGBA", (24, 24))
        alpha = np.asarray(image)[..., 3]
        assert 0.15 < (alpha > 128).mean() < 0.98, cell
        flat = Image.new("RGB", (24, 24), (170, 190, 200))
        flat.paste(image, image)
        drawn[cell] = np.asarray(flat).astype(int)
    for (one, a), (two, b) in itertools.combinations(drawn.items(), 2):
        assert np.abs(a - b).mean() > 7, (one, two)


def test_sprite_mirrored_is_the_other_way_round() -> None:
    plain, mirrored = (np.asarray(sprite("dog", "", 40, m)) for m in (False, True))
    assert (plain[:, ::-1] == mirrored).all()


def test_sprite_colours_show() -> None:
    """Of what is dyed, most is nearest in hue to the colour that it is called."""
    for noun in (noun for noun in NOUNS.values() if noun.colours):
        for colour in noun.colours:
            hue, saturation, _ = np.asarray(
                sprite(noun.name, colour, 64).convert("RGB").convert("HSV")
            ).T.astype(float)
            degrees = hue[saturation > 120] * 360 / 255
            assert abs(np.median(degrees) - THING_COLOURS[colour][0]) < 12, (noun, colour)


def test_sprites_licence_lies_beside_them() -> None:
    import capfilt.demo.sprites as module

    notice = Path(module.__file__).with_name("sprites.LICENSE").read_text()
    assert "SIL OPEN FONT LICENSE Version 1.1" in notice
    assert "Google Inc." in notice


@pytest.mark.parametrize("count", [4, 12])
def test_draw_pairs_of_a_small_world_are_as_in_the_whole_one(count: int) -> None:
    """Even where every thing that has a choice of colours is in the picture."""
    nouns = choose_nouns(count)
    for picture in draw_pictures(300, WEB, seed=1, mix=WebMix(), nouns=nouns):
        for web in draw_pairs(picture, WEB, 0, nouns):
            told = is_true(statement(web.content), picture.scene)
            assert told == (web.kind == "true"), web
