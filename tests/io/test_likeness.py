from __future__ import annotations

import hashlib
import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFilter

from capfilt.config import ImageConfig
from capfilt.errors import InputError
from capfilt.io.likeness import EvaluationSet, likeness, near_any, near_earlier
from capfilt.io.looks import Looks
from tests.select.test_pictures import photo


def encode(image: Image.Image, form: str = "JPEG", **options: int) -> bytes:
    encoded = io.BytesIO()
    image.save(encoded, form, **options)
    return encoded.getvalue()


def bits_apart(one: bytes, other: bytes) -> int:
    first, second = (likeness(image, look=True).phash for image in (one, other))
    assert first is not None
    assert second is not None
    return (first ^ second).bit_count()


def test_phash_sees_through_size_quality_and_format_but_not_another_picture() -> None:
    original = Image.open(io.BytesIO(photo(3, 400)))
    for copy in (
        encode(original.resize((256, 256))),
        encode(original, quality=30),
        encode(original, "PNG"),
        encode(original.filter(ImageFilter.GaussianBlur(1))),
    ):
        assert bits_apart(photo(3, 400), copy) <= 4
    assert min(bits_apart(photo(3, 400), photo(n)) for n in range(10, 30)) > 10


def test_likeness_of_what_is_no_image_is_its_bytes_alone() -> None:
    found = likeness(b"<html>", look=True)
    assert (found.sha256, found.phash) == (hashlib.sha256(b"<html>").digest(), None)


def test_likeness_sees_no_image_that_a_run_would_not_decode() -> None:
    large, small = ImageConfig(max_pixels=300 * 300), ImageConfig(min_side=300)
    assert likeness(photo(3, 400), look=True, limits=large).phash is None
    assert likeness(photo(3, 120), look=True, limits=small).phash is None
    assert likeness(photo(3, 300), look=True, limits=large) == likeness(photo(3, 300), look=True)


def random_hashes() -> np.ndarray:
    generator = np.random.default_rng(0)
    hashes = generator.integers(0, 2**64, 1500, dtype=np.uint64)
    far = hashes[:200] ^ np.uint64(0b11111)  # 5 bits
    near = hashes[200:500] ^ np.uint64(1 << 63 | 1 << 40 | 1 << 20 | 1)  # 4 bits, in 4 parts
    hashes = np.concatenate([hashes, far, near, hashes[:9], hashes[:9]])
    generator.shuffle(hashes)
    return hashes


@pytest.mark.parametrize("bits", [0, 4, 9])
def test_near_earlier_is_what_comparing_with_all_that_stay_gives(bits: int) -> None:
    hashes = random_hashes()
    hashes = np.concatenate([hashes, hashes[:300] ^ np.uint64(0b11 << 30)])  # chains, too
    distance = np.bitwise_count(hashes[:, None] ^ hashes[None])
    expected = np.zeros(len(hashes), dtype=bool)
    for i, row in enumerate(distance <= bits):
        expected[i] = (row[:i] & ~expected[:i]).any()
    assert (near_earlier(hashes, bits=bits) == expected).all()
    assert bits != 4 or 500 < expected.sum() < 700


def test_near_earlier_compares_with_what_stays() -> None:
    """The third is like the second alone, which goes; the fourth is like the third."""
    hashes = np.array([0b0, 0b1111, 0b1111_1111, 0b1111_1110], dtype=np.uint64)
    assert near_earlier(hashes).tolist() == [False, True, False, True]
    assert near_earlier(hashes[:0]).tolist() == []


def test_near_any_is_what_comparing_all_pairs_gives() -> None:
    hashes = random_hashes()
    others = hashes[::9] ^ np.uint64(0b1001)
    expected = (np.bitwise_count(hashes[:, None] ^ others[None]) <= 4).any(axis=1)
    assert (near_any(hashes, others) == expected).all()
    assert 200 < expected.sum() < 500
    assert not near_any(hashes, others[:0]).any()


def test_evaluation_set_from_a_folder_and_from_lists(tmp_path: Path) -> None:
    (tmp_path / "coco/val").mkdir(parents=True)
    (tmp_path / "coco/val/1.jpg").write_bytes(photo(1, 300))
    (tmp_path / "coco/readme.md").write_text("not a picture")
    sha256, phash = hashlib.sha256(photo(2)).hexdigest(), likeness(photo(4), look=True).phash
    (tmp_path / "hashes.txt").write_text(f"# of a benchmark\n{sha256}  2.jpg\n\n{phash:016X}\n")
    found = EvaluationSet.load([str(tmp_path / "coco"), str(tmp_path / "hashes.txt")])
    small = encode(Image.open(io.BytesIO(photo(1, 300))).resize((150, 150)))
    likes = [likeness(image, look=True) for image in (small, photo(2), photo(3), photo(4))]
    looks = Looks.of(range(4), likes)
    assert looks.held_by(found).tolist() == [True, True, False, True]
    assert looks.only(~looks.held_by(found)).numbers.tolist() == [2]
    assert found.digest() != EvaluationSet.load([str(tmp_path / "coco")]).digest()


def test_evaluation_list_with_another_line_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "hashes.txt").write_text("d41d8cd98f00b204e9800998ecf8427e\n")
    with pytest.raises(InputError, match=r"hashes.txt:1: 'd41d8.* is no hash"):
        EvaluationSet.load([str(tmp_path / "hashes.txt")])


def test_likeness_decodes_only_what_a_run_decodes() -> None:
    """EPS would start another program, and decoders raise nearly every class on bad data."""
    page = encode(Image.new("RGB", (64, 64), "red"), "EPS")
    assert likeness(page, look=True).phash is None
    picture = photo(1)
    for cut in range(20, 600, 20):
        assert likeness(picture[:cut], look=True).sha256
