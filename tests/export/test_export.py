"""Each form, read by the loader it is for, or by one written as that loader reads."""

from __future__ import annotations

import io
import json
import random
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from capfilt.errors import CommitError, ConfigError
from capfilt.export.export import Exported, export
from tests.run.conftest import hashes, ledger_rows, picture
from tests.select.conftest import (
    Runs,
    runs,  # noqa: F401 - a fixture
)


class Exports:
    """Exports of a run that keeps up to two texts an image, by form."""

    def __init__(self, origin: str, folder: Path) -> None:
        self.origin = origin
        self.folder = folder
        self.kept: dict[str, list[str]] = defaultdict(list)  # best first
        rows = [row for row in ledger_rows(origin) if row["verdict"] == "kept"]
        for row in sorted(rows, key=lambda row: -row["similarity"]):
            self.kept[row["key"]].append(row["text"])

    def __getitem__(self, form: str) -> Path:
        if not (self.folder / form).exists():
            export(self.origin, str(self.folder / form), form)
        return self.folder / form


@pytest.fixture(scope="module")
def exports(runs: Runs, tmp_path_factory: pytest.TempPathFactory) -> Exports:  # noqa: F811
    return Exports(runs["blip2"], tmp_path_factory.mktemp("exports"))


def test_blip_reads_a_list_of_image_paths_and_captions(exports: Exports) -> None:
    """As `pretrain_dataset` does: the lists together, each image opened by its path."""
    annotations = []
    for file in sorted((exports["blip"] / "pairs").glob("*.json")):
        annotations += json.loads(file.read_text())
    found = defaultdict(list)
    for annotation in annotations:
        assert set(annotation) == {"image", "caption"}
        found[Path(annotation["image"]).stem].append(annotation["caption"])
        assert Image.open(annotation["image"]).convert("RGB").size == (48, 40)
    assert found == exports.kept
    first = Path(annotations[0]["image"])
    assert first.read_bytes() == picture(int(first.stem))


def test_lavis_reads_jpg_and_json(exports: Exports) -> None:
    """As `LaionDataset` does, and BLIP-2's draw of one of the first two texts of a list."""
    wds = pytest.importorskip("webdataset")
    shards = [str(file) for file in sorted(exports["lavis"].glob("*.tar"))]
    pipeline = wds.DataPipeline(
        wds.SimpleShardList(shards),
        wds.tarfile_to_samples(),
        wds.decode("pilrgb"),
        wds.to_tuple("__key__", "jpg", "json"),
    )
    count = 0
    for key, image, tree in pipeline:
        text = random.choice(tree[:2]) if isinstance(tree, list) else tree["caption"]
        assert text in exports.kept[key]
        assert (tree if isinstance(tree, list) else [tree["caption"]]) == exports.kept[key]
        assert image.mode == "RGB"
        count += 1
    assert count == len(exports.kept) == 48


def test_open_clip_reads_a_pair_a_sample(exports: Exports) -> None:
    wds = pytest.importorskip("webdataset")
    shards = [str(file) for file in sorted(exports["open_clip"].glob("*.tar"))]
    pipeline = wds.DataPipeline(
        wds.SimpleShardList(shards),
        wds.tarfile_to_samples(),
        wds.decode("pilrgb", handler=wds.reraise_exception),
        wds.rename(image="jpg;png;jpeg;webp", text="txt"),
        wds.to_tuple("image", "text", "json"),
    )
    found = defaultdict(list)
    for image, text, tree in pipeline:
        assert image.size == (48, 40)
        assert tree["caption"] == text
        found[tree["key"]].append(text)
    assert found == exports.kept


def test_datasets_loads_the_hugging_face_folder(exports: Exports, tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    folder = str(exports["huggingface"])
    loaded = datasets.load_dataset(folder, split="train", cache_dir=str(tmp_path))
    assert {row["key"]: [c["text"] for c in row["captions"]] for row in loaded} == exports.kept
    assert all(row["image"].size == (48, 40) for row in loaded)
    assert all(row["caption"] == exports.kept[row["key"]][0] for row in loaded)


def test_croissant_is_valid_and_reads_the_samples(exports: Exports) -> None:
    croissant = pytest.importorskip("mlcroissant")
    dataset = croissant.Dataset(exports["huggingface"] / "croissant.json")
    assert dataset.metadata.ctx.issues.errors == set()
    rows = list(_records(dataset))
    assert {row["samples/key"].decode() for row in rows} == set(exports.kept)
    key = rows[0]["samples/key"].decode()
    assert rows[0]["samples/caption"].decode() == exports.kept[key][0]
    assert rows[0]["samples/image"].size == (48, 40)


def _records(dataset: Any) -> Iterator[dict[str, Any]]:
    yield from dataset.records("samples")


def test_card_has_counts_models_and_no_licence_of_ours(exports: Exports) -> None:
    card = (exports["huggingface"] / "README.md").read_text()
    assert "| images | 48 | 48 |" in card
    manifest = json.loads(Path(exports.origin, "manifest.json").read_text())
    assert manifest["models"]["captioner"]["sha256"] in card
    assert '"top_k": 2' in card
    assert "license:" not in card
    assert "Whoever publishes this dataset says here" in card.replace("\n", " ")


def test_export_goes_on_where_it_stopped(exports: Exports) -> None:
    folder = exports["lavis"]
    before = {file.name: file.read_bytes() for file in folder.glob("*.tar")}
    (folder / "00002.tar").unlink()
    found: Exported = export(exports.origin, str(folder), "lavis")
    assert (found.shards, found.shards_before, found.images) == (1, 3, 48)
    assert {file.name: file.read_bytes() for file in folder.glob("*.tar")} == before


def test_export_needs_a_folder_of_its_own_and_images(
    exports: Exports,
    runs: Runs,  # noqa: F811
    tmp_path: Path,
) -> None:
    with pytest.raises(CommitError, match="holds another export"):
        export(exports.origin, str(exports["lavis"]), "open_clip")
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(ConfigError, match="holds something else"):
        export(exports.origin, str(tmp_path), "blip")
    with pytest.raises(ConfigError, match="lies in OUTPUT"):
        export(exports.origin, f"{exports.origin}/export", "blip")
    with pytest.raises(ConfigError, match="none of blip, lavis, open_clip, huggingface"):
        export(exports.origin, str(tmp_path / "a"), "coco")
    with pytest.raises(ConfigError, match="has texts only"):
        export(runs["texts"], str(tmp_path / "b"), "blip")


def test_hugging_face_folder_of_a_parquet_run_has_its_bytes(
    runs: Runs,  # noqa: F811
    tmp_path: Path,
) -> None:
    export(runs["parquet"], str(tmp_path / "hf"), "huggingface")
    own = {k: v for k, v in hashes(runs["parquet"]).items() if k.startswith("data/")}
    assert {k: v for k, v in hashes(tmp_path / "hf").items() if k.startswith("data/")} == own


def test_image_bytes_are_the_originals(exports: Exports) -> None:
    import tarfile

    with tarfile.open(exports["open_clip"] / "00001.tar") as tar:
        for member in tar:
            if member.name.endswith(".jpg"):
                content = tar.extractfile(member)
                assert content is not None
                data = content.read()
                assert data == picture(int(member.name.partition("_")[0]))
                assert Image.open(io.BytesIO(data)).format == "JPEG"
