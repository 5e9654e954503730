from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest

from capfilt.config import ImageConfig
from capfilt.errors import InputError
from capfilt.io import files, publish
from capfilt.io.inputs import human_shards, read_samples
from capfilt.record import Reason, Sample, Source

COCO = {
    "images": [
        {"id": 9, "file_name": "val2014/COCO_000000000009.jpg"},
        {"id": 7, "file_name": "val2014/COCO_000000000007.jpg"},
    ],
    "annotations": [
        {"image_id": 7, "id": 1, "caption": "a red bus"},
        {"image_id": 9, "id": 2, "caption": "a dog"},
        {"image_id": 7, "id": 3, "caption": "a bus in a street"},
    ],
}


def samples(url: str, images: str | None = None, **options: Any) -> list[Sample]:
    shards = human_shards(url, images, **options)
    return [sample for shard in shards for sample in read_samples(shard, ImageConfig())]


def put_json(root: str | Path, tree: Any, name: str = "captions.json") -> str:
    url = files.join(str(root), name)
    publish.write_bytes(url, json.dumps(tree).encode())
    return url


def test_read_pairs_coco_images_come_with_all_their_captions(place: str) -> None:
    images = files.join(place, "images")
    for number in (7, 9):
        name = f"val2014/COCO_00000000000{number}.jpg"
        publish.write_bytes(files.join(images, name), str(number).encode())
    first, second = samples(put_json(place, COCO), images)
    assert (first.key, first.image, first.image_ext) == ("val2014/COCO_000000000009", b"9", "jpg")
    assert [t.content for t in first.texts] == ["a dog"]
    assert [(t.source, t.index, t.content) for t in second.texts] == [
        (Source.HUMAN, 0, "a red bus"),
        (Source.HUMAN, 1, "a bus in a street"),
    ]
    assert second.metadata == {"image": "val2014/COCO_000000000007.jpg"}


def test_slice_pairs_another_image_or_folder_is_another_version(place: str) -> None:
    url = put_json(place, [{"image": f"x/{i}.jpg", "caption": str(i)} for i in range(3)])
    folders = [files.join(place, name) for name in ("one", "two")]
    for folder, i in itertools.product(folders, range(3)):
        publish.write_bytes(files.join(folder, f"x/{i}.jpg"), b"x")

    def versions(folder: str) -> list[str]:
        return [shard.version for shard in human_shards(url, folder, per_shard=2)]

    before = versions(folders[0])
    assert versions(folders[0]) == before
    assert not set(versions(folders[1])) & set(before)
    publish.write_bytes(files.join(folders[0], "x/2.jpg"), b"edited")
    after = versions(folders[0])
    assert (after[0] == before[0], after[1] == before[1]) == (True, False)
    [first, _] = human_shards(url, folders[0], per_shard=2)
    assert [s.image for s in read_samples(first, ImageConfig())] == [b"x", b"x"]


def test_read_pairs_blip_list_images_lie_beside_it(tmp_path: Path) -> None:
    for name in ("a.b.PNG", "c.jpg"):
        (tmp_path / name).write_bytes(name.encode())
    pairs = [
        {"image": "a.b.PNG", "caption": "one"},
        {"image": "c.jpg", "caption": ["three", "four"]},
        {"image": "./a.b.PNG", "caption": "two"},
    ]
    found = [
        (s.key, s.image, s.image_ext, [t.content for t in s.texts])
        for s in samples(put_json(tmp_path, pairs))
    ]
    assert found == [
        ("a.b", b"a.b.PNG", "png", ["one", "two"]),
        ("c", b"c.jpg", "jpg", ["three", "four"]),
    ]


def test_read_pairs_slices_together_are_the_whole(tmp_path: Path) -> None:
    for i in range(40):
        (tmp_path / f"{i:02d}.jpg").write_bytes(b"x")
    url = put_json(tmp_path, [{"image": f"{i:02d}.jpg", "caption": str(i)} for i in range(40)])
    assert [s.key for s in samples(url, per_shard=17)] == [f"{i:02d}" for i in range(40)]


def test_read_pairs_images_of_no_use_fail(tmp_path: Path) -> None:
    secret = tmp_path / "secret.jpg"
    secret.write_bytes(b"secret")
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "good.jpg").write_bytes(b"x")
    (tmp_path / "images" / "large.jpg").write_bytes(b"x" * 11)
    names = ["gone.jpg", "../secret.jpg", str(secret), "large.jpg", "good.jpg", ""]
    url = put_json(tmp_path, [{"image": name, "caption": "a dog"} for name in names])
    [shard] = human_shards(url, str(tmp_path / "images"))
    found = [(s.key, s.image, s.problem) for s in read_samples(shard, ImageConfig(max_bytes=10))]
    assert found == [
        ("gone", None, Reason.NO_IMAGE),
        ("../secret", None, Reason.INVALID_KEY),
        (str(secret.with_suffix("")), None, Reason.INVALID_KEY),
        ("large", None, Reason.IMAGE_TOO_LARGE),
        ("good", b"x", None),
        (".", None, Reason.NO_IMAGE),
    ]


def test_read_pairs_image_without_captions_has_no_text(tmp_path: Path) -> None:
    (tmp_path / "1.jpg").write_bytes(b"x")
    tree = {"images": [{"id": 1, "file_name": "1.jpg"}], "annotations": []}
    [sample] = samples(put_json(tmp_path, tree))
    assert [(t.content, t.reason) for t in sample.texts] == [(None, Reason.NO_TEXT)]


@pytest.mark.parametrize(
    "tree",
    [
        {},
        [],
        "text",
        3,
        [{"image": "1.jpg"}],
        ["1.jpg"],
        {"images": [{"id": 1, "file_name": "1.jpg"}], "annotations": [{"image_id": 2}]},
        {"images": [{"id": 1}], "annotations": []},
    ],
)
def test_human_shards_of_another_json_say_what_is_needed(tmp_path: Path, tree: Any) -> None:
    with pytest.raises(InputError, match=r"captions\.json: (not a captions file|no images)"):
        human_shards(put_json(tmp_path, tree))


def test_human_shards_missing_file_or_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"gone\.json: not found"):
        human_shards(str(tmp_path / "gone.json"))
    with pytest.raises(InputError, match="nowhere: not found"):
        human_shards(put_json(tmp_path, COCO), str(tmp_path / "nowhere"))


def test_human_shards_of_a_changed_file_have_another_version(tmp_path: Path) -> None:
    url = put_json(tmp_path, [{"image": "1.jpg", "caption": "a"}])
    [before] = human_shards(url)
    put_json(tmp_path, [{"image": "1.jpg", "caption": "b"}, {"image": "2.jpg", "caption": "b"}])
    [after] = human_shards(url)
    assert before.version != after.version
    assert (before.stop, after.stop) == (1, 2)


def test_lists_that_are_mixed_are_parsed_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A training reads a few of each in turn; three once were parsed anew each time."""
    parsed: list[str] = []
    read = files.read_bytes

    def count(url: str) -> bytes:
        parsed.append(url)
        return read(url)

    trees = ([{"image": f"{name}.jpg", "caption": [name]}] for name in "abcd")
    urls = [put_json(tmp_path, tree, f"{i}.json") for i, tree in enumerate(trees)]
    shards = [shard for url in urls for shard in human_shards(url, str(tmp_path))]
    monkeypatch.setattr(files, "read_bytes", count)
    for shard in shards * 3:
        list(read_samples(shard, ImageConfig()))
    assert len([url for url in parsed if url.endswith(".json")]) <= len(urls)
