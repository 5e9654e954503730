from __future__ import annotations

import datetime
import decimal
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.dataset
import pyarrow.parquet as pq
import pytest

from capfilt.config import ImageConfig
from capfilt.errors import InputError
from capfilt.io import files, publish
from capfilt.io.parquet import ParquetWriter
from capfilt.io.reader import read_samples
from capfilt.record import Annotated, Reason, Sample, Score, Source, Text, Verdict
from capfilt.shard import Form, InputShard
from tests.io.conftest import annotate, jpeg, read, write_tar

HF_IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def write(path: Path, **columns: Any) -> Path:
    pq.write_table(pa.table(columns), path)
    return path


def read_rows(path: Path | str, **fields: Any) -> list[Sample]:
    return read(path, Form.PARQUET, **fields)


# Reading

BYTES_IN_LIST = [("a", pa.list_(pa.binary())), ("b", pa.int8())]
STRINGS = {pa.binary(): pa.string(), pa.large_binary(): pa.large_string()}


def unchecked(column: Any) -> Any:
    """An array whose bytes, at whatever depth, are said to be strings."""

    def said(kind: Any) -> Any:
        if pa.types.is_struct(kind):
            return pa.struct([field.with_type(said(field.type)) for field in kind])
        if pa.types.is_list(kind):
            return pa.list_(said(kind.value_type))
        if pa.types.is_large_list(kind):
            return pa.large_list(said(kind.value_type))
        return STRINGS.get(kind, kind)

    return column.view(said(column.type))


def test_read_parquet_img2dataset_rows_come_whole(tmp_path: Path) -> None:
    path = write(
        tmp_path / "0.parquet",
        caption=["a dog", "no image", None],
        key=["000", "001", "002"],
        status=["success", "failed_to_download", "success"],
        error_message=pa.array([None, "HTTP Error 404", None]),
        width=pa.array([16, None, 16], pa.int32()),
        jpg=pa.array([jpeg(1), None, jpeg(2)], pa.binary()),
    )
    first, second = read_rows(path, expected=2)
    assert (first.key, first.image, first.image_ext, first.problem) == ("000", jpeg(1), "jpg", None)
    assert first.texts == (Text(Source.WEB, 0, "a dog"),)
    assert dict(first.metadata) == {
        "caption": "a dog",
        "key": "000",
        "status": "success",
        "error_message": None,
        "width": 16,
    }
    assert second.key == "002"
    assert second.texts == (Text(Source.WEB, 0, None, reason=Reason.NO_TEXT),)


@pytest.mark.parametrize(
    ("column", "content", "ext"),
    [
        ("png", b"anything", "png"),
        ("webp", b"anything", "webp"),
        ("image", b"\xff\xd8\xff\xe0", "jpg"),
        ("image", b"\x89PNG\r\n", "png"),
        ("image", b"RIFF\0\0\0\0WEBP", "webp"),
        ("image", b"GIF89a", "gif"),
        ("image", b"unknown", "jpg"),
    ],
)
def test_read_parquet_image_column_gives_the_extension(
    tmp_path: Path, column: str, content: bytes, ext: str
) -> None:
    path = write(tmp_path / "0.parquet", **{column: pa.array([content], pa.binary())})
    [sample] = read_rows(path)
    assert (sample.image, sample.image_ext, sample.key) == (content, ext, "000000000")


def test_read_parquet_hf_image_struct(tmp_path: Path) -> None:
    rows = [
        {"bytes": b"unknown", "path": "x/1.PNG"},
        {"bytes": None, "path": "x/2.png"},
        None,
        {"bytes": b"unknown", "path": "http://x/1.png?size=3"},
    ]
    path = write(tmp_path / "0.parquet", image=pa.array(rows, HF_IMAGE), text=["a", "b", "c", "d"])
    found = [(s.key, s.image_ext, s.problem, s.texts[0].content) for s in read_rows(path)]
    assert found == [
        ("000000000", "png", None, "a"),
        ("000000001", "png", Reason.NO_IMAGE, "b"),
        ("000000002", "jpg", Reason.NO_IMAGE, "c"),
        ("000000003", "jpg", None, "d"),
    ]


def test_read_parquet_many_rows_keep_order_and_numbers(tmp_path: Path) -> None:
    images = pa.array([str(i).encode() for i in range(100)], pa.binary())
    path = write(tmp_path / "0.parquet", jpg=images)
    found = [(s.key, s.image) for s in read_rows(path)]
    assert found == [(f"{i:09d}", str(i).encode()) for i in range(100)]


