"""The command as a user meets it: arguments, an exit code and two streams.

The first of each kind are processes; most are calls in this one, which has torch imported already.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.call import capfilt
from tests.run.conftest import captioner, filter_, web, write_shard  # noqa: F401 - fixtures


def process(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    """Call a command line in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "capfilt.cli", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        env=os.environ | environment,
    )


@pytest.fixture
def light(tmp_path: Path) -> dict[str, str]:
    """An environment in which what takes seconds to import cannot be imported."""
    for name in ("torch", "ray", "transformers"):
        (tmp_path / f"{name}.py").write_text("raise ImportError(__name__)")
    return {"PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])}


def test_cli_help_answers_at_once_and_names_the_commands(light: dict[str, str]) -> None:
    assert process("plan", "x", "--captioner", "y", **light).stderr.count("ImportError") == 1
    done = process("--help", **light)
    assert done.returncode == 0, done.stderr
    looking = ("report", "select", "diff", "export")
    for command in ("run", "status", "verify", "ingest", "train", "evaluate", "demo", *looking):
        assert command in done.stdout


def test_cli_run_status_verify_print_results_on_stdout(
    web: str,  # noqa: F811
    captioner: str,  # noqa: F811
    filter_: str,  # noqa: F811
    tmp_path: Path,
) -> None:
    models = ("--captioner", captioner, "--filter", filter_)
    done = process("run", web, tmp_path / "out", *models, "--local", "--format", "parquet")
    assert done.returncode == 0, done.stderr
    assert "noise ratio" in done.stdout
    assert "48 read" in done.stdout
    found = json.loads(process("status", tmp_path / "out", "--json").stdout)
    assert found["shards"]["done"] == 4
    assert found["read"] == 48
    verified = process("verify", tmp_path / "out")
    assert (verified.returncode, verified.stderr) == (0, "")
    assert "all as committed" in verified.stdout
    (tmp_path / "out" / "data" / "00000.parquet").write_bytes(b"not as committed")
    broken = process("verify", tmp_path / "out")
    assert broken.returncode == 1
    assert "00000.parquet" in broken.stdout


@pytest.fixture
def other_run(web: str, captioner: str, filter_: str, tmp_path: Path) -> Path:  # noqa: F811
    out = tmp_path / "other"
    assert (
        capfilt(
            "run", web, out, "--captioner", captioner, "--filter", filter_, "--local"
        ).returncode
        == 0
    )
    return out


@pytest.fixture(scope="module")
def shared_run(
    tmp_path_factory: pytest.TempPathFactory,
    captioner: str,  # noqa: F811
    filter_: str,  # noqa: F811
) -> Path:
    """A run of one shard."""
    folder = tmp_path_factory.mktemp("shared")
    write_shard(folder / "web", 0, 6)
    models = ("--captioner", captioner, "--filter", filter_)
    assert capfilt("run", folder / "web", folder / "run", *models, "--local").returncode == 0
    return folder / "run"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"INPUT": "missing"}, "missing"),
        ({"INPUT": "{tmp}/empty"}, "empty"),
        ({"--captioner": "{filter}"}, "BlipForConditionalGeneration"),
        ({"--filter": "{captioner}"}, "BlipForImageTextRetrieval"),
        ({"--captioner": "{tmp}/pickles"}, "safetensors"),
        ({"--captioner": "{tmp}/nowhere"}, "nowhere"),
        ({"-c": "{tmp}/unknown_key.yaml"}, "did you mean 'captions.top_p'"),
        ({"-c": "{tmp}/absent.yaml"}, "absent.yaml"),
        ({"--set": "selection.min_match_prob=1.5"}, "in [0, 1]"),
        ({"--address": "127.0.0.1:1"}, "no Ray cluster answers"),
        ({"OUTPUT": "{tmp}/other", "--set": "seed=7"}, "--overwrite"),
        ({"--limit": "0"}, "--limit must be at least 1"),
        ({"--preset": "blip3"}, "none of blip, blip2"),
        ({"--format": "zip"}, "none of webdataset, parquet"),
    ],
)
def test_cli_wrong_usage_is_one_line_and_exit_2(
    change: dict[str, str],
    message: str,
    web: str,  # noqa: F811
    captioner: str,  # noqa: F811
    filter_: str,  # noqa: F811
    tmp_path: Path,
    request: pytest.FixtureRequest,
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "unknown_key.yaml").write_text("captions: {topp: 0.9}")
    pickles = tmp_path / "pickles"
    pickles.mkdir()
    (pickles / "config.json").write_text(
        json.dumps({"architectures": ["BlipForConditionalGeneration"], "model_type": "blip"})
    )
    (pickles / "pytorch_model.bin").write_bytes(b"\x80\x02.")
    if change.get("OUTPUT"):
        request.getfixturevalue("other_run")
    places = {"tmp": tmp_path, "captioner": captioner, "filter": filter_}
    arguments = {
        "INPUT": web,
        "OUTPUT": str(tmp_path / "out"),
        "--captioner": captioner,
        "--filter": filter_,
        **{option: value.format(**places) for option, value in change.items()},
    }
    options = [
        part for name, value in arguments.items() if name[0] == "-" for part in (name, value)
    ]
    if "--address" not in change:
        options.append("--local")
    # What libraries print, in reading a checkpoint or looking for a cluster, is shown by processes.
    call = process if {"--captioner", "--address"} & change.keys() else capfilt
    done = call("run", arguments["INPUT"], arguments["OUTPUT"], *options)
    assert done.returncode == 2, done.stderr
    assert message in done.stderr
    assert done.stderr.count("\n") == 1, done.stderr
    assert done.stderr.startswith("capfilt: ")
    assert done.stdout == ""
    assert not (tmp_path / "out").exists()


