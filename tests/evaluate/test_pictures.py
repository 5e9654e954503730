from __future__ import annotations

import threading
from pathlib import Path

import pytest
import torch

from capfilt.config import ComputeConfig, ImageConfig
from capfilt.errors import InputError
from capfilt.evaluate.pictures import Pictures
from capfilt.models.images import PixelSpec
from tests.evaluate.conftest import PICTURES
from tests.models.conftest import make_images

SPEC = PixelSpec(32)


@pytest.mark.parametrize("size", [1, 5, 12, 100])
@pytest.mark.parametrize("threads", [1, 4])
def test_batches_have_every_image_in_order(size: int, threads: int, pictures: Path) -> None:
    compute = ComputeConfig(batch_size=size, decode_threads=threads)
    order = [7, 3, 3, 0, *range(PICTURES)]
    batches = list(
        Pictures(str(pictures), compute=compute).batches([f"{i}.png" for i in order], SPEC)
    )
    assert [len(batch) for batch in batches[:-1]] == [size] * (len(batches) - 1)
    found = torch.stack([image for batch in batches for image in batch])
    assert torch.equal(found, make_images(PICTURES)[order])


def test_batches_of_nothing_are_none(pictures: Path) -> None:
    assert list(Pictures(str(pictures)).batches([], SPEC)) == []


def test_batches_given_up_leave_no_threads(pictures: Path) -> None:
    before = threading.active_count()
    batches = Pictures(str(pictures), compute=ComputeConfig(batch_size=1)).batches(
        [f"{i}.png" for i in range(PICTURES)], SPEC
    )
    next(batches)
    batches.close()  # type: ignore[attr-defined]
    assert threading.active_count() == before


def test_an_image_beyond_the_limits_is_an_error(pictures: Path) -> None:
    place = Pictures(str(pictures), ImageConfig(min_side=33))
    with pytest.raises(InputError, match=r"0\.png: image_too_small: 32 x 32"):
        list(place.batches(["0.png"], SPEC))


def test_names_are_those_of_images_at_any_depth(tmp_path: Path) -> None:
    for name in ("b/2.JPG", "a.png", "b/c/1.webp", "notes.txt", "b/3.json"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert Pictures(str(tmp_path)).names() == ["a.png", "b/2.JPG", "b/c/1.webp"]
    for empty in (tmp_path / "b" / "d", tmp_path / "nowhere"):
        with pytest.raises(InputError, match="no images below it"):
            Pictures(str(empty)).names()


def test_check_counts_missing_images_once(pictures: Path) -> None:
    with pytest.raises(InputError, match=r"2 of 3 images are not there, the first is x\.png"):
        Pictures(str(pictures)).check(["0.png", "x.png", "x.png", "y.png"])
