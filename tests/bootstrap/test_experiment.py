"""The experiment from one end to the other: which arm sees which texts, and after a kill."""

from __future__ import annotations

import json
import os
import runpy
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file

from capfilt import cli
from capfilt.bootstrap.config import ARMS
from capfilt.bootstrap.experiment import Experiment
from capfilt.bootstrap.material import Material
from capfilt.bootstrap.results import Results
from capfilt.data.sources import open_dataset
from capfilt.demo.checker import is_true
from capfilt.demo.dataset import read_truth
from capfilt.demo.world import Picture
from capfilt.errors import CapfiltError, ConfigError, TrainingError
from tests.bootstrap.conftest import CONFIG, resolve
from tests.call import capfilt

Done = tuple[Path, Results]
ROOT = Path(__file__).resolve().parents[2]


def trained(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "train.json").read_text())["config"]  # type: ignore[no-any-return]


def ledger(run: Path) -> list[dict[str, Any]]:
    files = sorted((run / "ledger").glob("*.parquet"))
    return [row for file in files for row in pq.read_table(file).to_pylist()]


def says_what_is_there(row: dict[str, Any], picture: Picture) -> bool:
    if row["source"] == "web":
        return picture.web.kind == "true"
    return is_true(row["text"], picture.scene)


def test_every_arm_is_pretrained_on_its_texts_and_the_human_set(done: Done) -> None:
    seed = done[0] / "seed-0"
    web = str(done[0] / "world" / "web")
    expected = {
        "raw": (web, ["web"]),
        "filter": (str(seed / "runs/1"), ["web"]),
        "captioner": (str(seed / "runs/unfiltered"), ["web", "synthetic"]),
        "both": (str(seed / "runs/1"), ["web", "synthetic"]),
        "repeat": (web, ["web"]),
        "continue": (str(seed / "runs/1"), ["web", "synthetic"]),
        "shared": (str(seed / "runs/shared"), ["web", "synthetic"]),
        "both-2": (str(seed / "runs/2"), ["web", "synthetic"]),
    }
    starts = dict.fromkeys(expected, "") | {"continue": str(seed / "raw")}
    for arm, (path, sources) in expected.items():
        config = trained(seed / arm)
        texts, human = config["data"]["datasets"]
        assert (texts["path"], texts["sources"], texts["texts"]) == (path, sources, "pairs"), arm
        assert human["path"] == str(done[0] / "world/human/captions.json")
        assert arm == "repeat" or config["loop"]["steps"] == 4
        assert config["model"]["start"] == starts[arm], arm
    assert set(done[1].arms) == set(expected)


def test_arms_differ_in_their_texts_alone(done: Done) -> None:
    """As many texts an epoch, so the human set has the same share and rates fall at one step."""
    seed = done[0] / "seed-0"

    def kept(run: str, *sources: str) -> int:
        rows = ledger(seed / "runs" / run)
        return sum(row["verdict"] == "kept" and row["source"] in sources for row in rows)

    texts = {
        "raw": 96,
        "filter": kept("1", "web"),
        "captioner": kept("unfiltered", "web", "synthetic"),
        "both": kept("1", "web", "synthetic"),
        "continue": kept("1", "web", "synthetic"),
        "shared": kept("shared", "web", "synthetic"),
        "both-2": kept("2", "web", "synthetic"),
    }
    logs = set()
    for arm, count in texts.items():
        web, human = trained(seed / arm)["data"]["datasets"]
        assert web["weight"] * count == pytest.approx(96), arm
        assert human["weight"] == 1.0
        rows = map(json.loads, (seed / arm / "log.jsonl").read_text().splitlines())
        # By shares of an epoch the rate falls, once the warm-up is over; here it never is.
        logs.add(tuple((row["epoch"], row["lr"]) for row in rows if "lr" in row))
    assert len(logs) == 1
    assert len(logs.pop()) == 4
    assert len(set(texts.values())) > 3  # there was something to even out


