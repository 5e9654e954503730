"""`capfilt evaluate` as a user meets it: an exit code and two streams."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from capfilt import cli
from tests.evaluate.conftest import PICTURES, put_lines

CAPTIONS = [
    {
        "image": f"{i}.png",
        "captions": [f"a dog on {word}", "two cats"],
        "split": "dev" if i % 2 else "test",
    }
    for i, word in enumerate(["grass", "snow", "street", "house", "table", "water"] * 2)
]
LABELLED = [
    {"image": f"{i}.png", "caption": text, "label": int(i % 3 == j)}
    for i in range(PICTURES)
    for j, text in enumerate(("a dog", "snow on a tree", "a red car"))
]


def put_run(folder: Path) -> str:
    """A run of which nothing is done."""
    folder.mkdir()
    (folder / "manifest.json").write_text("{}")
    return str(folder)


@pytest.fixture
def files(
    pictures: Path, captioner_folder: Path, filter_folder: Path, clip_folder: Path, tmp_path: Path
) -> dict[str, str]:
    (tmp_path / "empty").mkdir()
    return {
        "captioner": str(captioner_folder),
        "filter": str(filter_folder),
        "clip": str(clip_folder),
        "images": str(pictures),
        "captions": put_lines(tmp_path / "captions.jsonl", CAPTIONS),
        "labelled": put_lines(tmp_path / "labelled.jsonl", LABELLED),
        "alike": put_lines(tmp_path / "alike.jsonl", LABELLED[:1]),
        "run": put_run(tmp_path / "run"),
        "tmp": str(tmp_path),
    }


@pytest.fixture
def capfilt(
    files: dict[str, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Any:
    """Run a command line; gives exit code, stdout and stderr."""

    def run(line: str) -> tuple[int, str, str]:
        arguments = [part.format(**files) for part in line.split()]
        monkeypatch.setattr(sys, "argv", ["capfilt", "evaluate", *arguments])
        with pytest.raises(SystemExit) as end:
            cli.main()
        streams = capsys.readouterr()
        return int(end.value.code or 0), streams.out, streams.err

    return run


COMMANDS = {
    "retrieval": "retrieval --filter {filter} --pairs {captions} --images {images} --k-test 4",
    "captions": "captions --captioner {captioner} --pairs {captions} --images {images}",
    "filter": "filter --filter {filter} --pairs {labelled} --images {images} --threshold 0.4",
    "noise": "noise {images} --captioner {captioner} --filter {filter} --limit 6",
}


@pytest.mark.parametrize(
    ("task", "figures"),
    [
        ("retrieval", ["R@1", "text to image, ITC", "image to text, ITM of the first 4"]),
        ("captions", ["BLEU-4", "CIDEr", "12 images, 24 human captions"]),
        ("filter", ["ROC AUC", "average precision", "F1 at best threshold", "0.4000"]),
        ("noise", ["noise ratio", "of 6 synthetic captions below 0.5"]),
    ],
)
def test_a_table_or_one_json_object_is_on_stdout(
    task: str, figures: list[str], capfilt: Any
) -> None:
    code, table, _ = capfilt(COMMANDS[task])
    assert code == 0
    for figure in figures:
        assert figure in table
    code, out, _ = capfilt(f"{COMMANDS[task]} --json")
    tree = json.loads(out)
    assert (code, tree["task"]) == (0, task)


def test_json_has_the_figures_of_the_table(capfilt: Any) -> None:
    tree = json.loads(capfilt(f"{COMMANDS['retrieval']} --json")[1])
    table = capfilt(COMMANDS["retrieval"])[1]
    for way in ("text_to_image", "image_to_text"):
        for stage, title in (("itc", "ITC"), ("itm", "ITM of the first 4")):
            shares = [100 * tree[stage][way][name] for name in ("r1", "r5", "r10")]
            row = r"\s+".join(f"{share:.1f}" for share in shares)
            assert re.search(rf"{way.replace('_', ' ')}, {title}\s+{row}\s", table)
    assert (tree["images"], tree["texts"], tree["k_test"]) == (12, 24, 4)
    quality = json.loads(capfilt(f"{COMMANDS['filter']} --json")[1])
    assert quality["match_prob"]["at_threshold"]["threshold"] == 0.4
    assert quality["similarity"]["at_threshold"] is None
    assert f"{quality['similarity']['roc_auc']:.4f}" in capfilt(COMMANDS["filter"])[1]


def test_a_table_says_how_many_candidates_there_were(capfilt: Any) -> None:
    line = COMMANDS["retrieval"].replace("--k-test 4", "--k-test 256")
    assert json.loads(capfilt(f"{line} --json")[1])["k_test"] == 24
    table = capfilt(line)[1]
    assert "text to image, ITM of the first 12 " in table
    assert "image to text, ITM of the first 24 " in table


def test_images_lie_beside_the_file_unless_told(files: dict[str, str], capfilt: Any) -> None:
    rows = [{**row, "image": f"pictures/{row['image']}"} for row in CAPTIONS]
    (Path(files["tmp"]) / "pictures").symlink_to(files["images"])
    put_lines(Path(files["tmp"]) / "beside.jsonl", rows)
    code, out, _ = capfilt(
        "captions --captioner {captioner} --pairs {tmp}/beside.jsonl --split dev "
        "--save {tmp}/saved.json --set captions.num_beams=1 --json"
    )
    assert (code, json.loads(out)["images"]) == (0, 6)
    saved = json.loads((Path(files["tmp"]) / "saved.json").read_text())
    assert [row["image"] for row in saved] == [f"pictures/{i}.png" for i in range(1, 12, 2)]


def test_a_clip_filter_is_measured_by_similarity(capfilt: Any) -> None:
    code, out, _ = capfilt("filter --filter {clip} --pairs {labelled} --images {images} --json")
    tree = json.loads(out)
    assert (code, tree["match_prob"]) == (0, None)
    assert 0 < tree["similarity"]["roc_auc"] < 1


def test_without_candidates_retrieval_is_by_itc_alone(capfilt: Any) -> None:
    line = COMMANDS["retrieval"].replace("--k-test 4", "--k-test 0")
    tree = json.loads(capfilt(f"{line} --json")[1])
    assert tree["itm"] is None
    assert tree["itc"] == json.loads(capfilt(f"{COMMANDS['retrieval']} --json")[1])["itc"]
    table = capfilt(line)[1]
    assert "ITC" in table
    assert "ITM" not in table


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (
            "retrieval --filter {filter} --pairs {captions}",
            "12 of 12 images are not there, the first is 0.png (--images",
        ),
        (f"{COMMANDS['retrieval']} --split val", "no split 'val'; it has dev, test"),
        (f"{COMMANDS['retrieval']} --k-test -1", "--k-test must be 0 (ITC alone) or more, is -1"),
        (
            "retrieval --filter {captioner} --pairs {captions} --images {images}",
            "is a BlipForConditionalGeneration, a captioner",
        ),
        ("retrieval --filter {clip} --pairs {captions} --images {images}", "no match probability"),
        (
            "captions --captioner {captioner} --pairs {labelled}x --images {images}",
            "labelled.jsonlx",
        ),
        (f"{COMMANDS['captions']} --set captions.beams=5", "unknown config key 'captions.beams'"),
        (
            "filter --filter {filter} --pairs {captions} --images {images}",
            "row 1 has no caption, label; it has image, captions, split",
        ),
        (
            "filter --filter {filter} --pairs {alike} --images {images}",
            "the labels of the file are all the same",
        ),
        (
            "captions --captioner {captioner} --pairs {labelled} --images {images}",
            "labelled pairs are for `capfilt evaluate filter`",
        ),
        (
            "retrieval --filter {filter} --pairs {labelled} --images {images}",
            "labelled pairs are for `capfilt evaluate filter`",
        ),
        (
            f"{COMMANDS['filter']} --threshold 2",
            "capfilt: --threshold is a probability in [0, 1], is 2\n",
        ),
        (f"{COMMANDS['noise']} --threshold 1.5", "--threshold is a probability in [0, 1], is 1.5"),
        ("noise {run} --threshold -1", "--threshold is a probability in [0, 1], is -1"),
        ("noise {tmp}/nothere", "nothere: no such folder"),
        (
            "filter --filter {clip} --pairs {labelled} --images {images} --threshold 0.5",
            "needs scoring.match_prob",
        ),
        ("noise {images}", "no run here; a folder of images needs --captioner and --filter"),
        ("noise {tmp}/empty --captioner {captioner} --filter {filter}", "no images below it"),
        (f"{COMMANDS['noise']} --limit 0", "--limit must be at least 1, is 0"),
        ("noise {images} --captioner none --filter {filter}", "needs captioner, filter"),
    ],
)
def test_bad_input_is_one_line_and_exit_2(line: str, message: str, capfilt: Any) -> None:
    code, out, err = capfilt(line)
    assert (code, out) == (2, "")
    assert message in err
    assert err.startswith("capfilt: ")
    assert err.count("\n") == 1


def test_a_process_has_nothing_but_the_json_on_stdout(files: dict[str, str]) -> None:
    line = COMMANDS["filter"].format(**files).split()
    done = subprocess.run(
        [sys.executable, "-m", "capfilt.cli", "evaluate", *line, "--json"],
        capture_output=True, text=True, timeout=500, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["task"] == "filter"
    assert done.stderr == ""
