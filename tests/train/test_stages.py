"""The stages as a user meets them: processes, small real models, and what they leave behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from capfilt.demo import tiny
from tests.call import capfilt
from tests.run.conftest import write_shard
from tests.train.test_loop import curve

PRETRAIN = """
data: {image_size: 32, workers: 1}
model:
  image: {width: 64, layers: 2, heads: 4, image_size: 32, patch_size: 8}
  text: {width: 48, layers: 2, heads: 4}
  embedding: 24
  itc: {queue: 32}
optimiser: {lr: 1e-3}
schedule: {warmup_steps: 4}
loop: {steps: 24, batch_size: 8, save_every: 4, log_every: 1}
"""
FINETUNE = """
data: {image_size: 48, workers: 1}
model: {image_size: 48}
loop: {epochs: 1, batch_size: 8, log_every: 1}
"""


# Threads that wait for each other on busy cores take longer than the work.
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards, a vocabulary and configs."""
    root = tmp_path_factory.mktemp("world")
    for index in range(4):
        write_shard(root / "web", index, 12)
    tiny.tokenizer().save_pretrained(root / "vocabulary")
    datasets = f"[{{path: {root / 'web'}}}]"
    for name, text in (("pretrain", PRETRAIN), ("finetune", FINETUNE)):
        (root / f"{name}.yaml").write_text(
            text.replace("data: {", f"data: {{datasets: {datasets}, ")
        )
    return root


def command(world: Path, stage: str, out: Path, *options: object) -> list[str]:
    kind = "pretrain" if stage == "blip_pretrain" else "finetune"
    words = ["-m", "capfilt", "train", stage, "-c", world / f"{kind}.yaml", "--out", out, *options]
    if kind == "pretrain":
        words += ["--set", f"vocabulary={world / 'vocabulary'}"]
    return [str(word) for word in words]


def finished(arguments: Sequence[str], *, code: int = 0) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *arguments]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=400, check=False, env=ENVIRONMENT
    )
    assert done.returncode == code, done.stderr
    return done


@pytest.fixture(scope="module")
def pretrained(world: Path) -> Path:
    """A pre-training that nobody interrupted."""
    out = world / "pretrained"
    done = finished(command(world, "blip_pretrain", out))
    assert "capfilt train blip_finetune_captioner --set model.start=" in done.stdout
    assert "step 24/24" in done.stderr
    return out


