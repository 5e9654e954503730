"""The documentation says what the code does."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import pytest

from capfilt.config import PRESETS, RunConfig
from capfilt.schema import keys, to_dict, to_yaml
from capfilt.train.stage import Stage
from tests.commands import commands_of_page, parse, recorded, resolve

ROOT = Path(__file__).resolve().parents[1]
ROW = re.compile(r"^\| `([\w.]+)` \| `(.+?)` \| (?:`(.+?)`)? ?\|", re.MULTILINE)
TABLE_ROW = re.compile(r"^\| `([\w.]+)` \| `(.+?)` \| `(.+?)` \| `(.+?)` \|$", re.MULTILINE)
TRAINING_ROW = re.compile(r"^\| `([\w.]+)` \| `(.+?)` \| `(.+?)` \| `(.+?)` \|", re.MULTILINE)


def defaults(cls: type[Any] = RunConfig, prefix: str = "") -> dict[str, Any]:
    """Every leaf key with its default as written in the code."""
    found: dict[str, Any] = {}
    for field in dataclasses.fields(cls):
        if isinstance(field.default_factory, type):
            found |= defaults(field.default_factory, f"{prefix}{field.name}.")
        else:
            is_list = isinstance(field.default, tuple)
            found[prefix + field.name] = list(field.default) if is_list else field.default
    return found


def test_config_page_has_every_key_with_its_default() -> None:
    rows = ROW.findall((ROOT / "docs/config.md").read_text())
    assert {key: json.loads(default) for key, default, _ in rows} == defaults()


def test_config_page_has_the_blip2_preset() -> None:
    rows = ROW.findall((ROOT / "docs/config.md").read_text())
    preset = {
        f"{section}.{key}": value
        for section, values in PRESETS["blip2"].items()
        for key, value in values.items()
    }
    assert {key: json.loads(value) for key, _, value in rows if value} == preset


def test_training_page_has_every_key_with_its_defaults() -> None:
    """Of the sections that all stages share; `--show` prints `model` and `data`."""
    rows = TRAINING_ROW.findall((ROOT / "docs/training.md").read_text())
    for column, name in enumerate(
        ("blip_pretrain", "blip_finetune_captioner", "blip_finetune_filter"), start=1
    ):
        tree = to_dict(Stage.load(name).config)
        expected = {"seed": tree["seed"]} | {
            f"{section}.{key}": value
            for section in ("optimiser", "schedule", "loop")
            for key, value in tree[section].items()
        }
        assert {row[0]: json.loads(row[column]) for row in rows} == expected, name


def test_blip2_page_has_the_defaults_of_its_stages() -> None:
    rows = TABLE_ROW.findall((ROOT / "docs/blip2.md").read_text())
    assert len(rows) == 13
    for column, name in enumerate(
        ("blip2_stage1", "blip2_stage2", "blip2_finetune_captioner"), start=1
    ):
        config = Stage.load(name).config
        for row in rows:
            value: Any = config
            for part in row[0].split("."):
                value = getattr(value, part)
            found = json.loads(row[column])
            assert found == (list(value) if isinstance(value, tuple) else value), (name, row[0])


@pytest.mark.parametrize("page", ["README.md", "docs/fidelity.md", "docs/architecture.md"])
def test_page_names_only_config_keys_that_exist(page: str) -> None:
    text = (ROOT / page).read_text()
    sections = {key.split(".")[0] for key in keys(RunConfig) if "." in key}
    named = {
        word
        for word in re.findall(r"\b([a-z]+\.[a-z_]+)\b(?!\()", text)
        if word.split(".")[0] in sections and not word.endswith((".py", ".json", ".md"))
    }
    assert named <= set(keys(RunConfig)), page


def test_readme_links_lead_somewhere() -> None:
    for page in (ROOT / "README.md", *(ROOT / "docs").glob("*.md")):
        for target in re.findall(r"\]\((?!http)([^)#]+)\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name} -> {target}"


def test_reliability_page_names_tests_that_exist_for_each_promise() -> None:
    text = (ROOT / "docs/reliability.md").read_text()
    rows = [line for line in text.splitlines() if line.startswith("| ")][2:]
    assert len(rows) > 20
    for row in rows:
        file = ""
        named = re.findall(r"`([\w./]*)::(\w+)`", row)
        assert named, row
        for path, test in named:
            file = path or file
            assert re.search(rf"^def {test}\(", (ROOT / file).read_text(), re.MULTILINE), test
        assert not re.search(r"`tests/[\w/]+\.py`", row), row  # a file is no test


def test_operations_page_quotes_failures_as_they_are_said() -> None:
    """Of the table of failures: what stands in backquotes in its first column is in the code."""
    table = (ROOT / "docs/operations.md").read_text().partition("## What a failure looks like")[2]
    rows = re.findall(r"^\| (.*?) \|", table, re.MULTILINE)[2:]
    sources = "".join(file.read_text() for file in (ROOT / "capfilt").rglob("*.py"))
    sources = re.sub(r'"\n\s*f?"', "", sources)  # a message over several lines
    quoted = [words for row in rows for words in re.findall(r"`(.+?)`", row)]
    assert len(quoted) > 12
    assert [words for words in quoted if words.rstrip("/") not in sources] == []


PAGES = ["README.md", *sorted(f"docs/{page.name}" for page in (ROOT / "docs").glob("*.md"))]


@pytest.fixture
def reader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The folder of one who has made the pages' config.yaml and pretrain.yaml, in a checkout."""
    [config] = re.findall(r"^```yaml\n(.*?)^```", (ROOT / "README.md").read_text(), re.M | re.S)
    (tmp_path / "config.yaml").write_text(config)
    (tmp_path / "pretrain.yaml").write_text(to_yaml(Stage.load("blip_pretrain").config))
    for folder in ("pipelines", "benchmarks"):
        (tmp_path / folder).symlink_to(ROOT / folder)
    monkeypatch.chdir(tmp_path)


