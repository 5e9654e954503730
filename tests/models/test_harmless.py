"""Whatever a stranger's folder asks for beside its numbers, it is refused at every door."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from capfilt.errors import ModelError
from capfilt.models.convert import blip_tokenizer, convert
from capfilt.models.harmless import made_from, open_folder, read_json
from capfilt.train import initial
from capfilt.train.parts import start_folder, vocabulary_of


def edit(folder: Path, name: str = "config.json", **fields: Any) -> None:
    tree = json.loads((folder / name).read_text())
    (folder / name).write_text(json.dumps({**tree, **fields}))


def link_out(folder: Path) -> None:
    (folder / "vocab.txt").symlink_to("/etc/passwd")


def fifo(folder: Path) -> None:
    os.mkfifo(folder / "tokenizer.model")


def nested(folder: Path) -> None:
    (folder / "config.json").write_text('{"a":' * 100_000)


SPOILERS: dict[str, tuple[Callable[[Path], None], str]] = {
    "a link out": (link_out, "links to /etc/passwd, outside the folder"),
    "remote code": (lambda f: edit(f, auto_map={"AutoModel": "evil.M"}), "code of its own"),
    "remote code of a part": (
        lambda f: edit(f, text_config={"auto_map": {"AutoModel": "evil.M"}}),
        "code of its own",
    ),
    "a kernel of the hub": (
        lambda f: edit(f, attn_implementation="evil/kernel"),
        r"code of its own \(attn_implementation: evil/kernel\)",
    ),
    "an adapter": (lambda f: (f / "adapter_config.json").touch(), "is of an adapter"),
    "a pipe": (fifo, "neither a file nor a folder"),
    "nested brackets": (nested, "nested too deep"),
    "endless layers": (
        lambda f: edit(f, text_config={"num_hidden_layers": 10**9}),
        "text_config.num_hidden_layers is 1000000000, more than any model has",
    ),
    "endless experts": (lambda f: edit(f, num_local_experts=10**6), "num_local_experts is 1000000"),
    "a size of no model": (lambda f: edit(f, vocab_size=10**12), "vocab_size is 1000000000000"),
    "sizes of no model": (lambda f: edit(f, hidden_sizes=[8, 10**9]), "hidden_sizes is 1000000000"),
}

# What training reads, each by the function that its key goes through.
DOORS: dict[str, Callable[[Path], Any]] = {
    "a captioner or filter": lambda folder: open_folder(str(folder)),
    "model.start": lambda folder: start_folder(str(folder), "captioner"),
    "model.start of a training": lambda folder: start_folder(str(folder.parent), "captioner"),
    "vocabulary": lambda folder: vocabulary_of(str(folder), ""),
    "vocabulary beside weights": lambda folder: vocabulary_of("", str(folder)),
    "what is converted": lambda folder: convert(folder, folder.parent / "new", "captioner"),
    "its tokenizer": lambda folder: blip_tokenizer(folder),
    "model.text.weights": lambda folder: initial.load_text_weights([], str(folder)),
    "model.image.weights": lambda folder: initial.load_image_weights(None, str(folder)),  # type: ignore[arg-type]
    "model.qformer.weights": lambda folder: initial.load_query_weights(None, str(folder)),  # type: ignore[arg-type]
    "start of a finetuning": lambda folder: initial.start_temperature(str(folder)),
}


@pytest.fixture
def folder(captioner_folder: Path, tmp_path: Path) -> Path:
    """A captioner's, which is that of a training, too."""
    (tmp_path / "train.json").write_text("{}")
    return Path(shutil.copytree(captioner_folder, tmp_path / "captioner"))


@pytest.mark.parametrize("spoiler", SPOILERS)
def test_folder_that_asks_for_more_than_its_numbers_is_refused(spoiler: str, folder: Path) -> None:
    assert open_folder(str(folder)) == folder
    spoil, message = SPOILERS[spoiler]
    spoil(folder)
    with pytest.raises(ModelError, match=message) as raised:
        open_folder(str(folder))
    assert str(folder) in str(raised.value)


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("spoiler", ["a link out", "remote code", "endless layers"])
def test_every_folder_that_training_reads_is_looked_at(
    door: str, spoiler: str, folder: Path
) -> None:
    spoil, message = SPOILERS[spoiler]
    spoil(folder)
    with pytest.raises(ModelError, match=message):
        DOORS[door](folder)


def test_settings_that_are_no_sizes_may_be_large(folder: Path) -> None:
    edit(folder, rope_theta=10**10, vision_feature_layer=-2, hidden_size=16384, vocab_size=300_000)
    assert open_folder(str(folder)) == folder


def test_folder_within_one_of_the_hubs_cache_may_link_to_its_blobs(
    captioner_folder: Path, tmp_path: Path
) -> None:
    blobs, inner = tmp_path / "blobs", tmp_path / "snapshots" / "abc" / "qformer_tokenizer"
    shutil.copytree(captioner_folder, blobs)
    inner.mkdir(parents=True)
    for file in blobs.iterdir():
        (inner / file.name).symlink_to(file)
    assert open_folder(str(inner)) == inner
    link_out(inner)
    with pytest.raises(ModelError, match="outside the folder"):
        open_folder(str(inner))


def test_json_larger_than_any_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "config.json").open("wb") as file:
        file.truncate(2**40)  # sparse
    with pytest.raises(ModelError, match="larger than 64 MiB"):
        read_json(tmp_path / "config.json")


def test_what_fails_in_a_library_names_the_folder_and_the_cause(tmp_path: Path) -> None:
    message = r"no model .*\(ZeroDivisionError: division"
    with pytest.raises(ModelError, match=message) as raised, made_from(tmp_path):
        1 / 0  # noqa: B018
    assert str(tmp_path) in str(raised.value)
    assert isinstance(raised.value.__cause__, ZeroDivisionError)


def test_memory_that_ends_is_no_fault_of_the_folders(tmp_path: Path) -> None:
    with pytest.raises(MemoryError), made_from(tmp_path):
        raise MemoryError