def test_read_parquet_keys_are_checked(tmp_path: Path) -> None:
    keys = pa.array(["a", "../b", "a", None, "c/"], pa.string())
    path = write(tmp_path / "0.parquet", key=keys, jpg=pa.array([b"x"] * 5, pa.binary()))
    assert [(s.key, s.problem) for s in read_rows(path)] == [
        ("a", None),
        ("../b", Reason.INVALID_KEY),
        ("a", Reason.DUPLICATE_KEY),
        ("000000003", None),
        ("c/", Reason.INVALID_KEY),
    ]


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string()])
def test_read_parquet_text_that_is_not_utf8_has_its_reason(tmp_path: Path, kind: Any) -> None:
    raw = pa.array([b"caf\xe9", b"fine"], pa.binary())
    raw = raw.cast(pa.large_binary()) if kind == pa.large_string() else raw
    broken = pa.Array.from_buffers(kind, 2, raw.buffers())
    images = pa.array([b"x", b"y"], pa.binary())
    path = write(tmp_path / "0.parquet", caption=broken, alt=broken, jpg=images)
    first, second = read_rows(path)
    assert first.texts[0] == Text(Source.WEB, 0, "caf\\xe9", reason=Reason.TEXT_NOT_UTF8)
    assert first.metadata["alt"] == "caf\\xe9"
    assert second.texts[0] == Text(Source.WEB, 0, "fine")


TOO_LATE = [1, 2**62]  # for Python, in any unit but nanoseconds


@pytest.mark.parametrize(
    ("column", "odd"),
    [
        (pa.array([1, 10**7], pa.int32()).cast(pa.date32()), 10**7),
        (pa.array(TOO_LATE).cast(pa.timestamp("ms", "UTC")), 2**62),
        (pa.array(TOO_LATE).cast(pa.timestamp("us")), 2**62),
        (pa.array(TOO_LATE).cast(pa.time64("us")), 2**62),
        (pa.array(TOO_LATE).cast(pa.duration("s")), 2**62),
        (pa.array([[i] for i in TOO_LATE]).cast(pa.list_(pa.timestamp("us"))), [2**62]),
        (pa.array([["fine"], [b"caf\xe9"]], pa.list_(pa.binary())), ["caf\\xe9"]),
        (pa.array([[], [b"caf\xe9"]], pa.large_list(pa.large_binary())), ["caf\\xe9"]),
        (
            pa.array([None, {"a": [b"caf\xe9"], "b": 1}], pa.struct(BYTES_IN_LIST)),
            {"a": ["caf\\xe9"], "b": 1},
        ),
    ],
    ids=lambda value: str(value.type) if isinstance(value, pa.Array) else "",
)
def test_read_parquet_odd_value_costs_no_other(tmp_path: Path, column: Any, odd: Any) -> None:
    images = pa.array([b"x", b"y"], pa.binary())
    path = write(tmp_path / "0.parquet", odd=unchecked(column), jpg=images, text=["a", "b"])
    first, second = read_rows(path)
    assert first.metadata["odd"] == unchecked(column)[0].as_py()
    assert second.metadata["odd"] == odd
    assert (first.image, second.image) == (b"x", b"y")


def test_read_parquet_human_caption_that_is_not_utf8_costs_no_other(tmp_path: Path) -> None:
    captions = unchecked(pa.array([[b"caf\xe9", b"fine"], None], pa.list_(pa.binary())))
    images = pa.array([b"x", b"y"], pa.binary())
    path = write(tmp_path / "0.parquet", caption=captions, jpg=images)
    first, second = read_rows(path, source=Source.HUMAN)
    assert first.texts == (
        Text(Source.HUMAN, 0, "caf\\xe9", reason=Reason.TEXT_NOT_UTF8),
        Text(Source.HUMAN, 1, "fine"),
    )
    assert first.metadata["caption"] == ["caf\\xe9", "fine"]
    assert second.texts == (Text(Source.HUMAN, 0, None, reason=Reason.NO_TEXT),)


def test_read_parquet_large_images_are_not_kept(tmp_path: Path) -> None:
    path = write(tmp_path / "0.parquet", jpg=pa.array([b"x" * 11, b"x" * 10], pa.binary()))
    shard = InputShard("0", Form.PARQUET, str(path), 0, "")
    found = [(s.image, s.problem) for s in read_samples(shard, ImageConfig(max_bytes=10))]
    assert found == [(None, Reason.IMAGE_TOO_LARGE), (b"x" * 10, None)]


def test_read_parquet_of_a_table_without_images_says_so(tmp_path: Path) -> None:
    path = write(tmp_path / "0.parquet", url=["http://x"], image=["not bytes"])
    with pytest.raises(InputError, match=r"0\.parquet: no image column.*has url, image"):
        read_rows(path)