def begun(arguments: Sequence[str], out: Path, *, rows: int) -> subprocess.Popen[str]:
    """Start a training and come back when its log has some rows."""
    process = subprocess.Popen(
        [sys.executable, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=ENVIRONMENT,
    )
    log = out / "log.jsonl"
    until = time.monotonic() + 300
    while not log.exists() or log.read_bytes().count(b"\n") < rows:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < until
        time.sleep(0.005)
    return process


def test_pretraining_killed_in_mid_epoch_goes_on_as_if_nothing_had_been(
    world: Path, pretrained: Path, tmp_path: Path
) -> None:
    out = tmp_path / "killed"
    arguments = command(world, "blip_pretrain", out)
    process = begun(arguments, out, rows=6)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert not (out / "captioner").exists()
    resumed = finished(arguments)
    assert "going on after step" in resumed.stderr
    assert curve(out) == curve(pretrained)
    weights = "captioner/model.safetensors"
    assert (out / weights).read_bytes() == (pretrained / weights).read_bytes()


def test_pretraining_told_to_stop_writes_a_checkpoint_and_goes_on_later(
    world: Path, pretrained: Path, tmp_path: Path
) -> None:
    out = tmp_path / "stopped"
    arguments = command(world, "blip_pretrain", out, "--set", "loop.save_every=1000")
    process = begun(arguments, out, rows=3)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 130, errors
    last = errors.strip().splitlines()[-1]
    assert last == "capfilt: interrupted; the same command goes on where it stopped"
    done = curve(out)[-1]["step"]
    assert [p.name for p in (out / "checkpoints").iterdir()] == [f"step-{done:08d}"]
    assert done < 24
    finished(arguments)
    assert curve(out) == curve(pretrained)


@pytest.fixture(scope="module")
def finetuned(world: Path, pretrained: Path) -> dict[str, Path]:
    """Captioner and filter, by role."""
    start, queue = ("--set", f"model.start={pretrained}"), ("--set", "model.itc.queue=32")
    for role, options in (("captioner", start), ("filter", (*start, *queue))):
        done = called(command(world, f"blip_finetune_{role}", world / role, *options))
        assert f"capfilt run INPUT OUTPUT --{role} {world / role / role}" in done.stdout
    return {role: world / role / role for role in ("captioner", "filter")}


def test_finetuned_modules_caption_and_filter(
    world: Path, finetuned: dict[str, Path], tmp_path: Path
) -> None:
    models = [f"--{role}={folder}" for role, folder in finetuned.items()]
    done = called(
        ["-m", "capfilt", "run", str(world / "web"), str(tmp_path), *models, "--local", "--json"]
    )
    found = json.loads(done.stdout)
    assert found["read"] == 48
    assert found["failed"] == 0


def test_finetuned_modules_are_transformers_own(finetuned: dict[str, Path]) -> None:
    from transformers import BlipForConditionalGeneration, BlipForImageTextRetrieval

    for role, kind in (
        ("captioner", BlipForConditionalGeneration),
        ("filter", BlipForImageTextRetrieval),
    ):
        model, report = kind.from_pretrained(finetuned[role], output_loading_info=True)
        assert not report["missing_keys"]
        assert not report["unexpected_keys"]
        assert model.config.vision_config.image_size == 48


def test_torchrun_ranks_train_together(world: Path, tmp_path: Path) -> None:
    arguments = command(world, "blip_pretrain", tmp_path / "out", "--json", "--set", "loop.steps=3")
    torchrun = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone"]
    done = finished([*torchrun, *arguments])
    summary = json.loads(done.stdout)
    assert summary["images"] == 24
    assert [row["step"] for row in curve(tmp_path / "out")] == [1, 2, 3]
    record = json.loads((tmp_path / "out/checkpoints/step-00000003/checkpoint.json").read_text())
    assert record["ranks"] == 2


def test_ray_workers_train_together(world: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    on_ray = ("--num-workers", 2, "--gpus-per-worker", 0, "--set", "loop.steps=3", "--json")
    done = finished(command(world, "blip_pretrain", out, *on_ray))
    summary = json.loads(done.stdout)
    assert (summary["steps"], summary["images"]) == (3, 24)
    record = json.loads((out / "checkpoints/step-00000003/checkpoint.json").read_text())
    assert record["ranks"] == 2
    assert {p.name for p in out.iterdir()} >= {"captioner", "filter", "log.jsonl", "train.json"}
    assert not (out / ".ray").exists()


def _made(path: Path, text: str = "") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    ("stage", "options", "message"),
    [
        ("blip_pretrain", {"data.datasets": "[]"}, "data"),
        ("blip_pretrain", {"data.datasets": "[{{path: {tmp}/nowhere}}]"}, "nowhere"),
        ("blip_pretrain", {"data.datasets": "[{{path: {tmp}/empty}}]"}, "empty"),
        ("blip_pretrain", {"data.datasets": "[{{path: {tmp}/textless.json}}]"}, "textless.json"),
        ("blip_pretrain", {"model.itc.queue": "33"}, "queue is 33, no multiple of the 8 images"),
        ("blip_pretrain", {"vocabulary": "{tmp}/nowhere.txt"}, "nowhere.txt"),
        ("blip_pretrain", {"vocabulary": "''"}, "vocabulary is not set"),
        ("blip_pretrain", {"vocabulary": "{tmp}/empty"}, "empty: has neither vocab.txt nor"),
        ("blip_pretrain", {"vocabulary": "{tmp}/textless.json"}, "not a BERT vocabulary"),
        ("blip_pretrain", {"loop.batchsize": "9"}, "did you mean 'loop.batch_size'"),
        ("blip_pretrain", {"optimiser.lr": "2e-3"}, "holds another training: optimiser.lr: 0.001"),
        ("blip_finetune_captioner", {}, "model.start is not set: give the output folder of"),
        ("blip_finetune_captioner", {"model.start": "{tmp}/nowhere"}, "nowhere: no such folder"),
        ("blip_finetune_captioner", {"model.start": "{pre}/filter"}, "is a BlipForImageTextRet"),
        ("blip_finetune_captioner", {"model.start": "{tmp}/begun"}, "begun is not finished"),
        ("blip_finetune_filter", {"model.start": "{cut}"}, "model.safetensors: cannot be read"),
        ("blip_finetune_filter", {"model.start": "{other}"}, "but config.json makes it"),
    ],
)
def test_bad_input_is_one_line_and_exit_2(
    stage: str,
    options: dict[str, str],
    message: str,
    world: Path,
    pretrained: Path,
    tmp_path: Path,
) -> None:
    (tmp_path / "empty").mkdir()
    _made(tmp_path / "begun" / "train.json")
    _made(tmp_path / "textless.json", json.dumps([{"image": "a.jpg", "caption": ""}]))
    places = {
        "tmp": tmp_path,
        "pre": pretrained,
        "cut": _broken(pretrained / "filter", tmp_path / "cut", {}, cut=True),
        "other": _broken(
            pretrained / "filter", tmp_path / "other", {"image_text_hidden_size": 7}, cut=False
        ),
    }
    sets = [
        part
        for key, value in options.items()
        for part in ("--set", f"{key}={value.format(**places)}")
    ]
    out = pretrained if "another training" in message else tmp_path / "out"
    errors = called(command(world, stage, out) + sets, code=2).stderr
    assert message in errors
    assert errors.count("\n") == 1, errors
    assert errors.startswith("capfilt: ")
    assert not (tmp_path / "out").exists()


def test_finished_training_is_left_as_it_is(world: Path, pretrained: Path) -> None:
    before = (pretrained / "summary.json").read_bytes()
    done = called([*command(world, "blip_pretrain", pretrained), "--json"])
    assert json.loads(done.stdout) == json.loads(before)
    assert "nothing to do" in done.stderr
    assert (pretrained / "summary.json").read_bytes() == before


def test_folder_of_something_else_is_refused(world: Path) -> None:
    done = called(command(world, "blip_pretrain", world / "web"), code=2)
    assert "web: is not empty and no training's" in done.stderr


def test_loss_that_is_not_finite_is_one_line_and_exit_1(world: Path, tmp_path: Path) -> None:
    wild = ("--set", "optimiser.lr=1e30", "--set", "schedule.warmup_steps=0")
    done = called(command(world, "blip_pretrain", tmp_path, *wild), code=1)
    last = done.stderr.splitlines()[-1]
    assert last.startswith("capfilt: step 2: a loss or gradient is not finite (itc nan")
    assert "/0000" in last
    assert last.endswith("there is no checkpoint yet")


def called(arguments: Sequence[str], *, code: int = 0) -> subprocess.CompletedProcess[str]:
    """As `finished`, in this process."""
    done = capfilt(*arguments[2:])
    assert done.returncode == code, done.stderr
    return done


def _broken(source: Path, target: Path, settings: dict[str, Any], *, cut: bool) -> Path:
    """A copy of a checkpoint with other settings, or with half its weights."""
    target.mkdir()
    for file in source.iterdir():
        content = file.read_bytes()
        if file.name == "config.json":
            content = json.dumps({**json.loads(content), **settings}).encode()
        if cut and file.name == "model.safetensors":
            content = content[: len(content) // 2]
        (target / file.name).write_bytes(content)
    return target
