import hashlib
import io
import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from PIL import Image

from capfilt.config import ImageConfig
from capfilt.data.config import DatasetConfig
from capfilt.data.sources import open_datasets
from capfilt.demo.checker import is_true
from capfilt.demo.dataset import make_world, read_truth, write_images, write_list
from capfilt.demo.web import statement
from capfilt.demo.world import EVALUATION, WEB, draw_pictures
from capfilt.evaluate.pairs import read_captioned, read_labelled
from capfilt.io.inputs import find_shards, read_samples


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("world")
    make_world(folder, web=1010, human=12, evaluation=8, seed=5, side=48)
    return folder


def test_make_world_same_seed_gives_the_same_bytes_in_another_process(
    world: Path, tmp_path: Path
) -> None:
    """Where nothing is drawn yet, and sets have another order."""

    def digests(folder: Path) -> dict[str, str]:
        paths = (path for path in folder.rglob("*") if path.is_file())
        return {
            str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in paths
        }

    elsewhere = (
        "import sys; from pathlib import Path; from capfilt.demo.dataset import make_world; "
        "make_world(Path(sys.argv[1]), web=1010, human=12, evaluation=8, seed=5, side=48)"
    )
    hash_seed = "1" if os.environ.get("PYTHONHASHSEED") != "1" else "2"
    subprocess.run(
        [sys.executable, "-c", elsewhere, str(tmp_path)],
        env={**os.environ, "PYTHONHASHSEED": hash_seed},
        check=True,
    )
    assert digests(tmp_path) == digests(world)
    make_world(tmp_path / "other", web=4, human=2, evaluation=2, seed=6, side=48)
    one, other = digests(world), digests(tmp_path / "other")
    assert not set(one.values()) & set(other.values())


def test_make_world_web_shards_are_read_like_any_others(world: Path) -> None:
    found = find_shards(str(world / "web"))
    assert ([s.expected for s in found.shards], found.unfinished) == ([1000, 10], ())
    truth = read_truth(world / "web-truth.jsonl")
    assert truth == list(draw_pictures(1010, WEB, seed=5))
    for number, sample in enumerate(read_samples(found.shards[1], ImageConfig()), start=1000):
        picture = truth[number]
        assert sample.key == picture.key
        assert sample.texts[0].content == picture.web.content
        assert sample.image is not None
        assert Image.open(io.BytesIO(sample.image)).size == (48, 48)


def test_make_world_shards_do_not_tell_the_truth(world: Path) -> None:
    with tarfile.open(world / "web" / "00001.tar") as tar:
        names = tar.getnames()
        member = tar.extractfile("001000.json")
        assert member is not None
        fields = json.load(member)
    assert names[:3] == ["001000.jpg", "001000.json", "001000.txt"]
    assert not set(fields) & {"kind", "wrong", "captions", "scene", "web_kind"}


def test_make_world_opens_for_training(world: Path) -> None:
    web, human = open_datasets(
        [
            DatasetConfig(str(world / "web")),
            DatasetConfig(
                str(world / "human" / "captions.json"), images=str(world / "human" / "images")
            ),
        ]
    )
    assert sum(volume.samples for volume in web.volumes) == 1010
    assert sum(volume.samples for volume in human.volumes) == 12


def test_make_world_evaluation_files_are_true_and_labelled(world: Path) -> None:
    folder = world / "evaluation"
    truth = {picture.file: picture for picture in read_truth(folder / "truth.jsonl")}
    assert list(truth.values()) == list(draw_pictures(8, EVALUATION, seed=5))
    for row in read_captioned(str(folder / "captions.json")):
        assert row.captions == truth[row.image].captions
        assert (folder / "images" / row.image).exists()
    pairs = read_labelled(str(folder / "pairs.json"))
    assert len(pairs) == 8 * 4
    for pair in pairs:
        assert pair.matches == is_true(statement(pair.caption), truth[pair.image].scene)


def test_write_list_has_the_truth_beside_the_web_text(tmp_path: Path) -> None:
    drawn = list(draw_pictures(3, WEB))
    write_list(tmp_path / "urls.parquet", drawn, "http://h", {"gone.jpg": "none"})
    rows = pq.read_table(tmp_path / "urls.parquet").to_pylist()
    assert rows[0] == {
        "url": "http://h/000000.jpg", "caption": drawn[0].web.content,
        "web_kind": drawn[0].web.kind,
    }  # fmt: skip
    assert rows[3] == {"url": "http://h/gone.jpg", "caption": "none", "web_kind": "junk"}
    write_images(tmp_path / "images", drawn, 32)
    assert sorted(path.name for path in (tmp_path / "images").iterdir()) == [p.file for p in drawn]