@pytest.mark.parametrize("size", [0, 1, 100])
def test_read_parquet_truncated_is_an_error(tmp_path: Path, size: int) -> None:
    path = write(tmp_path / "0.parquet", jpg=pa.array([b"x" * 1000], pa.binary()))
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(InputError, match=r"0\.parquet: "):
        read_rows(path)


def test_read_parquet_fewer_images_than_promised_is_an_error(tmp_path: Path) -> None:
    path = write(tmp_path / "0.parquet", jpg=pa.array([b"x"], pa.binary()))
    with pytest.raises(InputError, match=r"1 images, but its _stats\.json says 2"):
        read_rows(path, expected=2)


def test_read_parquet_from_any_file_system(place: str, tmp_path: Path) -> None:
    path = write(tmp_path / "0.parquet", jpg=pa.array([b"x"], pa.binary()), caption=["a dog"])
    url = files.join(place, "0.parquet")
    publish.write_bytes(url, path.read_bytes())
    assert read_rows(url) == read_rows(path)


# Writing


def written(path: Path, *samples: Annotated, **options: Any) -> Path:
    with ParquetWriter(path, **options) as writer:
        for annotated in samples:
            writer.write(annotated)
    return path


def keep_all(path: Path) -> list[Annotated]:
    """Every sample of a Parquet shard, as if the filter had kept a synthetic text of each."""
    kept = Text(Source.SYNTHETIC, 0, "synthetic", Score(0.9), Verdict.KEPT)
    return [Annotated(s, (*s.texts, kept), (kept,), Verdict.KEPT) for s in read_rows(path)]


def test_parquet_writer_columns_of_a_tar_input(tmp_path: Path) -> None:
    annotated = annotate("a", metadata={"n": 1, "caption": "the web text"}, extras={"cls": b"7"})
    [row] = pq.read_table(written(tmp_path / "0.parquet", annotated)).to_pylist()
    assert list(row) == ["key", "image", "caption", "captions", "web_text", "json", "extras"]
    assert row["key"] == "a"
    assert row["image"] == {"bytes": annotated.sample.image, "path": "a.jpg"}
    assert row["caption"] == "a picture of a dog"
    [caption] = row["captions"]
    assert caption["text"] == "a picture of a dog"
    assert caption["source"] == "synthetic"
    assert caption["match_prob"] == pytest.approx(0.9, abs=1e-7)
    assert caption["similarity"] is None
    assert row["web_text"] == "the web text"
    assert json.loads(row["json"]) == {"n": 1, "caption": "the web text"}
    assert row["extras"] == [{"ext": "cls", "data": b"7"}]


def test_parquet_writer_columns_of_a_parquet_input_are_in_its_json(tmp_path: Path) -> None:
    moment = datetime.datetime(2026, 1, 2, 3, 4, 5, tzinfo=datetime.UTC)
    columns = {
        "key": pa.array([7], pa.int64()),
        "jpg": pa.array([jpeg()], pa.binary()),
        "caption": pa.array(["the web text"]),
        "image": pa.array(["in our way"]),
        "score": pa.array([float("nan")], pa.float32()),
        "nanoseconds": pa.array([1_700_000_000_123_456_789], pa.timestamp("ns", "UTC")),
        "moment": pa.array([moment], pa.timestamp("us", "UTC")),
        "price": pa.array([decimal.Decimal("1.50")], pa.decimal128(5, 2)),
        "label": pa.array(["cat"]).dictionary_encode(),
        "nested": pa.array([{"a": [1.0, float("inf")], "b": None}]),
        "tags": pa.array([[("a", 1)]], pa.map_(pa.string(), pa.int8())),
        "nothing": pa.nulls(1),
        "raw": pa.array([b"\x00\xff"], pa.binary()),
    }
    source = write(tmp_path / "in.parquet", **columns)
    [row] = pq.read_table(written(tmp_path / "0.parquet", *keep_all(source))).to_pylist()
    assert json.loads(row["json"], parse_constant=pytest.fail) == {
        "key": 7,
        "caption": "the web text",
        "image": "in our way",
        "score": None,
        "nanoseconds": 1_700_000_000_123_456_789,
        "moment": "2026-01-02T03:04:05+00:00",
        "price": "1.50",
        "label": "cat",
        "nested": {"a": [1.0, None], "b": None},
        "tags": [["a", 1]],
        "nothing": None,
        "raw": "AP8=",
    }
    assert (row["key"], row["web_text"], row["caption"]) == ("7", "the web text", "synthetic")


