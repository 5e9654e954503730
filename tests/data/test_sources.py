"""What is wrong with a dataset as a whole is one line before training starts."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from capfilt.data.config import DatasetConfig
from capfilt.data.sources import open_datasets
from capfilt.errors import CapfiltError, ConfigError, InputError
from capfilt.record import Source
from tests.data.conftest import annotated, many, write_captions, write_output, write_raw


def message(*datasets: DatasetConfig, kind: type[CapfiltError] = InputError) -> str:
    with pytest.raises(kind) as error:
        open_datasets(datasets)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_no_dataset() -> None:
    assert message(kind=ConfigError).startswith("data.datasets: is empty")


def test_a_path_that_is_not_there(tmp_path: Path) -> None:
    assert str(tmp_path / "nowhere") in message(DatasetConfig(str(tmp_path / "nowhere")))
    assert "not found" in message(DatasetConfig(str(tmp_path / "nowhere.json")))


def test_an_output_without_a_kept_image(tmp_path: Path) -> None:
    place = write_output(str(tmp_path / "out"), [[annotated(0, ()), annotated(1, ())]])
    assert "no finished shard with a kept image" in message(DatasetConfig(place))


def test_only_what_has_a_commit_counts(tmp_path: Path) -> None:
    place = write_output(str(tmp_path / "out"), [many(0, 10), many(20, 7)])
    Path(place, "commits/00001.json").unlink()
    [dataset] = open_datasets([DatasetConfig(place)])
    assert dataset.stock.size == 10


def test_an_output_without_texts_of_the_sources(tmp_path: Path) -> None:
    place = write_output(str(tmp_path / "out"), [many(0, 5, (Source.WEB,))])
    found = message(DatasetConfig(place, sources=("human", "synthetic")))
    assert "no kept texts of the sources human, synthetic, only of web" in found


def test_an_output_without_images(tmp_path: Path) -> None:
    for form in ("webdataset", "parquet"):
        place = write_output(str(tmp_path / form), [many(0, 5)], form=form, images=False)  # type: ignore[arg-type]
        assert "image" in message(DatasetConfig(place))


def test_a_ledger_that_does_not_fit_its_commit(tmp_path: Path) -> None:
    place = write_output(str(tmp_path / "out"), [many(0, 5), many(10, 6)])
    shutil.copy(f"{place}/ledger/00000.parquet", f"{place}/ledger/00001.parquet")
    assert "capfilt verify" in message(DatasetConfig(place, texts="pairs"))


def test_raw_shards_without_texts(tmp_path: Path) -> None:
    write_raw(tmp_path / "00000.tar", 5, stats=True, texts=False)
    assert "no texts of the sources" in message(DatasetConfig(str(tmp_path)))


def test_sources_that_a_form_cannot_have(tmp_path: Path) -> None:
    write_raw(tmp_path / "raw/00000.tar", 5, stats=True)
    raw = DatasetConfig(str(tmp_path / "raw"), sources=("human",))
    assert "raw shards have web texts" in message(raw, kind=ConfigError)
    human = DatasetConfig(str(write_captions(tmp_path, 3)), sources=("web",))
    assert "human texts" in message(human, kind=ConfigError)
    images = DatasetConfig(str(tmp_path / "raw"), images=str(tmp_path))
    assert "captions files" in message(images, kind=ConfigError)


def test_an_image_folder_that_lacks_files(tmp_path: Path) -> None:
    path = str(write_captions(tmp_path, 8))
    (tmp_path / "images/3.jpg").unlink()
    (tmp_path / "images/5.jpg").unlink()
    found = message(DatasetConfig(path, images=str(tmp_path / "images")))
    assert f"{tmp_path}/images: lacks 2 of the images of {path}, e.g. 3.jpg" in found
    assert "not found" in message(DatasetConfig(path, images=str(tmp_path / "elsewhere")))


def test_a_captions_file_without_captions(tmp_path: Path) -> None:
    path = write_captions(tmp_path, 4)
    path.write_text(json.dumps([{"image": f"{n}.jpg", "caption": [" "]} for n in range(4)]))
    found = message(DatasetConfig(str(path), images=str(tmp_path / "images")))
    assert "no texts" in found


def test_datasets_of_one_name_have_keys_of_their_own(tmp_path: Path) -> None:
    paths = ("a/out", "b/out", "c/out-2")
    places = [write_output(str(tmp_path / path), [many(0, 3)]) for path in paths]
    names = [dataset.name for dataset in open_datasets([DatasetConfig(p) for p in places])]
    assert names == ["out", "out-2", "out-2-2"]
