from __future__ import annotations

import json
from pathlib import Path

import pytest

from capfilt.config import ImageConfig
from capfilt.errors import InputError
from capfilt.io import files, publish
from capfilt.io.reader import read_samples
from capfilt.record import Reason
from capfilt.shard import Form, InputShard
from tests.io.conftest import jpeg, read, sample_members


def put(folder: str | Path, *members: tuple[str, bytes]) -> str:
    for name, content in members:
        publish.write_bytes(files.join(str(folder), name), content)
    return str(folder)


def test_read_folder_samples_come_by_key(place: str) -> None:
    url = put(place, *sample_members("0002", "a cat"), *sample_members("0001", "a dog"))
    first, second = read(url, Form.FILES, expected=2)
    assert (first.key, first.image, first.image_ext) == ("0001", jpeg(4), "jpg")
    assert first.texts[0].content == "a dog"
    assert first.metadata["url"] == "http://host.invalid/0001"
    assert second.key == "0002"


def test_read_folder_many_samples_keep_their_order(tmp_path: Path) -> None:
    url = put(tmp_path, *[(f"{i:03d}.jpg", str(i).encode()) for i in range(50)])
    found = [(s.key, s.image) for s in read(url, Form.FILES)]
    assert found == [(f"{i:03d}", str(i).encode()) for i in range(50)]


def test_read_folder_bad_samples_have_their_problem(tmp_path: Path) -> None:
    url = put(
        tmp_path,
        ("1.txt", b"no image"),
        ("2.jpg", b"x" * 11),
        ("3.jpg", b"x"),
        ("3.json", b"["),
        ("4.jpg", b"x"),
        (".hidden.jpg", b"x"),
        ("README", b"x"),
        ("below/5.jpg", b"x"),
    )
    shard = InputShard("0", Form.FILES, url, 0, "")
    found = [(s.key, s.problem) for s in read_samples(shard, ImageConfig(max_bytes=10))]
    assert found == [
        ("1", Reason.NO_IMAGE),
        ("2", Reason.IMAGE_TOO_LARGE),
        ("3", Reason.METADATA_INVALID),
        ("4", None),
    ]


def test_read_folder_fewer_images_than_promised_is_an_error(tmp_path: Path) -> None:
    url = put(tmp_path, ("1.jpg", b"x"), ("1.json", json.dumps({}).encode()))
    with pytest.raises(InputError, match=r"1 images, but its _stats\.json says 3"):
        read(url, Form.FILES, expected=3)


def test_read_folder_that_is_gone_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="gone: not found"):
        read(tmp_path / "gone", Form.FILES)
