"""Bad input of every kind: each has its reason, and none ends, stops or leaves its place."""

from __future__ import annotations

import functools
import gzip
import io
import json
import operator
import os
import random
import shutil
import tarfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from safetensors.torch import load_file, save_file

from capfilt.config import CaptionConfig, ScoringConfig
from capfilt.errors import CapfiltError, ModelError
from capfilt.models.load import load_captioner, load_filter
from capfilt.record import Reason
from capfilt.run.job import run
from capfilt.run.models import inspect_models
from capfilt.run.summary import Summary
from capfilt.run.verify import verify
from capfilt.run.where import Where
from tests import blip2_checkpoints, checkpoints
from tests.faults.conftest import Undisturbed, command, complete
from tests.faults.hostile import KEPT, TEXT, jpeg, kinds, png, write_tar
from tests.run.conftest import ledger_rows

_OF_SELECTION = (None, Reason.BELOW_MIN_MATCH_PROB)


def hostile_run(found: Undisturbed, web: Path, out: Path) -> Summary:
    images = replace(found.config.images, max_bytes=2**20)
    compute = replace(found.config.compute, max_attempts=1, read_timeout_s=60.0)
    config = replace(found.config, images=images, compute=compute)
    return run(config, Where(str(web), str(out), local=True))


@pytest.fixture(scope="module")
def web_texts(
    undisturbed: Undisturbed, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, list[str]]:
    """The reason of every web text by key, from the ledger of a run over one tar of all kinds."""
    folder = tmp_path_factory.mktemp("hostile")
    (folder / "web").mkdir()
    with (folder / "web" / "0.tar").open("wb") as file:
        write_tar(file, kinds())
    started = time.monotonic()
    summary = hostile_run(undisturbed, folder / "web", folder / "out")
    assert time.monotonic() - started < 120
    assert summary.shards_failed == ()
    assert verify(str(folder / "out")).problems == ()
    for name in ("etc", "outside", "outside.jpg", "pwned"):
        assert list(folder.rglob(name)) == []
    reasons = defaultdict(list)
    for row in ledger_rows(folder / "out"):
        if row["source"] == "web":
            reasons[row["key"]].append(KEPT if row["reason"] in _OF_SELECTION else row["reason"])
    return reasons


@pytest.mark.parametrize("key", kinds())
def test_sample_of_this_kind_has_its_reason(key: str, web_texts: dict[str, list[str]]) -> None:
    stored = key.encode("utf-8", "backslashreplace").decode()
    assert web_texts[stored] == [str(reason) for reason in kinds()[key].reasons]


def test_there_are_as_many_samples_as_kinds(web_texts: dict[str, list[str]]) -> None:
    assert len(web_texts) == len(kinds())
    assert len(kinds()) >= 60


def header(name: str, kind: bytes, size: int, data: bytes = b"") -> bytes:
    """A tar's block for a member of any size, followed by what there is of it."""
    member = tarfile.TarInfo(name)
    member.type, member.size = kind, size
    block = member.tobuf(tarfile.GNU_FORMAT)
    return block + data


def whole_tar() -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for ext, data in (("jpg", jpeg()), ("txt", TEXT)):
            member = tarfile.TarInfo(f"1.{ext}")
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


def parquet(table: pa.Table, **options: Any) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(table, buffer, **options)
    return buffer.getvalue()


def images(count: int = 3, **columns: Any) -> pa.Table:
    return pa.table({"jpg": [jpeg()] * count, "caption": ["a dog"] * count, **columns})


def nested(count: int, depth: int) -> Any:
    """Lists of one list of one list ..."""
    found: Any = pa.array([1] * count)
    for _ in range(depth):
        found = pa.ListArray.from_arrays(list(range(count + 1)), found)
    return found


