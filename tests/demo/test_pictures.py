from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from capfilt.demo.pictures import (
    COLOURS,
    SIDE,
    Picture,
    Thing,
    describe,
    make_pictures,
    write_list,
)


def test_make_pictures_same_seed_gives_the_same_bytes(tmp_path: Path) -> None:
    first = make_pictures(tmp_path / "a", 6, seed=3)
    assert make_pictures(tmp_path / "b", 6, seed=3) == first
    for picture in first:
        again = (tmp_path / "b" / picture.file).read_bytes()
        assert (tmp_path / "a" / picture.file).read_bytes() == again
    assert make_pictures(tmp_path / "c", 6, seed=4) != first


def test_make_pictures_caption_names_the_colours_that_are_there(tmp_path: Path) -> None:
    for picture in make_pictures(tmp_path, 20):
        pixels = np.asarray(Image.open(tmp_path / picture.file)).astype(int)
        assert pixels.shape == (SIDE, SIDE, 3)
        for name, colour in COLOURS.items():
            area = (np.abs(pixels - colour).max(axis=2) < 12).sum()
            assert (area > 300) == (name in picture.caption.split()), (picture, name, area)


def test_make_pictures_has_web_texts_of_every_kind(tmp_path: Path) -> None:
    drawn = make_pictures(tmp_path, 80)
    assert {p.web_kind for p in drawn} == {"true", "other", "junk", "empty"}
    for picture in drawn:
        assert (picture.caption in picture.web_text) == (picture.web_kind == "true")
        assert (picture.web_text == "") == (picture.web_kind == "empty")


def thing(colour: str, x: float, y: float, size: str = "") -> Thing:
    return Thing("circle", colour, size, x, y)


@pytest.mark.parametrize(
    ("things", "expected"),
    [
        ([thing("orange", 0, 0)], "an orange circle"),
        ([thing("red", 0.5, 0.2), thing("blue", 0.6, 0.8)], "a red circle above a blue circle"),
        ([thing("red", 0.5, 0.8), thing("blue", 0.6, 0.2)], "a red circle below a blue circle"),
        ([thing("red", 0.2, 0.5, "big"), thing("blue", 0.8, 0.6)],
         "a big red circle to the left of a blue circle"),
        ([thing("red", 0.2, 0.5), thing("blue", 0.8, 0.6), thing("pink", 0.5, 0.1)],
         "a red circle, a blue circle and a pink circle"),
    ],
)  # fmt: skip
def test_describe_says_what_is_where(things: list[Thing], expected: str) -> None:
    assert describe(things) == expected


def test_write_list_has_the_truth_beside_the_web_text(tmp_path: Path) -> None:
    write_list(
        tmp_path / "urls.parquet", [Picture("a.jpg", "a red circle", "", "empty")], "http://h"
    )
    assert pq.read_table(tmp_path / "urls.parquet").to_pylist() == [
        {
            "url": "http://h/a.jpg",
            "caption": "",
            "true_caption": "a red circle",
            "web_kind": "empty",
        }
    ]
