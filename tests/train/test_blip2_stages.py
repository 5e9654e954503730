"""BLIP-2's stages as a user meets them: small real models, and what they leave behind."""

from __future__ import annotations

import os
import shutil
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file
from transformers import Blip2ForImageTextRetrieval

from capfilt.config import resolve
from capfilt.demo import tiny
from capfilt.errors import ConfigError, ModelError
from capfilt.run.job import run
from capfilt.run.where import Where
from capfilt.show.training import trained_text
from capfilt.train.output import Output
from capfilt.train.parts import load_data
from capfilt.train.ranks import Ranks
from capfilt.train.stage import Stage
from capfilt.train.training import Summary
from tests.checkpoints import make_clip
from tests.run.conftest import ledger_rows, write_shard
from tests.train.small_language import make_language
from tests.train.test_loop import curve

STAGE_1 = """
vocabulary: names
data: {datasets: [{path: web}], image_size: 32, workers: 1}
model:
  image: {weights: clip, image_size: 32}
  qformer: {width: 24, layers: 2, heads: 4, queries: 3}
  embedding: 12
loop: {steps: 4, batch_size: 6, save_every: 2, log_every: 1}
"""
STAGE_2 = """
data: {datasets: [{path: web}], image_size: 32, workers: 1}
model: {start: one, language: language/opt, image_size: 32}
loop: {steps: 3, batch_size: 6, log_every: 1}
"""
FINETUNE = """
data: {datasets: [{path: web}], image_size: 48, workers: 1}
model: {start: two, image_size: 48}
schedule: {warmup_steps: 0}
loop: {steps: 2, batch_size: 4, log_every: 1}
"""


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder to stand in: shards, a vocabulary, a CLIP and an OPT."""
    root = tmp_path_factory.mktemp("world")
    for index in range(2):
        write_shard(root / "web", index, 12)
    tiny.tokenizer().save_pretrained(root / "names")
    make_clip(root / "clip")
    make_language(root / "language", "opt")
    return root


@pytest.fixture(autouse=True)
def _here(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(world)


def train(name: str, text: str, out: Path, *overrides: str) -> Summary:
    stage = Stage.load(name)
    config = stage.resolve(yaml_text=text, overrides=overrides)
    return stage.train(config, out, device=torch.device("cpu"))


@pytest.fixture(scope="module")
def trained(world: Path) -> Path:
    """Both stages and the finetuning, in folders of these names."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(world)
        one = train("blip2_stage1", STAGE_1, world / "one")
        assert one.exports.keys() == {"filter"}
        assert one.losses.keys() == {"itc", "itm", "itg"}
        two = train("blip2_stage2", STAGE_2, world / "two")
        assert two.exports.keys() == {"captioner"}
        assert two.losses.keys() == {"lm"}
        three = train("blip2_finetune_captioner", FINETUNE, world / "three")
        assert three.exports.keys() == {"captioner"}
    return world


