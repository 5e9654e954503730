from __future__ import annotations

import io
import itertools
import json
import re
import tarfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import webdataset as wds

from capfilt.config import ImageConfig
from capfilt.errors import InputError
from capfilt.io import files, publish
from capfilt.io.fields import NOT_SCORED
from capfilt.io.ledger import LedgerWriter, read_ledger
from capfilt.io.reader import read_samples
from capfilt.io.tar import TarWriter, tar_key
from capfilt.record import Annotated, Reason, Sample, Source, Text, Verdict
from capfilt.shard import Form, InputShard
from tests.io.conftest import annotate, jpeg, read, sample_members, write_tar


def problems(path: Path, **fields: Any) -> list[tuple[str, Reason | None]]:
    return [(sample.key, sample.problem) for sample in read(path, **fields)]


def read_texts(path: Path) -> list[tuple[str | None, Reason | None]]:
    return [(s.texts[0].content, s.texts[0].reason) for s in read(path)]


# Reading


def test_read_tar_img2dataset_sample_comes_whole(tmp_path: Path) -> None:
    members = sample_members("0000301", "a dog\ton grass\n", similarity=0.3, error_message=None)
    [sample] = read(write_tar(tmp_path / "0.tar", members))
    assert sample.key == "0000301"
    assert sample.image == members[0][1]
    assert sample.image_ext == "jpg"
    [text] = sample.texts
    assert (text.source, text.index, text.content) == (Source.WEB, 0, "a dog\ton grass\n")
    assert list(sample.metadata) == ["caption", "url", "key", "similarity", "error_message"]
    assert sample.metadata["error_message"] is None
    assert sample.problem is None


def test_read_tar_order_is_the_tars(tmp_path: Path) -> None:
    members = [m for key in ("9", "1", "5") for m in sample_members(key)]
    assert [s.key for s in read(write_tar(tmp_path / "0.tar", members))] == ["9", "1", "5"]


def test_read_tar_key_ends_at_the_first_dot_of_the_base_name(tmp_path: Path) -> None:
    members = [("v1.0/7.JPG", jpeg()), ("v1.0/7.Seg.png", b"mask"), ("v1.0/7.cls", b"3")]
    [sample] = read(write_tar(tmp_path / "0.tar", members))
    assert (sample.key, sample.image_ext, sample.problem) == ("v1.0/7", "jpg", None)
    assert sample.extras == {"seg.png": b"mask", "cls": b"3"}


