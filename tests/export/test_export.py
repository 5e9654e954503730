"""Each form, read by the loader it is for, or by one written as that loader reads."""

from __future__ import annotations

import io
import json
import re
import shutil
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from capfilt.config import resolve
from capfilt.cut import CutConfig
from capfilt.errors import CommitError, ConfigError
from capfilt.export.export import Exported, export
from capfilt.run.job import run
from capfilt.run.where import Where
from capfilt.select.select import select
from tests.run.conftest import hashes, ledger_rows, picture, write_shard
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


def test_lavis_reads_every_text(exports: Exports) -> None:
    """By the steps of the published `LaionDataset`, which passes over what it cannot read."""
    wds = pytest.importorskip("webdataset")
    shards = [str(file) for file in sorted(exports["lavis"].glob("*.tar"))]
    lenient = {"handler": wds.warn_and_continue}
    pipeline = wds.DataPipeline(
        wds.SimpleShardList(shards),  # its ResampledShards never ends
        wds.tarfile_to_samples(**lenient),
        wds.shuffle(1000, **lenient),
        wds.decode("pilrgb", **lenient),
        wds.to_tuple("jpg", "json", **lenient),
        wds.map_tuple(lambda image: image.size, **lenient),
        wds.map(lambda sample: {"image": sample[0], "text_input": sample[1]["caption"]}, **lenient),
    )
    found = list(pipeline)
    assert {sample["image"] for sample in found} == {(48, 40)}
    texts = [text for of_image in exports.kept.values() for text in of_image]
    assert Counter(sample["text_input"] for sample in found) == Counter(texts)
    assert len(found) == len(texts) == 96


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
    issues = dataset.metadata.ctx.issues
    assert issues.errors == set()
    own = {re.search(r'Property "[^"]*/(\w+)"', text).group(1) for text in issues.warnings}  # type: ignore[union-attr]
    assert own == {"license", "citeAs", "datePublished"}  # its publisher's to say
    rows = list(_records(dataset))
    assert {row["samples/key"].decode() for row in rows} == set(exports.kept)
    key = rows[0]["samples/key"].decode()
    assert rows[0]["samples/caption"].decode() == exports.kept[key][0]
    assert rows[0]["samples/image"].size == (48, 40)
    told = {(row["key"], row["text"]): row for row in ledger_rows(exports.origin)}
    for row in rows:
        key = row["samples/key"].decode()
        captions = row["samples/captions"]
        texts = [caption["samples/captions/text"].decode() for caption in captions]
        assert texts == exports.kept[key]
        for text, caption in zip(texts, captions, strict=True):
            for name in ("match_prob", "similarity"):
                assert caption[f"samples/captions/{name}"] == told[key, text][name]


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


def test_export_writes_a_shard_that_was_redone_again(
    runs: Runs,  # noqa: F811
    tmp_path: Path,
) -> None:
    for index in range(2):
        write_shard(tmp_path / "web", index, 4)
    config = resolve(options=runs.models, overrides=["selection.min_match_prob=0"])
    where = Where(input=str(tmp_path / "web"), output=str(tmp_path / "run"), local=True)
    run(config, where)
    for form in ("blip", "lavis"):
        export(where.output, str(tmp_path / form), form)
    write_shard(tmp_path, 7, 3)  # other pictures, under other keys
    for ending in (".tar", "_stats.json"):
        shutil.copy(tmp_path / f"00007{ending}", tmp_path / f"web/00001{ending}")
    run(config, replace(where, overwrite=True))
    for form in ("blip", "lavis"):
        found = export(where.output, str(tmp_path / form), form)
        assert (found.shards, found.shards_before, found.images) == (1, 1, 7)
        shutil.copytree(tmp_path / form, tmp_path / "resumed" / form)
        shutil.rmtree(tmp_path / form)
        export(where.output, str(tmp_path / form), form)
        assert _contents(tmp_path / "resumed" / form) == _contents(tmp_path / form)


def _contents(folder: Path) -> dict[str, bytes]:
    return {
        str(file.relative_to(folder)): file.read_bytes()
        for file in folder.rglob("*")
        if file.is_file()
    }


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


def test_an_output_that_keeps_nothing_is_not_exported(runs: Runs, tmp_path: Path) -> None:  # noqa: F811
    select(runs["blip"], str(tmp_path / "cut"), CutConfig(min_match_prob=1.0))
    with pytest.raises(ConfigError, match="nothing to export"):
        export(str(tmp_path / "cut"), str(tmp_path / "target"), "blip")
    assert not (tmp_path / "target").exists()