def test_each_stage_names_the_next(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def said_next(name: str) -> list[str]:
        summary = Output(trained / name).summary()
        assert summary is not None
        Console(width=999).print(trained_text(summary))
        lines = capsys.readouterr().out.splitlines()
        return [line.split(maxsplit=1)[1] for line in lines if line.startswith("next")]

    further, run_ = said_next("one")
    assert further.startswith(f"capfilt train blip2_stage2 --set model.start={trained / 'one'} ")
    assert "--set model.language=LANGUAGE" in further
    assert run_.startswith(f"capfilt run INPUT OUTPUT --filter {trained / 'one' / 'filter'}")
    further, run_ = said_next("two")
    begins = f"capfilt train blip2_finetune_captioner --set model.start={trained / 'two'} "
    assert further.startswith(begins)
    assert f"--captioner {trained / 'two' / 'captioner'}" in run_
    [run_] = said_next("three")
    assert f"--captioner {trained / 'three' / 'captioner'}" in run_


@pytest.mark.parametrize("last", ["two", "three"])
def test_what_the_stages_make_captions_and_filters_a_web(
    last: str, trained: Path, tmp_path: Path
) -> None:
    models = {
        "captioner": str(trained / last / "captioner"),
        "filter": str(trained / "one" / "filter"),
    }
    config = resolve(preset="blip2", options=models, overrides=["captions.per_image=3"])
    where = Where(str(trained / "web"), str(tmp_path / "out"), local=True, limit=1)
    summary = run(config, where)
    assert summary.shards_done == 1
    rows = ledger_rows(tmp_path / "out")
    captions = [row for row in rows if row["source"] == "synthetic"]
    assert len(captions) == 3 * 12
    assert len({row["text"] for row in captions}) > 1
    assert all(-1 <= row["similarity"] <= 1 for row in captions if row["text"])
    assert sum(row["verdict"] == "kept" for row in rows) == 2 * 12


def test_language_model_and_encoder_are_what_they_were(trained: Path) -> None:
    before = load_file(trained / "language" / "opt" / "model.safetensors")
    one = load_file(trained / "one" / "filter" / "model.safetensors")
    two = load_file(trained / "two" / "captioner" / "model.safetensors")
    three = load_file(trained / "three" / "captioner" / "model.safetensors")
    for after in (two, three):
        for name, tensor in before.items():
            rows = after[f"language_model.{name}"][: len(tensor)]
            assert torch.equal(rows, tensor), name
    of_image = [name for name in two if name.startswith("vision_model.encoder.")]
    assert len(of_image) == 2 * 12
    assert all(torch.equal(one[name], two[name]) for name in of_image)
    learned = [n for n in of_image if ".1.self_attn.qkv." in n or ".1.mlp.fc1." in n]
    assert len(learned) == 4
    assert not any(torch.equal(two[name], three[name]) for name in learned)
    kept = load_file(next((trained / "two" / "checkpoints").glob("*/model.safetensors")))
    assert not any(n.startswith("language.") or ".blocks." in n for n in kept)


@torch.inference_mode()
def test_model_over_a_clip_says_that_fp16_has_no_room_for_it(trained: Path) -> None:
    pixels = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    for name in ("one/filter", "two/captioner", "three/captioner"):
        assert "Load it in fp32 or bf16" in (trained / name / "README.md").read_text()

    def is_finite(dtype: torch.dtype) -> bool:
        folder = trained / "one" / "filter"
        model = Blip2ForImageTextRetrieval.from_pretrained(folder, dtype=dtype).eval()
        states = model.vision_model(pixel_values=pixels.to(dtype)).last_hidden_state
        return bool(states.isfinite().all())

    assert is_finite(torch.bfloat16)
    assert not is_finite(torch.float16)


def test_resumed_stage_goes_on_as_if_it_had_not_stopped(trained: Path, tmp_path: Path) -> None:
    out = tmp_path / "one"
    shutil.copytree(trained / "one", out)
    shutil.rmtree(out / "checkpoints" / "step-00000004")
    (out / "summary.json").unlink()
    summary = train("blip2_stage1", STAGE_1, out)
    assert summary.steps_before == 2
    assert curve(out) == curve(trained / "one")
    weights = "filter/model.safetensors"
    assert (out / weights).read_bytes() == (trained / "one" / weights).read_bytes()


def test_cached_features_change_no_loss_and_serve_the_next_stage(
    world: Path, tmp_path: Path
) -> None:
    fixed = "data.augment.fixed=true"
    plain = train("blip2_stage1", STAGE_1, tmp_path / "plain", fixed, "loop.steps=8")
    cache = f"cache_features={tmp_path / 'cache'}"
    kept = train("blip2_stage1", STAGE_1, tmp_path / "kept", fixed, cache, "loop.steps=8")
    for name, loss in plain.losses.items():  # batches of other sizes round otherwise
        assert kept.losses[name] == pytest.approx(loss, abs=1e-4)
    start = f"model.start={tmp_path / 'kept'}"
    train("blip2_stage2", STAGE_2, tmp_path / "later", fixed, cache, start)
    assert len(list((tmp_path / "cache").iterdir())) == 1  # stage 2 reads what stage 1 has kept
    shards = (tmp_path / "cache").glob("*/*.safetensors")
    ids = [number for shard in shards for number in load_file(shard)["ids"].tolist()]
    assert len(ids) == len(set(ids)) == 20  # 24 images less four without a text
    with pytest.raises(ConfigError, match="cache_features needs images that look alike each time"):
        train("blip2_stage1", STAGE_1, tmp_path / "none", cache)


def test_cache_is_not_of_a_shard_that_was_written_anew(world: Path, tmp_path: Path) -> None:
    web = Path(shutil.copytree(world / "web", tmp_path / "web"))
    datasets = f"data.datasets=[{{path: {web}}}]"
    config = Stage.load("blip2_stage1").resolve(yaml_text=STAGE_1, overrides=[datasets])

    def pictures() -> str:
        loader = load_data(config, Ranks(0, 1, torch.device("cpu")), world / "names")
        with closing(loader):
            return loader.pictures

    before = pictures()
    assert pictures() == before
    shard = min(web.glob("*.tar"))
    os.utime(shard, (1, 1))
    assert pictures() != before


def test_language_model_beyond_the_machines_memory_is_refused(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sysconf", lambda name: 100)  # a machine of 10,000 bytes
    with pytest.raises(ModelError, match=r"^model\.language .*/opt: its weights take .*, but cpu"):
        train("blip2_stage2", STAGE_2, tmp_path / "out")


@pytest.mark.parametrize(
    ("name", "text", "override", "error", "message"),
    [
        ("blip2_stage1", STAGE_1, 'model.image.weights=""', ConfigError,
         r"model\.image\.weights is not set: give the folder or hub id of a CLIP"),
        ("blip2_stage1", STAGE_1, 'vocabulary=""', ConfigError,
         r"or a BERT checkpoint as model\.qformer\.weights"),
        ("blip2_stage1", STAGE_1, "loop.batch_size=1", ConfigError, "has no negatives for ITM"),
        ("blip2_stage2", STAGE_2, 'model.start=""', ConfigError,
         "give the output folder of blip2_stage1, or a BLIP-2 filter's folder"),
        ("blip2_stage2", STAGE_2, 'model.language=""', ConfigError, r"model\.language is not set"),
        ("blip2_stage2", STAGE_2, "model.start=clip", ModelError, "is a CLIPModel, not a Blip2For"),
    ],
)  # fmt: skip
def test_what_is_missing_is_one_line(
    name: str, text: str, override: str, error: Any, message: str, trained: Path, tmp_path: Path
) -> None:
    with pytest.raises(error, match=message):
        train(name, text, tmp_path / "out", override)