def test_repeat_is_raw_for_as_many_more_steps_as_both_has_texts(done: Done) -> None:
    seed = done[0] / "seed-0"
    kept = sum(row["verdict"] == "kept" for row in ledger(seed / "runs/1"))
    raw, repeat = trained(seed / "raw"), trained(seed / "repeat")
    rows = json.loads((done[0] / "world/human/captions.json").read_text())
    human = sum(len(row["caption"]) for row in rows)
    assert repeat["loop"]["steps"] == round(4 * (kept + human) / (96 + human)) != 4
    assert repeat["data"] == raw["data"]


def test_unfiltered_run_has_the_captions_that_were_filtered(done: Done) -> None:
    runs = done[0] / "seed-0/runs"

    def captions(run: str) -> dict[str, str]:
        return {r["key"]: r["text"] for r in ledger(runs / run) if r["source"] == "synthetic"}

    assert len(captions("1")) == 96
    assert captions("unfiltered") == captions("1")
    assert captions("2") != captions("1")
    unfiltered = [r for r in ledger(runs / "unfiltered") if r["source"] == "synthetic"]
    # No filter drops a text without words, which weights from chance come to now and then.
    worded = [r for r in unfiltered if r["reason"] != "empty_text"]
    assert len(worded) > 90
    assert {r["verdict"] for r in worded} == {"kept"}


def test_second_round_begins_with_the_model_of_both(done: Done) -> None:
    seed = done[0] / "seed-0"
    for role in ("captioner", "filter"):
        assert trained(seed / f"raw-{role}")["model"]["start"] == str(seed / "raw")
        assert trained(seed / f"both-{role}")["model"]["start"] == str(seed / "both")
    manifest = json.loads((seed / "runs/2/manifest.json").read_text())
    assert manifest["config"]["filter"] == str(seed / "both-filter/filter")


def test_joint_finetuning_shares_weights_and_separate_ones_do_not(done: Done) -> None:
    seed = done[0] / "seed-0"
    captioner, filter_, joint_steps = (
        trained(seed / f"raw-{name}")["loop"]["steps"] for name in ("captioner", "filter", "joint")
    )
    assert captioner != filter_
    assert joint_steps == max(captioner, filter_)

    def tensors(folder: str) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
        roles = ("captioner", "filter")
        paths = (seed / folder.format(role=role) / role for role in roles)
        captioner, filter_ = (load_file(path / "model.safetensors") for path in paths)
        return captioner, filter_

    name = "vision_model.encoder.layers.0.mlp.fc1.weight"
    joint = tensors("raw-joint")
    assert torch.equal(joint[0][name], joint[1][name])
    separate = tensors("raw-{role}")
    assert not torch.equal(separate[0][name], separate[1][name])
    first = load_file(seed / "raw/filter/model.safetensors")
    assert not torch.equal(joint[0][name], first[name])


def test_figures_of_a_run_agree_with_its_ledger_and_the_truth(done: Done) -> None:
    out, results = done
    pictures = {p.key: p for p in read_truth(out / "world/web-truth.jsonl")}
    rows = ledger(out / "seed-0/runs/1")
    true = [says_what_is_there(r, pictures[r["key"]]) for r in rows]
    kept = Counter((r["source"], r["verdict"]) for r in rows)
    of_web = [t for r, t in zip(rows, true, strict=True) if r["source"] == "web"]
    found = {name: spread.mean for name, spread in results.modules["1"].items()}
    assert found["texts"] == kept["web", "kept"] + kept["synthetic", "kept"]
    assert found["web_kept"] == kept["web", "kept"] / 96
    assert found["noise_ratio"] == pytest.approx(kept["synthetic", "dropped"] / 96)
    assert found["web_true"] == pytest.approx(sum(of_web) / 96)
    kept_true = Counter(
        r["source"] for r, t in zip(rows, true, strict=True) if t and r["verdict"] == "kept"
    )
    for source in ("web", "synthetic"):
        assert found[f"{source}_kept_true"] == kept_true[source] / kept[source, "kept"]
    assert kept_true["web"] > 0
    things = [
        p.web.kind == "true" or p.web.wrong in ("count", "colour", "relation")
        for p in pictures.values()
    ]
    assert found["web_things"] == pytest.approx(sum(things) / 96)
    assert found["web_things"] > found["web_true"]
    assert {"auc", "auc_lie", "auc_junk", "auc_other", "captions_true"} <= found.keys()
    assert set(results.modules) == {"1", "2", "shared"}