def test_cli_convert_makes_a_pickled_checkpoint_one_that_run_takes(
    web: str,  # noqa: F811
    captioner: str,  # noqa: F811
    filter_: str,  # noqa: F811
    tmp_path: Path,
) -> None:
    shutil.copytree(captioner, tmp_path / "pickled")
    (tmp_path / "pickled" / "model.safetensors").rename(tmp_path / "weights")
    torch.save(load_file(tmp_path / "weights"), tmp_path / "pickled" / "pytorch_model.bin")
    models = ("--captioner", tmp_path / "pickled", "--filter", filter_)
    refused = capfilt("run", web, tmp_path / "out", *models, "--local")
    assert refused.returncode == 2
    assert "capfilt convert" in refused.stderr
    done = capfilt("convert", tmp_path / "pickled", tmp_path / "made", "--as", "captioner")
    assert (done.returncode, done.stdout) == (0, f"{tmp_path / 'made'}\n"), done.stderr
    models = ("--captioner", tmp_path / "made", "--filter", filter_)
    assert capfilt("run", web, tmp_path / "out", *models, "--local").returncode == 0
    wrong = capfilt("convert", tmp_path / "pickled", tmp_path / "made", "--as", "decoder")
    assert (wrong.returncode, wrong.stderr.count("\n")) == (2, 1)


def test_cli_looks_at_a_run_and_cuts_it(other_run: Path, tmp_path: Path) -> None:
    cut = tmp_path / "cut"
    dry = capfilt("select", other_run, "--dry-run", "--min-match", "0.6", "--json")
    done = capfilt("select", other_run, cut, "--min-match", "0.6", "--json")
    assert (dry.returncode, done.returncode) == (0, 0), done.stderr
    assert json.loads(dry.stdout)["after"]["texts"] == json.loads(done.stdout)["texts"]
    assert capfilt("verify", cut).returncode == 0
    compared = capfilt("diff", other_run, cut)
    assert "selection.min_match_prob: 0.5 -> 0.6" in compared.stdout
    written = capfilt("report", cut, "--out", tmp_path / "page.html", "--samples", "1")
    assert written.stdout == f"{tmp_path / 'page.html'}\n"
    exported = capfilt("export", cut, tmp_path / "pairs", "--form", "blip", "--json")
    assert json.loads(exported.stdout)["texts"] == len(
        [p for f in (tmp_path / "pairs/pairs").iterdir() for p in json.loads(f.read_text())]
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("select", "{run}"), "NEW_OUTPUT is missing"),
        (("select", "{run}", "--dry-run", "--mix", "first"), "none of both, web-first"),
        (("select", "{run}", "--dry-run", "--keep-fraction", "2"), "keep_fraction is in (0, 1]"),
        (("select", "{run}", "--dry-run", "--where", "width >"), "--where 'width >'"),
        (("select", "{run}", "--dry-run", "--min-similarity", "0"), "has no similarity"),
        (("select", "{tmp}", "--dry-run"), "no run here"),
        (("report", "{tmp}"), "no run here"),
        (("export", "{run}", "{tmp}/x", "--form", "coco"), "none of blip, lavis"),
        (("diff", "{run}", "{tmp}"), "no run here"),
    ],
)
def test_cli_looking_wrongly_is_one_line_and_exit_2(
    arguments: tuple[str, ...], message: str, shared_run: Path, tmp_path: Path
) -> None:
    places = {"run": shared_run, "tmp": tmp_path}
    done = capfilt(*(argument.format(**places) for argument in arguments))
    assert (done.returncode, done.stdout) == (2, ""), done.stderr
    assert message in done.stderr
    assert done.stderr.count("\n") == 1


def test_cli_status_and_verify_of_no_run_are_one_line(tmp_path: Path) -> None:
    for command in ("status", "verify"):
        done = capfilt(command, tmp_path)
        assert done.returncode == 2
        assert done.stderr == f"capfilt: {tmp_path}: no run here (no manifest.json)\n"


def test_cli_train_lists_the_stages_at_once(light: dict[str, str]) -> None:
    done = process("train", "--list", **light)  # no stage is run, so no torch
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[5].startswith("blip_pretrain ")


def test_cli_train_shows_a_config_that_it_takes(tmp_path: Path) -> None:
    shown = capfilt("train", "blip_finetune_filter", "--show", "--set", "loop.keep=7").stdout
    assert "  batch_size: 256\n" in shown
    (tmp_path / "config.yaml").write_text(shown)
    again = capfilt("train", "blip_finetune_filter", "--show", "-c", tmp_path / "config.yaml")
    assert again.stdout == shown


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "STAGE is missing: capfilt train --list names them"),
        (("blip_pretran", "--show"), "did you mean 'blip_pretrain'?"),
        (("blip_pretrain",), "--out is missing"),
        (("blip_pretrain", "-c", "nowhere.yaml"), "nowhere.yaml"),
    ],
)
def test_cli_train_wrong_usage_is_one_line(arguments: tuple[str, ...], message: str) -> None:
    done = capfilt("train", *arguments)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1, done.stderr
    assert message in done.stderr