END = b"\0" * 1024
SHARDS: dict[str, tuple[Callable[[], bytes], str]] = {
    "cut.tar": (lambda: whole_tar()[:1500], "truncated"),
    "cut_at_a_member.tar": (lambda: whole_tar()[:1024], "truncated"),
    "nothing.tar": (lambda: b"", "truncated or damaged"),
    "html.tar": (lambda: b"<html>404</html>" * 200, "truncated or damaged"),
    "gzip.tar": (lambda: gzip.compress(whole_tar()), "truncated or damaged"),
    "gzip_bomb.tar": (lambda: gzip.compress(b"\0" * 50_000_000), "truncated or damaged"),
    "two.tar": (lambda: whole_tar() * 2, "damaged"),
    "garbage_between.tar": (lambda: whole_tar()[:-10240] + b"\1" * 512 + whole_tar(), "damaged"),
    "pax_header_of_10_GB.tar": (
        lambda: header("x", tarfile.XHDTYPE, 10**10, b"\0" * 2**21) + END,
        "a header of 10000000",
    ),
    "long_name_of_4_GB.tar": (
        lambda: header("x", tarfile.GNUTYPE_LONGNAME, 2**32, b"x" * 2**21) + END,
        "a header of",
    ),
    "member_of_8_EB.tar": (lambda: header("1.npy", tarfile.REGTYPE, 2**63) + END, "truncated"),
    "negative_size.tar": (lambda: header("1.jpg", tarfile.REGTYPE, -512) + END, "bytes"),
    "headers_that_extend_headers.tar": (
        lambda: header("x", tarfile.XHDTYPE, 9, b"9 a=1234\n" + b"\0" * 503) * 5000 + END,
        "damaged",
    ),
    "nested_too_deep.parquet": (
        lambda: parquet(images(x=nested(3, depth=60))),
        "too deeply nested",
    ),
    "nothing.parquet": (lambda: b"", "not a readable Parquet"),
    "garbage.parquet": (lambda: b"PAR1" + b"\xff" * 999 + b"PAR1", "not a readable Parquet"),
    "cut.parquet": (lambda: parquet(images())[:-20], "not a readable Parquet"),
    "damaged.parquet": (
        lambda: parquet(images(), compression="zstd").replace(b"\x28\xb5\x2f\xfd", b"\0\0\0\0"),
        "decompression failed",
    ),
    "no_image_column.parquet": (lambda: parquet(pa.table({"x": [1]})), "no image column"),
    "image_of_another_type.parquet": (
        lambda: parquet(pa.table({"jpg": [1.5], "image": ["text"]})),
        "no image column",
    ),
    "column_bomb.parquet": (
        lambda: parquet(
            images(1, x=[b"\0" * 300_000_000]), compression="zstd", write_statistics=False
        ),
        "a bomb",
    ),
    "row_bomb.parquet": (
        lambda: parquet(pa.table({"jpg": pa.nulls(20_000_000, pa.binary())})),
        "20000000 rows",
    ),
    "nested_bomb.parquet": (
        lambda: parquet(
            pa.table(
                {
                    "jpg": [jpeg()],
                    "x": pa.ListArray.from_arrays([0, 2**27 + 1], pa.nulls(2**27 + 1, pa.int8())),
                }
            ),
        ),
        "a bomb",
    ),
}


@pytest.mark.parametrize("name", SHARDS)
def test_shard_of_this_kind_fails_by_name(
    name: str, undisturbed: Undisturbed, tmp_path: Path
) -> None:
    from capfilt.config import ImageConfig
    from capfilt.io.inputs import find_shards, read_samples

    make, message = SHARDS[name]
    (tmp_path / name).write_bytes(make())
    [shard] = find_shards(str(tmp_path)).shards
    with pytest.raises(CapfiltError, match=message) as raised:
        for _ in read_samples(shard, ImageConfig()):
            pass
    assert name in str(raised.value)
    assert "\n" not in str(raised.value)


def test_shard_that_is_a_pipe_fails_alone_and_is_not_waited_for(
    undisturbed: Undisturbed, tmp_path: Path
) -> None:
    web = tmp_path / "web"
    web.mkdir()
    (web / "good.tar").write_bytes(whole_tar())
    os.mkfifo(web / "pipe.tar")
    (web / "loop.tar").symlink_to(web / "loop.tar")
    (web / "folder.tar").mkdir()
    summary = hostile_run(undisturbed, web, tmp_path / "out")
    assert (summary.shards_done, [f.shard.id for f in summary.shards_failed]) == (1, ["pipe"])
    assert "no regular file" in summary.shards_failed[0].error