@pytest.mark.parametrize("arm", ["filter", "both"])
def test_perfect_filter_chooses_what_is_true_and_nothing_else(
    done: Done, tmp_path: Path, arm: str
) -> None:
    out, run = done[0], done[0] / "seed-0/runs/1"
    script = runpy.run_path(str(ROOT / "benchmarks/emoji/perfect_filter.py"))
    sources = script["ARMS"][arm]
    texts = script["choose"](Material.of_world(out / "world"), run, tmp_path, sources)
    chosen = [
        (Path(row["image"]).stem, text)
        for row in json.loads((tmp_path / "texts.json").read_text())
        for text in row["caption"]
    ]
    pictures = {p.key: p for p in read_truth(out / "world/web-truth.jsonl")}
    rows = [r for r in ledger(run) if r["source"] in sources]
    true = [r for r in rows if says_what_is_there(r, pictures[r["key"]])]
    assert sorted(chosen) == sorted((r["key"], r["text"]) for r in true)
    assert {r["source"] for r in true} >= {"web"}
    assert open_dataset("texts", texts).stock.size == len(true)


def test_results_are_written_as_table_json_and_picture(done: Done) -> None:
    out, results = done
    assert json.loads((out / "results.json").read_text()) == results.to_dict()
    text = (out / "results.md").read_text()
    published = {"raw": "93.9 | 82.1 | 38.0 | 127.8", "repeat": "93.7 | 82.2 | 37.9 | 127.7"}
    for arm, figures in published.items():
        [line] = [line for line in text.splitlines() if line.startswith(f"| {arm} |")]
        assert line.endswith(f"| {figures} |")
    words = "".join(ElementTree.parse(out / "results.svg").getroot().itertext())
    assert all(arm in words for arm in (*ARMS, "both-2"))


def test_finished_experiment_is_left_as_it_is(done: Done) -> None:
    out, results = done

    def stamps() -> dict[str, int]:
        files = (p for p in (out / "seed-0").rglob("*") if p.is_file() and p.name != ".lock")
        return {str(p): p.stat().st_mtime_ns for p in files}

    before = stamps()
    assert Experiment.load().run(resolve(), out).to_dict() == results.to_dict()
    assert stamps() == before
    assert not list((out / "seed-0").glob("*/checkpoints"))