@pytest.mark.parametrize("ext", ["jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "avif"])
def test_read_tar_image_members_by_extension(tmp_path: Path, ext: str) -> None:
    [sample] = read(write_tar(tmp_path / "0.tar", [(f"1.{ext}", b"bytes"), ("1.txt", b"a dog")]))
    assert (sample.image, sample.image_ext, sample.problem) == (b"bytes", ext, None)


def test_read_tar_second_image_is_an_extra(tmp_path: Path) -> None:
    [sample] = read(write_tar(tmp_path / "0.tar", [("1.png", b"first"), ("1.jpg", b"second")]))
    assert (sample.image, sample.image_ext, sample.extras) == (b"first", "png", {"jpg": b"second"})


def test_read_tar_hidden_dotless_linked_and_special_members_are_none(tmp_path: Path) -> None:
    path = tmp_path / "0.tar"
    with tarfile.open(path, "w") as tar:
        for name, kind in (
            ("folder.jpg", tarfile.DIRTYPE),
            ("link.jpg", tarfile.SYMTYPE),
            ("hard.jpg", tarfile.LNKTYPE),
            ("pipe.jpg", tarfile.FIFOTYPE),
            ("device.jpg", tarfile.CHRTYPE),
        ):
            member = tarfile.TarInfo(name)
            member.type = kind
            member.linkname = "/etc/passwd"
            tar.addfile(member)
        for name in ("README", ".hidden.jpg", "x/.hidden.jpg", "1.jpg"):
            member = tarfile.TarInfo(name)
            member.size = 1
            tar.addfile(member, io.BytesIO(b"x"))
    assert [sample.key for sample in read(path)] == ["1"]


def test_read_tar_web_text_is_the_txt_before_the_caption(tmp_path: Path) -> None:
    members = [("1.jpg", jpeg()), ("1.json", b'{"caption": "of json"}'), ("1.txt", b"of txt")]
    members += [("2.jpg", jpeg()), ("2.json", b'{"caption": "of json"}')]
    assert read_texts(write_tar(tmp_path / "0.tar", members)) == [
        ("of txt", None),
        ("of json", None),
    ]


@pytest.mark.parametrize(
    ("members", "content", "reason"),
    [
        ([], None, Reason.NO_TEXT),
        ([("1.json", b'{"caption": null}')], None, Reason.NO_TEXT),
        ([("1.json", b'{"caption": 3}')], None, Reason.NO_TEXT),
        ([("1.json", b'{"caption": null}'), ("1.txt", b"")], None, Reason.NO_TEXT),
        ([("1.json", b'{"caption": ""}'), ("1.txt", b"")], "", Reason.EMPTY_TEXT),
        ([("1.txt", b" \t\n")], " \t\n", Reason.EMPTY_TEXT),
        ([("1.txt", b"caf\xe9")], "caf\\xe9", Reason.TEXT_NOT_UTF8),
        ([("1.json", b'{"caption": "a \\ud83d dog"}')], "a \\ud83d dog", Reason.TEXT_NOT_UTF8),
        ([("1.json", b'{"caption": "a \\ud83d\\ude00"}')], "a \U0001f600", None),
        ([("1.txt", b"x" * (64 * 1024 + 1))], None, Reason.TEXT_TOO_LONG),
        ([("1.txt", b"x" * (64 * 1024))], "x" * (64 * 1024), None),
        (
            [("1.json", json.dumps({"caption": "x" * 70_000}).encode())],
            None,
            Reason.TEXT_TOO_LONG,
        ),
    ],
)
def test_read_tar_text_that_cannot_be_used_has_its_reason(
    tmp_path: Path, members: list[tuple[str, bytes]], content: str | None, reason: Reason | None
) -> None:
    path = write_tar(tmp_path / "0.tar", [("1.jpg", jpeg()), *members])
    assert read_texts(path) == [(content, reason)]
    assert problems(path) == [("1", None)]


@pytest.mark.parametrize(
    "content", [b"[]", b"{", b"\xff", b'"x"', b"[" * 100_000, b'{"n": ' + b"1" * 5000 + b"}"]
)
def test_read_tar_json_that_is_no_object_fails_the_sample(tmp_path: Path, content: bytes) -> None:
    path = write_tar(tmp_path / "0.tar", [("1.jpg", jpeg()), ("1.json", content)])
    assert problems(path) == [("1", Reason.METADATA_INVALID)]


def test_read_tar_sample_without_image_fails(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "0.tar", [("1.txt", b"a dog"), *sample_members("2")])
    assert problems(path) == [("1", Reason.NO_IMAGE), ("2", None)]
    assert read(path)[0].texts[0].content == "a dog"


def test_read_tar_large_members_are_not_read(tmp_path: Path) -> None:
    limits = ImageConfig(max_bytes=1000)
    path = write_tar(
        tmp_path / "0.tar",
        [
            ("1.jpg", b"x" * 1001),
            ("1.txt", b"a dog"),
            ("2.jpg", b"x" * 1000),
            ("2.json", b" " * (4 * 2**20 + 1)),
            ("3.jpg", b"x"),
            ("3.npy", b"x" * (40 * 2**20)),
            ("3.bin", b"x" * (40 * 2**20)),
        ],
    )
    samples = list(read_samples(InputShard("0", Form.TAR, str(path), 0, ""), limits))
    assert [(s.key, s.problem) for s in samples] == [
        ("1", Reason.IMAGE_TOO_LARGE),
        ("2", Reason.METADATA_INVALID),
        ("3", Reason.METADATA_INVALID),
    ]
    assert samples[0].image is None
    assert samples[0].image_ext == "jpg"
    assert samples[0].texts[0].content == "a dog"
    assert list(samples[2].extras) == ["npy"]


@pytest.mark.parametrize(
    "key", ["/etc/x", "../x", "a/../x", "a\\b", "a\nb", "x" * 256, "a\x7fb", "a/\x01/b"]
)
def test_read_tar_key_that_cannot_name_a_file_fails(tmp_path: Path, key: str) -> None:
    path = write_tar(tmp_path / "0.tar", [(f"{key}.jpg", jpeg()), ("good.jpg", jpeg())])
    assert problems(path) == [(key, Reason.INVALID_KEY), ("good", None)]


def test_read_tar_key_that_is_not_utf8_fails_and_can_be_stored(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "0.tar", [("caf\udce9.jpg", jpeg())])
    [(key, problem)] = problems(path)
    assert problem is Reason.INVALID_KEY
    assert key.encode() == b"caf\\udce9"


def test_read_tar_keys_of_other_scripts_are_fine(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "0.tar", [(f"{'犬' * 60}/ñ 1.jpg", jpeg())])
    assert problems(path) == [(f"{'犬' * 60}/ñ 1", None)]


def test_read_tar_key_again_later_fails_the_later_sample(tmp_path: Path) -> None:
    members = [m for key in ("1", "2", "1") for m in sample_members(key)]
    path = write_tar(tmp_path / "0.tar", members)
    assert problems(path) == [("1", None), ("2", None), ("1", Reason.DUPLICATE_KEY)]


def test_read_tar_member_twice_fails_and_keeps_the_first(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "0.tar", [("1.jpg", b"first"), ("1.JPG", b"second")])
    [sample] = read(path)
    assert (sample.problem, sample.image) == (Reason.DUPLICATE_KEY, b"first")


def test_read_tar_human_source_is_kept(tmp_path: Path) -> None:
    members = [("1.jpg", jpeg()), ("1.json", b'{"caption": ["one", "two"]}')]
    [sample] = read(write_tar(tmp_path / "0.tar", members), source=Source.HUMAN)
    assert [(t.source, t.index, t.content) for t in sample.texts] == [
        (Source.HUMAN, 0, "one"),
        (Source.HUMAN, 1, "two"),
    ]


@pytest.mark.parametrize(("count", "rows"), [(2**15, 2**15), (2**15 + 1, 1)])
def test_read_tar_human_captions_are_no_more_than_a_ledger_counts(
    count: int, rows: int, tmp_path: Path
) -> None:
    members = [("1.jpg", jpeg()), ("1.json", json.dumps({"caption": ["a"] * count}).encode())]
    [sample] = read(write_tar(tmp_path / "0.tar", members), source=Source.HUMAN)
    texts = tuple(replace(text, verdict=Verdict.DROPPED) for text in sample.texts)
    with LedgerWriter(tmp_path / "0.parquet", metadata={}) as ledger:
        ledger.write(Annotated(sample, texts, (), Verdict.DROPPED))
    found = [row for batch in read_ledger(str(tmp_path / "0.parquet")) for row in batch.to_pylist()]
    assert [row["index"] for row in found] == list(range(rows))
    assert {text.reason for text in texts} == {None if rows == count else Reason.TEXT_TOO_LONG}


# Truncated and damaged tars


@pytest.fixture
def whole(tmp_path: Path) -> Path:
    """Three samples: every member has 512 bytes of header and at least 512 of data."""
    return write_tar(tmp_path / "0.tar", [m for key in "123" for m in sample_members(key)])


def cut_at(path: Path, size: int) -> Path:
    path.write_bytes(path.read_bytes()[:size])
    return path


def header_of(path: Path, name: str) -> int:
    with tarfile.open(path) as tar:
        return tar.getmember(name).offset


def end_of(path: Path) -> int:
    with tarfile.open(path) as tar:
        last = tar.getmembers()[-1]
        return last.offset_data + 512


@pytest.mark.parametrize("member", ["1.jpg", "2.jpg", "3.jpg", "3.json", "3.txt"])
@pytest.mark.parametrize("beyond", [0, 1, 256, 511, 512, 513, 700])
def test_read_tar_cut_anywhere_is_an_error(whole: Path, member: str, beyond: int) -> None:
    cut_at(whole, header_of(whole, member) + beyond)
    with pytest.raises(InputError, match=r"0\.tar: a truncated"):
        read(whole)


@pytest.mark.parametrize("zeros", [0, 512, 1023])
def test_read_tar_cut_in_its_end_is_an_error(whole: Path, zeros: int) -> None:
    cut_at(whole, end_of(whole) + zeros)
    with pytest.raises(InputError, match="truncated"):
        read(whole)


def test_read_tar_shortest_end_is_enough(whole: Path) -> None:
    cut_at(whole, end_of(whole) + 1024)
    assert len(read(whole)) == 3


def test_read_tar_truncated_gives_no_half_sample_as_its_last(whole: Path) -> None:
    cut_at(whole, header_of(whole, "3.json"))
    samples = read_samples(InputShard("0", Form.TAR, str(whole), 0, ""), ImageConfig())
    assert [next(samples).key, next(samples).key] == ["1", "2"]
    with pytest.raises(InputError):
        next(samples)


@pytest.mark.parametrize("garbage", [b"\0" * 512, b"garbage!" * 64])
def test_read_tar_damaged_header_in_the_middle_is_an_error(whole: Path, garbage: bytes) -> None:
    content = bytearray(whole.read_bytes())
    at = header_of(whole, "2.jpg")
    content[at : at + 512] = garbage
    whole.write_bytes(content)
    with pytest.raises(InputError, match="damaged"):
        read(whole)


def test_read_tar_two_tars_one_after_the_other_is_an_error(whole: Path) -> None:
    whole.write_bytes(whole.read_bytes() * 2)
    with pytest.raises(InputError, match="damaged"):
        read(whole)


@pytest.mark.parametrize("content", [b"", b"<html>not found</html>", b"\x1f\x8b" + b"x" * 2000])
def test_read_tar_something_else_is_an_error(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "0.tar").write_bytes(content)
    with pytest.raises(InputError, match=r"0\.tar: a truncated or damaged tar"):
        read(tmp_path / "0.tar")


def test_read_tar_of_nothing_has_no_samples(tmp_path: Path) -> None:
    assert read(write_tar(tmp_path / "0.tar", [])) == []


def test_read_tar_from_any_file_system(place: str, whole: Path) -> None:
    url = files.join(place, "0.tar")
    publish.write_bytes(url, whole.read_bytes())
    assert read(url) == read(whole)
    publish.write_bytes(url, whole.read_bytes()[:3000])
    with pytest.raises(InputError, match="truncated"):
        read(url)


# Writing


def written(path: Path, *samples: Annotated, images: bool = True) -> Path:
    with TarWriter(path, images=images) as writer:
        for annotated in samples:
            writer.write(annotated)
    return path


def test_tar_writer_members_are_image_text_and_fields(tmp_path: Path) -> None:
    annotated = annotate("1", metadata={"url": "http://x", "caption": "the web text", "key": "1"})
    path = written(tmp_path / "0.tar", annotated)
    with tarfile.open(path) as tar:
        assert tar.getnames() == ["1.jpg", "1.json", "1.txt"]
        content = {m.name: tar.extractfile(m).read() for m in tar}  # type: ignore[union-attr]
    assert content["1.jpg"] == annotated.sample.image
    assert content["1.txt"] == b"a picture of a dog"
    assert content["1.json"].decode() == (
        '{"url": "http://x", "key": "1", "caption": "a picture of a dog", "captions": '
        '[{"text": "a picture of a dog", "source": "synthetic", '
        '"match_prob": 0.9, "similarity": -2.0}], '
        '"web_text": "the web text"}'
    )


def test_tar_writer_twice_gives_the_same_bytes(tmp_path: Path) -> None:
    samples = [annotate(f"{'long/' * 30}ñ{i}", extras={"cls": b"1"}) for i in range(3)]
    first = written(tmp_path / "0.tar", *samples).read_bytes()
    assert written(tmp_path / "1.tar", *samples).read_bytes() == first


def test_tar_writer_bytes_are_webdatasets(tmp_path: Path) -> None:
    annotated = annotate("x/1", extras={"cls": b"7"})
    path = written(tmp_path / "0.tar", annotated)
    with tarfile.open(path) as tar:
        fields = {m.name.partition(".")[2]: tar.extractfile(m).read() for m in tar}  # type: ignore[union-attr]
    theirs = io.BytesIO()
    with wds.TarWriter(theirs, user="", group="", mtime=0, encoder=False) as writer:
        writer.write({"__key__": "x/1", **fields})
    assert path.read_bytes() == theirs.getvalue()


def test_tar_writer_what_it_wrote_reads_back(tmp_path: Path) -> None:
    annotated = annotate("x/1", metadata={"n": 1, "deep": {"a": [None]}}, extras={"_x.npy": b"\0"})
    [sample] = read(written(tmp_path / "0.tar", annotated))
    assert (sample.key, sample.image, sample.extras) == (
        "x/1",
        annotated.sample.image,
        {"_x.npy": b"\0"},
    )
    assert sample.metadata["deep"] == {"a": [None]}
    assert sample.texts[0].content == "a picture of a dog"


def test_tar_writer_without_images_leaves_texts(tmp_path: Path) -> None:
    path = written(tmp_path / "0.tar", annotate("1", extras={"cls": b"1"}), images=False)
    with tarfile.open(path) as tar:
        assert tar.getnames() == ["1.json", "1.txt"]


def test_tar_writer_of_nothing_is_a_valid_tar(tmp_path: Path) -> None:
    assert read(written(tmp_path / "0.tar")) == []


def test_tar_writer_key_with_dots_stays_one_key_for_readers(tmp_path: Path) -> None:
    path = written(tmp_path / "0.tar", annotate("v1.0/a.b"), annotate("v1.0/a.c"))
    keys = [s["__key__"] for s in wds.WebDataset(str(path), shardshuffle=False)]
    assert keys == ["v1.0/a%2Eb", "v1.0/a%2Ec"]


def test_tar_key_without_dots_is_unchanged() -> None:
    assert tar_key("v1.0/000 ñ%") == "v1.0/000 ñ%"


def test_tar_key_of_no_two_keys_is_the_same() -> None:
    keys = {"".join(part) for part in itertools.product([*".%2E5", "%2E", "%25"], repeat=4)}
    for key in keys:
        base = tar_key(key)
        assert "." not in base
        assert re.sub("%(2E|25)", lambda m: {"2E": ".", "25": "%"}[m[1]], base) == key


def human(key: str) -> Annotated:
    """As a captions file gives them: no score, other fields."""
    text = Text(Source.HUMAN, 0, "a dog", verdict=Verdict.KEPT)
    sample = Sample(key, jpeg(), "jpg", (text,), {"image": f"{key}.jpg"})
    return Annotated(sample, (text,), (text,), Verdict.KEPT)


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("first", ["human", "web"])
def test_tar_writer_scored_and_unscored_tars_load_in_any_order(
    tmp_path: Path, first: str, streaming: bool
) -> None:
    datasets = pytest.importorskip("datasets")
    written(tmp_path / "human.tar", *[human(f"h{i}") for i in range(6)])
    written(tmp_path / "web.tar", *[annotate(f"w{i}") for i in range(6)])
    names = sorted(("human", "web"), key=lambda name: name != first)
    rows = datasets.load_dataset(
        "webdataset",
        data_files=[str(tmp_path / f"{name}.tar") for name in names],
        split="train",
        streaming=streaming,
        cache_dir=str(tmp_path / "cache"),
    )
    by_key = {row["__key__"]: row["json"] for row in rows}
    assert len(by_key) == 12
    assert by_key["w5"]["web_text"] == "the web text"
    [caption] = by_key["w5"]["captions"]
    assert (caption["match_prob"], caption["similarity"]) == (0.9, NOT_SCORED)
    assert by_key["h5"]["web_text"] == ""
    [caption] = by_key["h5"]["captions"]
    assert (caption["match_prob"], caption["similarity"]) == (NOT_SCORED, NOT_SCORED)


def test_read_tar_extension_that_is_not_utf8_can_be_stored(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "0.tar", [("1.jpg", jpeg()), ("1.caf\udce9", b"x")])
    [sample] = read(path)
    assert sample.extras == {"caf\\udce9": b"x"}


def test_tar_writer_output_loads_with_webdataset_and_datasets(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    annotated = annotate("1", metadata={"url": "http://x"})
    (tmp_path / "data").mkdir()
    second = annotate("2", metadata={"url": "http://y"})
    path = written(tmp_path / "data" / "0.tar", annotated, second)
    decoded = list(wds.WebDataset(str(path), shardshuffle=False).decode("pil"))
    assert [s["txt"] for s in decoded] == ["a picture of a dog"] * 2
    assert decoded[0]["jpg"].size == (16, 16)
    assert decoded[0]["json"]["web_text"] == "the web text"
    rows = datasets.load_dataset(
        "webdataset", data_files=str(path), split="train", cache_dir=str(tmp_path / "cache")
    )
    assert rows["txt"][1] == "a picture of a dog"
    assert rows[0]["jpg"].size == (16, 16)
    assert rows[1]["json"]["captions"][0]["match_prob"] == 0.9