def test_parquet_rows_of_odd_values_have_their_reasons(
    undisturbed: Undisturbed, tmp_path: Path
) -> None:
    web = tmp_path / "web"
    web.mkdir()
    rows = {
        "../x": (jpeg(), b"a dog", Reason.INVALID_KEY),
        "null": (None, b"a dog", Reason.NO_IMAGE),
        "empty": (b"", b"a dog", Reason.IMAGE_EMPTY),
        "bomb": (png(60_000, 60_000), b"a dog", Reason.IMAGE_TOO_LARGE),
        "latin": (jpeg(), b"caf\xe9", Reason.TEXT_NOT_UTF8),
        "large": (b"\xff" * (2**20 + 1), b"a dog", Reason.IMAGE_TOO_LARGE),
    }
    keys = [*rows, "null"]
    captions = pa.array([rows[key][1] for key in keys], pa.binary()).view(pa.string())
    table = {"key": keys, "jpg": [rows[key][0] for key in keys], "caption": captions}
    table["deep"] = nested(len(keys), depth=30)
    pq.write_table(pa.table(table), web / "0.parquet")
    pq.write_table(images(2, caption=[1, 2]), web / "1.parquet")
    summary = hostile_run(undisturbed, web, tmp_path / "out")
    assert summary.shards_failed == ()
    found = [(r["key"], r["reason"]) for r in ledger_rows(tmp_path / "out") if r["source"] == "web"]
    expected = [(key, rows[key][2]) for key in rows] + [("null", Reason.NO_IMAGE)]
    assert sorted(found[:7]) == sorted(expected)
    assert {reason for _, reason in found[7:]} == {Reason.NO_TEXT}


# Checkpoints


Loader = Callable[[Path], Any]
SIMILARITY = ScoringConfig(match_prob=False, similarity=True)


def _captioner(folder: Path) -> Any:
    return load_captioner(str(folder), CaptionConfig(), seed=0, device="cpu")


def _filter(folder: Path) -> Any:
    return load_filter(str(folder), ScoringConfig(), device="cpu")


def _clip(folder: Path) -> Any:
    return load_filter(str(folder), SIMILARITY, device="cpu")


# Each architecture: how a test makes its folder, and how it is loaded.
ARCHITECTURES: dict[str, tuple[Callable[[Path], Path], Loader]] = {
    "BLIP captioner": (checkpoints.make_captioner, _captioner),
    "BLIP filter": (checkpoints.make_filter, _filter),
    "BLIP-2 captioner": (blip2_checkpoints.make_captioner, _captioner),
    "BLIP-2 filter": (blip2_checkpoints.make_filter, _filter),
    "CLIP": (checkpoints.make_clip, _clip),
}


@pytest.fixture(scope="module")
def wholes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("checkpoints")
    return {name: make(folder / name) for name, (make, _) in ARCHITECTURES.items()}


def _edit(folder: Path, name: str, **fields: Any) -> None:
    tree = json.loads((folder / name).read_text())
    (folder / name).write_text(json.dumps({**tree, **fields}))


def _part(part: str, **fields: Any) -> Callable[[Path], None]:
    """Changes sizes of a part, where a model has it."""

    def edit(folder: Path) -> None:
        tree = json.loads((folder / "config.json").read_text())
        part_of_it = part if part in tree else "vision_config"
        _edit(folder, "config.json", **{part_of_it: {**tree[part_of_it], **fields}})

    return edit


def _link_out(folder: Path) -> None:
    (folder / "vocab.txt").unlink(missing_ok=True)
    (folder / "vocab.txt").symlink_to("/etc/passwd")