@pytest.mark.usefixtures("reader")
def test_commands_of_the_pages_are_what_the_command_line_takes() -> None:
    found: dict[str, int] = {}
    for page in PAGES:
        for command in commands_of_page((ROOT / page).read_text()):
            try:
                name = parse(command.words, is_whole=command.is_whole)
                if command.is_whole:
                    resolve(command.words)
            except Exception as error:
                raise AssertionError(f"{page}: {command}: {error}") from error
            found[name] = found.get(name, 0) + 1
    assert {"run", "ingest", "select", "evaluate noise", "train", "convert", "demo"} <= set(found)
    assert sum(found.values()) > 100


@pytest.mark.usefixtures("reader")
@pytest.mark.parametrize(
    ("page", "said"),
    [
        ("```\ncapfilt run web dataset --captoner c  # no such option\n```", "captoner"),
        ("a line with `capfilt run --captoner c` in it", "captoner"),
        ("`capfilt evaluate nose`", "nose"),
        ("`capfilt demo demo --pictures many`", "valid integer"),
        ("```\ncapfilt run web ... --captoner c\n```", "captoner"),
        ("```\ncapfilt run web out -c config.yaml --set captions.topp=1\n```", "topp"),
        ("```\ncapfilt plan web -c config.yaml --set captions.top_p=high\n```", "top_p"),
        ("```\ncapfilt train blip_pretrain --set loop.stps=1\n```", "stps"),
    ],
)
def test_command_that_the_command_line_does_not_take_is_found(page: str, said: str) -> None:
    [command] = commands_of_page(page)
    with pytest.raises(Exception, match=said):  # noqa: PT012 - either finds it
        parse(command.words, is_whole=command.is_whole)
        resolve(command.words)


@pytest.mark.parametrize("script", ["emoji/run.sh", "photographs/run.sh"])
def test_commands_of_the_benchmarks_are_what_the_command_line_takes(
    script: str, tmp_path: Path
) -> None:
    calls = recorded(
        ROOT / "benchmarks" / script,
        str(tmp_path),
        beside=tmp_path,
        programs=("capfilt", "python"),
    )
    commands = [words for program, *words in calls if program == "capfilt"]
    assert [parse(words) for words in commands][:3] == ["train"] * 3
    for words in commands:
        resolve(words)