def test_killed_experiment_goes_on_to_the_same_figures(done: Done, tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(CONFIG)
    out = tmp_path / "out"
    command = [sys.executable, "-m", "capfilt", "train", "bootstrap", "-c", str(config)]
    command += ["--out", str(out), "--set", "arms=[raw, both]", "--rounds", "1", "--json"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
    until = time.monotonic() + 400
    log = out / "seed-0" / "both" / "log.jsonl"
    while not log.exists():  # in the middle of the second pre-training
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < until
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    again = capfilt(*command[3:])
    assert again.returncode == 0, again.stderr
    found = json.loads(again.stdout)
    expected = done[1].to_dict()
    assert found["arms"] == {arm: expected["arms"][arm] for arm in ("raw", "both")}
    assert found["modules"] == {"1": expected["modules"]["1"]}
    assert "part 2 of 12: seed 0: pre-train raw" in again.stderr


def test_images_of_ones_own_take_the_place_of_the_world(done: Done, tmp_path: Path) -> None:
    world = done[0] / "world"
    places = (
        f"{{web: {world}/web, human: {world}/human/captions.json, human_images: "
        f"{world}/human/images, evaluation: {world}/evaluation/captions.json, "
        f"evaluation_images: {world}/evaluation/images}}"
    )
    config = resolve(
        "world={web: 0}", f"data={places}", f"pretrain.vocabulary={world}/vocab.txt",
        "arms=[raw, both]", "rounds=1", "evaluate.finetune=false",
    )  # fmt: skip
    results = Experiment.load().run(config, tmp_path)
    ours, theirs = results.arms["both"], done[1].arms["both"]
    assert ours["ir_r1"] == theirs["ir_r1"]
    assert ours["cider"] == theirs["cider"]
    assert set(ours) == {"tr_r1", "ir_r1", "bleu4", "cider"}
    assert "auc" not in results.modules["1"]


def test_folder_of_something_else_is_refused(done: Done, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(ConfigError, match="not empty and no experiment's"):
        Experiment.load().run(resolve(), tmp_path)
    with pytest.raises(ConfigError, match=r"another experiment: world\.web: 96 -> 97"):
        Experiment.load().run(resolve("world.web=97"), done[0])
    with pytest.raises(ConfigError, match=r"another training: loop\.steps: 4 -> 5"):
        Experiment.load().run(resolve("pretrain.loop.steps=5"), done[0])


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        ("web", "''", r"data\.web is not set"),
        ("web", "nowhere", "nowhere"),
        ("human", "nowhere.json", r"nowhere\.json"),
        ("human_images", "nowhere", "nowhere: not found; it shall hold"),
        ("evaluation", "nowhere.json", r"nowhere\.json"),
        ("evaluation_images", "nowhere", "nowhere: 8 of 8 images are not there"),
        ("pairs", "nowhere.json", r"nowhere\.json"),
    ],
)
def test_place_that_is_wrong_is_named_before_anything_is_trained(
    place: str, value: str, message: str, done: Done, tmp_path: Path
) -> None:
    world = done[0] / "world"
    right = {
        "web": world / "web",
        "human": world / "human/captions.json",
        "human_images": world / "human/images",
        "evaluation": world / "evaluation/captions.json",
        "evaluation_images": world / "evaluation/images",
    }
    places = [f"data.{key}={path}" for key, path in (right | {place: value}).items()]
    config = resolve("world.web=0", f"pretrain.vocabulary={world}/vocab.txt", *places)
    with pytest.raises(CapfiltError, match=message):
        Experiment.load().run(config, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_images_of_ones_own_beside_a_world_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"data \(web\) and world: give one; world\.web=0"):
        resolve("data.web=shards")


def test_vocabulary_of_ones_own_images_must_be_given(tmp_path: Path) -> None:
    places = "data={web: web, human: human.json, evaluation: eval.json}"
    with pytest.raises(ConfigError, match=r"pretrain\.vocabulary is not set"):
        Experiment.load().run(resolve("world.web=0", places), tmp_path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["blip_pretrain", "--rounds", "2"], "--rounds is for bootstrap; blip_pretrain has"),
        (["bootstrap", "--num-workers", "2"], "bootstrap is one process"),
        (["bootstrap", "--cache-features", "x"], "those of bootstrap learn"),
        (["bootstrap"], "--out is missing"),
        (["bootstrap", "--out", "x", "--set", "round=2"], "did you mean 'rounds'"),
    ],
)
def test_command_that_cannot_be_is_one_line(
    options: list[str],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sys, "argv", ["capfilt", "train", *options])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 2
    errors = capsys.readouterr().err
    assert message in errors
    assert errors.count("\n") == 1


def test_list_names_the_experiment(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["capfilt", "train", "--list", "--json"])
    with pytest.raises(SystemExit):
        cli.main()
    stages = json.loads(capsys.readouterr().out)
    assert stages["bootstrap"].startswith("the paper's whole loop")


def test_filter_that_keeps_nothing_is_said(tmp_path: Path) -> None:
    config = resolve("run.selection.min_match_prob=1.0", "arms=[raw, captioner, both]", "rounds=1")
    with pytest.raises(TrainingError, match=r"the filter keeps no text at all\. Where results"):
        Experiment.load().run(config, tmp_path)
    # What needs no filter has been done, and what was measured is there.
    found = json.loads((tmp_path / "results.json").read_text())
    assert set(found["arms"]) == {"raw", "captioner"}
    assert {"auc", "captions_true"} <= set(found["modules"]["1"])
    assert "| captioner |" in (tmp_path / "results.md").read_text()