def _only_a_pickle(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def _weights_elsewhere(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder.parent / "w.safetensors")
    index = {"weight_map": {"x": "../w.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def _without_a_tensor(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors.pop(next(name for name in sorted(tensors) if name.endswith("fc1.weight")))
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


ENDLESS = {"num_hidden_layers": 10**9}
CHECKPOINTS: dict[str, tuple[Callable[[Path], None], str]] = {
    "a pickle": (_only_a_pickle, "a pickle, which could run any code"),
    "remote code": (
        lambda f: _edit(f, "config.json", auto_map={"AutoModel": "evil.Model"}),
        "code of its own",
    ),
    "remote code of its tokenizer": (
        lambda f: _edit(f, "tokenizer_config.json", auto_map={"AutoTokenizer": "evil.T"}),
        "code of its own",
    ),
    "a link out": (_link_out, "links to /etc/passwd, outside the folder"),
    "weights elsewhere": (_weights_elsewhere, r"has no \.\./w\.safetensors"),
    "other shapes": (_part("vision_config", intermediate_size=96), "has shape"),
    "a tensor less": (_without_a_tensor, r"fc1.weight is missing"),
    "endless layers of images": (_part("vision_config", **ENDLESS), "num_hidden_layers is 10000"),
    "endless layers of text": (_part("text_config", **ENDLESS), "num_hidden_layers is 10000"),
    "endless layers of queries": (_part("qformer_config", **ENDLESS), "num_hidden_layers is 1000"),
    "an endless vocabulary": (_part("text_config", vocab_size=10**12), "vocab_size is 10000"),
    "no layers": (_part("vision_config", num_hidden_layers=-1), "num_hidden_layers is -1|not of"),
    "no heads": (
        _part("vision_config", num_attention_heads=0),
        "0 attention heads|no model can be made",
    ),
    "a word for a number": (_part("vision_config", hidden_size="large"), "config.json"),
    "a list for a part": (lambda f: _edit(f, "config.json", vision_config=[1]), "config.json"),
    "damaged weights": (
        lambda f: (f / "model.safetensors").write_bytes(b"\xff" * 999) and None,
        "cannot be read",
    ),
    "a header of exabytes": (
        lambda f: (f / "model.safetensors").write_bytes(b"\xff" * 7 + b"\x7f{}") and None,
        "cannot be read",
    ),
}


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("kind", CHECKPOINTS)
def test_checkpoint_of_this_kind_is_refused(
    kind: str, architecture: str, wholes: dict[str, Path], tmp_path: Path
) -> None:
    spoil, message = CHECKPOINTS[kind]
    folder = Path(shutil.copytree(wholes[architecture], tmp_path / "model"))
    spoil(folder)
    with pytest.raises(ModelError, match=message) as raised:
        ARCHITECTURES[architecture][1](folder)
    assert "\n" not in str(raised.value)


# Of a config.json of each kind, one value changed: a model, or a refusal by an error for people.
ANY_VALUE = [0, -1, 7, 10**12, 2**24, "x", None, [], {}, 1e300, True]


def _paths(tree: dict[str, Any], above: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for key, value in tree.items():
        yield (*above, key)
        if isinstance(value, dict):
            yield from _paths(value, (*above, key))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_config_with_any_value_in_any_place_loads_or_is_refused(
    architecture: str, wholes: dict[str, Path], tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(wholes[architecture], tmp_path / "model"))
    text = (folder / "config.json").read_text()
    places = list(_paths(json.loads(text)))
    drawn = random.Random(architecture)
    refusals = 0
    for _ in range(30):
        tree = json.loads(text)
        *above, key = drawn.choice(places)
        part = functools.reduce(operator.getitem, above, tree)
        part[key] = drawn.choice(ANY_VALUE)
        (folder / "config.json").write_text(json.dumps(tree))
        try:
            ARCHITECTURES[architecture][1](folder)
        except ModelError as error:
            refusals += 1
            assert "\n" not in str(error)  # noqa: PT017
    assert refusals > 5


def test_checkpoint_in_the_hubs_cache_may_link_to_its_blobs(
    undisturbed: Undisturbed, tmp_path: Path
) -> None:
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots" / "abc"
    shutil.copytree(undisturbed.config.captioner, blobs)
    snapshot.mkdir(parents=True)
    for file in blobs.iterdir():
        (snapshot / file.name).symlink_to(file)
    config = replace(undisturbed.config, captioner=str(snapshot))
    assert inspect_models(config)["captioner"].architecture == "BlipForConditionalGeneration"


# What a person sees


def test_terminal_obeys_nothing_that_strangers_wrote(
    undisturbed: Undisturbed, tmp_path: Path
) -> None:
    web = tmp_path / "web"
    web.mkdir()
    (web / "bad\x1b]0;owned\x07\x1b[2J\x9b31m\u202e[red].tar").write_bytes(b"<html>")
    found = replace(undisturbed, web=str(web))
    out = tmp_path / "out"
    arguments = command(found, out, "--local", "--set", "compute.max_attempts=1")
    run_it = [argument for argument in arguments if argument != "--json"]
    told = complete(run_it)
    asked = complete([*arguments[:3], "status", str(out), "--json"])
    for shown in (told.stdout, told.stderr, asked.stdout):
        assert "owned" in shown
        assert not {"\x1b", "\x07", "\x9b", "\u202e"} & set(shown)
    assert json.loads(asked.stdout)["shards"]["failed"][0]["id"].startswith("bad\x1b]0;owned")


@pytest.mark.parametrize("scheme", ["pipe:touch pwned; cat x.tar", "http://x'; touch pwned; '.tar"])
def test_url_that_webdataset_would_run_is_refused(
    scheme: str, undisturbed: Undisturbed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CapfiltError):
        run(undisturbed.config, Where(scheme, str(tmp_path / "out"), local=True))
    assert list(tmp_path.rglob("pwned")) == []