def test_parquet_writer_captions_that_are_lists_stay(tmp_path: Path) -> None:
    source = write(
        tmp_path / "in.parquet",
        jpg=pa.array([jpeg()], pa.binary()),
        caption=pa.array([["one", "two"]]),
    )
    [annotated] = keep_all(source)
    assert annotated.texts[0].reason is Reason.NO_TEXT
    [row] = pq.read_table(written(tmp_path / "0.parquet", annotated)).to_pylist()
    assert json.loads(row["json"]) == {"caption": ["one", "two"]}


def test_parquet_writer_extension_that_is_not_utf8_is_written(tmp_path: Path) -> None:
    tar = write_tar(tmp_path / "0.tar", [("1.jpg", jpeg()), ("1.caf\udce9", b"x")])
    [sample] = read(tar)
    kept = Text(Source.SYNTHETIC, 0, "made", Score(0.9), Verdict.KEPT)
    annotated = Annotated(sample, (*sample.texts, kept), (kept,), Verdict.KEPT)
    [row] = pq.read_table(written(tmp_path / "0.parquet", annotated)).to_pylist()
    assert row["extras"] == [{"ext": "caf\\udce9", "data": b"x"}]


@pytest.mark.parametrize("is_reversed", [False, True])
def test_parquet_writer_shards_of_all_inputs_load_as_one(tmp_path: Path, is_reversed: bool) -> None:
    datasets = pytest.importorskip("datasets")
    jpgs = pa.array([jpeg()] * 2, pa.binary())
    source = write(tmp_path / "in.parquet", jpg=jpgs, key=["p0", "p1"], width=[16, 16])
    tar = annotate("t", metadata={"url": "http://x"}, extras={"cls": b"1"})
    shards = [
        written(tmp_path / "0.parquet", *keep_all(source)),
        written(tmp_path / "1.parquet", tar),
    ]
    rows = datasets.load_dataset(
        "parquet",
        data_files=[str(path) for path in (reversed(shards) if is_reversed else shards)],
        split="train",
        cache_dir=str(tmp_path / "cache"),
    )
    assert set(rows["key"]) == {"p0", "p1", "t"}
    assert {row["key"]: json.loads(row["json"]) for row in rows}["p1"]["width"] == 16


def test_parquet_writer_twice_gives_the_same_bytes(tmp_path: Path) -> None:
    samples = [annotate(str(i)) for i in range(300)]
    first = written(tmp_path / "0.parquet", *samples).read_bytes()
    assert written(tmp_path / "1.parquet", *samples).read_bytes() == first


def test_parquet_writer_row_groups_are_small(tmp_path: Path) -> None:
    path = written(tmp_path / "0.parquet", *[annotate(str(i)) for i in range(300)])
    metadata = pq.read_metadata(path)
    assert [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)] == [
        128,
        128,
        44,
    ]


def test_parquet_writer_row_groups_of_large_images_are_smaller(tmp_path: Path) -> None:
    large = bytes(50 * 2**20)
    path = written(tmp_path / "0.parquet", *[annotate(str(i), image=large) for i in range(4)])
    metadata = pq.read_metadata(path)
    assert [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)] == [3, 1]


def test_parquet_writer_without_images_leaves_texts(tmp_path: Path) -> None:
    path = written(tmp_path / "0.parquet", annotate("a"), images=False)
    assert pq.read_schema(path).names == ["key", "caption", "captions", "web_text", "json"]


def test_parquet_writer_of_nothing_has_the_same_schema(tmp_path: Path) -> None:
    empty = pq.read_table(written(tmp_path / "0.parquet"))
    assert empty.num_rows == 0
    assert empty.schema.equals(pq.read_schema(written(tmp_path / "1.parquet", annotate("a"))))


def test_parquet_writer_what_it_wrote_reads_back(tmp_path: Path) -> None:
    annotated = annotate("x/1")
    [sample] = read_rows(written(tmp_path / "0.parquet", annotated))
    assert (sample.key, sample.image, sample.image_ext) == ("x/1", annotated.sample.image, "jpg")
    assert sample.texts[0].content == "a picture of a dog"


def test_parquet_writer_output_loads_with_datasets_and_arrow(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    (tmp_path / "data").mkdir()
    for number in range(2):
        samples = [annotate(f"{number}{i}", extras={"cls": b"1"}) for i in range(3)]
        written(tmp_path / "data" / f"{number}.parquet", *samples[: 3 * (1 - number)])
    assert pyarrow.dataset.dataset(tmp_path / "data").count_rows() == 3
    rows = datasets.load_dataset(
        "parquet",
        data_files=str(tmp_path / "data" / "*.parquet"),
        split="train",
        cache_dir=str(tmp_path / "cache"),
    )
    assert rows["key"][:] == ["00", "01", "02"]
    assert rows[0]["image"].size == (16, 16)
    assert rows[0]["captions"][0]["source"] == "synthetic"
