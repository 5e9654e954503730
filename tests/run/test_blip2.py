"""`capfilt run` with BLIP-2 folders, and the preset that follows BLIP-2."""

from __future__ import annotations

import json
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest

from capfilt.config import resolve
from capfilt.errors import ModelError
from capfilt.run.manifest import Manifest
from capfilt.run.models import inspect_models
from capfilt.run.task import Task
from tests import blip2_checkpoints
from tests.run.conftest import hashes, ledger_rows, local, tar_samples


@pytest.fixture(scope="module")
def blip2(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(blip2_checkpoints.make_captioner(tmp_path_factory.mktemp("blip2"), "t5"))


@pytest.fixture(scope="module")
def blip2_filter(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(blip2_checkpoints.make_filter(tmp_path_factory.mktemp("blip2_filter")))


def by_image(output: Path) -> dict[str, list[dict[str, Any]]]:
    rows = ledger_rows(output)
    return {key: list(of_key) for key, of_key in groupby(rows, key=lambda row: row["key"])}


def test_preset_blip2_keeps_the_two_most_similar_of_web_and_ten(
    blip2: str, blip2_filter: str, web: str, tmp_path: Path
) -> None:
    models = {"captioner": blip2, "filter": blip2_filter}
    summary = local(resolve(preset="blip2", options=models), web, tmp_path / "out", limit=2)
    assert summary.shards_done == 2
    assert summary.noise_ratio is None
    data = {
        sample["__key__"].decode(): json.loads(sample["json"])
        for shard in ("00000", "00001")
        for sample in tar_samples(tmp_path / "out" / "data" / f"{shard}.tar")
    }
    sources = set()
    for key, rows in by_image(tmp_path / "out").items():
        assert [row["source"] for row in rows] == ["web"] + ["synthetic"] * 10
        scored = [row for row in rows if row["reason"] != "empty_text"]
        best = sorted(scored, key=lambda row: -row["similarity"])[:2]
        kept = [row for row in rows if row["verdict"] == "kept"]
        assert sorted(row["similarity"] for row in kept) == [r["similarity"] for r in best[::-1]]
        assert {row["match_prob"] for row in rows} == {None}
        assert [c["text"] for c in data[key]["captions"]] == [row["text"] for row in best]
        sources |= {row["source"] for row in kept}
    assert sources == {"web", "synthetic"}


def test_default_preset_with_blip2_folders_keeps_by_match_probability(
    blip2: str, blip2_filter: str, web: str, tmp_path: Path
) -> None:
    models = {"captioner": blip2, "filter": blip2_filter}
    summary = local(resolve(options=models), web, tmp_path / "out", limit=1)
    rows = [row for row in ledger_rows(tmp_path / "out") if row["reason"] != "empty_text"]
    assert {row["verdict"] for row in rows} == {"kept", "dropped"}
    for row in rows:
        assert (row["match_prob"] >= 0.5) == (row["verdict"] == "kept")
    assert summary.noise_ratio is not None


def test_captions_do_not_depend_on_the_batch_size(
    blip2: str, blip2_filter: str, web: str, tmp_path: Path
) -> None:
    models = {"captioner": blip2, "filter": blip2_filter}
    texts = []
    for size in (1, 5):
        overrides = [f"compute.batch_size={size}", "captions.per_image=3"]
        config = resolve(preset="blip2", options=models, overrides=overrides)
        local(config, web, tmp_path / str(size), limit=1)
        texts.append([row["text"] for row in ledger_rows(tmp_path / str(size))])
    assert texts[0] == texts[1]
    local(config, web, tmp_path / "again", limit=1)
    assert hashes(tmp_path / "again") == hashes(tmp_path / "5")


@pytest.mark.parametrize("is_blip2", [False, True])
def test_prompt_left_open_is_recorded_as_the_captioners_own(
    is_blip2: bool, captioner: str, blip2: str, web: str, tmp_path: Path
) -> None:
    models = {"captioner": blip2 if is_blip2 else captioner, "filter": "none"}
    local(resolve(options=models), web, tmp_path / "out", limit=1)
    manifest = Manifest.read(str(tmp_path / "out"))
    assert manifest is not None
    prompt = "a photo of" if is_blip2 else "a picture of "
    assert manifest.decisive["captions"]["prompt"] == prompt
    said = resolve(options=models, overrides=[f'captions.prompt="{prompt}"'])
    assert Task(said, inspect_models(said), "").fingerprint == manifest.fingerprint


def test_blip2_folder_in_the_other_role_is_named(blip2: str, web: str, tmp_path: Path) -> None:
    with pytest.raises(
        ModelError, match="is a Blip2ForConditionalGeneration, a captioner; a filter is"
    ):
        local(resolve(options={"captioner": "none", "filter": blip2}), web, tmp_path / "out")
