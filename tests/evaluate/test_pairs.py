from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from capfilt.errors import InputError
from capfilt.evaluate.pairs import Captioned, Labelled, read_captioned, read_labelled
from tests.evaluate.conftest import put_lines

WANTED = [Captioned("x/7.jpg", ("a bus", "a red bus")), Captioned("9.jpg", ("a dog",))]
COCO = {
    "images": [{"id": 7, "file_name": "x/7.jpg"}, {"id": 9, "file_name": "9.jpg"}],
    "annotations": [
        {"image_id": 7, "caption": "a bus"},
        {"image_id": 9, "caption": "a dog"},
        {"image_id": 7, "caption": "a red bus"},
    ],
}
ROWS = [
    {"image": "x/7.jpg", "caption": "a bus"},
    {"image": "9.jpg", "caption": "a dog"},
    {"image": "x/7.jpg", "caption": "a red bus"},
]
GROUPED = [
    {"image": "x/7.jpg", "captions": ["a bus", "a red bus"], "split": "dev"},
    {"image": "9.jpg", "captions": ["a dog"], "split": "test"},
]
LABELLED = [
    {"image": "7.jpg", "caption": "a bus", "label": 1, "split": "dev"},
    {"image": "7.jpg", "caption": "a dog", "label": 0, "split": "dev"},
    {"image": "9.jpg", "caption": "a dog", "label": True, "split": "test"},
]


def put(path: Path, content: Any) -> str:
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return str(path)


@pytest.mark.parametrize("tree", [COCO, ROWS, GROUPED])
def test_read_captioned_takes_every_form_of_json(tree: Any, tmp_path: Path) -> None:
    assert read_captioned(put(tmp_path / "x.json", tree)) == WANTED


@pytest.mark.parametrize("rows", [ROWS, GROUPED, ROWS[:1]])
def test_read_captioned_takes_json_lines(rows: list[Any], tmp_path: Path) -> None:
    found = read_captioned(put_lines(tmp_path / "x.jsonl", rows))
    assert found == (WANTED if len(rows) > 1 else [Captioned("x/7.jpg", ("a bus",))])


def test_split_takes_its_rows_alone(tmp_path: Path) -> None:
    assert read_captioned(put_lines(tmp_path / "x", GROUPED), split="test") == WANTED[1:]
    labelled = read_labelled(put_lines(tmp_path / "y", LABELLED), split="dev")
    assert labelled == [Labelled("7.jpg", "a bus", True), Labelled("7.jpg", "a dog", False)]
    assert len(read_labelled(put_lines(tmp_path / "y", LABELLED))) == 3


@pytest.mark.parametrize(
    ("content", "split", "message"),
    [
        ("", None, "no rows in it"),
        ("[]", None, "no rows in it"),
        ("7", None, "not a list of rows with image, caption"),
        ("image,caption\n7.jpg,a bus", None, "neither JSON nor JSON lines: line 1"),
        ([{"image": "7.jpg", "text": "a bus"}], None, "row 1 has no caption; it has image, text"),
        ([*ROWS, {"caption": "x"}], None, "row 4 has no image; it has caption"),
        (ROWS, "dev", "row 1 has no split; it has image, caption"),
        (GROUPED, "val", "no split 'val'; it has dev, test"),
        (COCO, "dev", "no splits"),
        (LABELLED, None, "its rows have a `label`.* for `capfilt evaluate filter`"),
        ([GROUPED[0], {**GROUPED[0], "label": 0}], "dev", "its rows have a `label`"),
        ({"images": COCO["images"], "annotations": []}, None, r"image x/7\.jpg has no caption"),
        ({"images": COCO["images"]}, None, "not a captions file"),
        ([{"image": "7.jpg", "captions": []}], None, r"image 7\.jpg has no caption"),
        ([{"image": "7.jpg", "caption": " "}], None, r"image 7\.jpg has no caption"),
        ([{"image": "7.jpg", "caption": None}], None, r"image 7\.jpg has no caption"),
    ],
)
def test_read_captioned_of_bad_files_says_what_is_wrong(
    content: Any, split: str | None, message: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=message) as error:
        read_captioned(put(tmp_path / "x.json", content), split=split)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("rows", "split", "message"),
    [
        (LABELLED[:1], None, "labels of the file are all the same"),
        (LABELLED, "test", "labels of split 'test' are all the same"),
        ([{**LABELLED[0], "label": 2}], None, r"a label is 1 \(match\) or 0, is 2 for '7.jpg'"),
        ([{**LABELLED[0], "label": "1"}], None, "is '1' for"),
        ([{**LABELLED[0], "caption": 5}], None, "image and caption are texts"),
        (GROUPED, None, "row 1 has no caption, label; it has image, captions, split"),
    ],
)
def test_read_labelled_of_bad_files_says_what_is_wrong(
    rows: list[Any], split: str | None, message: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=message):
        read_labelled(put_lines(tmp_path / "x.jsonl", rows), split=split)


def test_a_file_that_is_no_text_or_not_there_is_named(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="not UTF-8"):
        read_captioned(str(tmp_path / "x"))
    with pytest.raises(InputError, match="nowhere"):
        read_captioned(str(tmp_path / "nowhere"))
