from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.dataset
import pyarrow.parquet as pq
import pytest

from capfilt.errors import InputError
from capfilt.io import files, publish
from capfilt.io.ledger import SCHEMA, LedgerWriter, read_ledger, read_ledger_metadata
from capfilt.record import Annotated, Reason, Score, Source, Text, Verdict
from tests.io.conftest import annotate


def write(path: Path, *samples: Annotated) -> Path:
    with LedgerWriter(path, metadata={"seed": "7", "fingerprint": "abc"}) as ledger:
        for annotated in samples:
            ledger.write(annotated)
    return path


def rows(url: str | Path) -> list[dict[str, Any]]:
    return [row for batch in read_ledger(str(url)) for row in batch.to_pylist()]


def test_ledger_holds_every_text_with_its_verdict(tmp_path: Path) -> None:
    web = Text(Source.WEB, 0, "web", Score(0.25), Verdict.DROPPED, Reason.BELOW_MIN_MATCH_PROB)
    made = Text(Source.SYNTHETIC, 0, "made", Score(0.75, -0.5), Verdict.KEPT)
    sample = replace(annotate("x/1").sample, texts=(web,))
    found = rows(write(tmp_path / "0", Annotated(sample, (web, made), (made,), Verdict.KEPT)))
    assert found == [
        {
            "key": "x/1",
            "source": "web",
            "index": 0,
            "text": "web",
            "match_prob": 0.25,
            "similarity": None,
            "verdict": "dropped",
            "reason": "below_min_match_prob",
        },
        {
            "key": "x/1",
            "source": "synthetic",
            "index": 0,
            "text": "made",
            "match_prob": 0.75,
            "similarity": -0.5,
            "verdict": "kept",
            "reason": None,
        },
    ]


def test_ledger_failed_sample_has_its_texts_with_the_problem(tmp_path: Path) -> None:
    text = Text(Source.WEB, 0, "", reason=Reason.EMPTY_TEXT)
    sample = replace(annotate("1").sample, texts=(text,), problem=Reason.IMAGE_CORRUPT)
    [row] = rows(write(tmp_path / "0", Annotated(sample, (text,), (), Verdict.FAILED)))
    assert (row["text"], row["verdict"], row["reason"]) == ("", "failed", "image_corrupt")


def test_ledger_text_without_a_verdict_is_a_mistake(tmp_path: Path) -> None:
    text = Text(Source.WEB, 0, "x")
    annotated = Annotated(annotate("1").sample, (text,), (), Verdict.DROPPED)
    with (
        LedgerWriter(tmp_path / "0", metadata={}) as ledger,
        pytest.raises(ValueError, match="no verdict"),
    ):
        ledger.write(annotated)


def test_ledger_metadata_says_what_the_run_was(tmp_path: Path) -> None:
    found = read_ledger_metadata(str(write(tmp_path / "0")))
    assert found["seed"] == "7"
    assert found["fingerprint"] == "abc"


def test_ledger_twice_gives_the_same_bytes(tmp_path: Path) -> None:
    samples = [annotate(str(i)) for i in range(100)]
    first = write(tmp_path / "0", *samples).read_bytes()
    assert write(tmp_path / "1", *samples).read_bytes() == first


def test_ledger_row_groups_do_not_depend_on_the_samples_texts(tmp_path: Path) -> None:
    path = write(tmp_path / "0", *[annotate(str(i)) for i in range(9000)])
    metadata = pq.read_metadata(path)
    groups = [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)]
    assert groups == [8192, 8192, 1616]
    assert [row["key"] for row in rows(path)[::2]] == [str(i) for i in range(9000)]


def test_ledger_of_nothing_has_the_schema(tmp_path: Path) -> None:
    path = write(tmp_path / "0")
    assert rows(path) == []
    assert pq.read_schema(path).equals(SCHEMA)


def test_ledger_folder_opens_as_one_dataset(tmp_path: Path) -> None:
    write(tmp_path / "0.parquet", annotate("1"))
    write(tmp_path / "1.parquet")
    assert pyarrow.dataset.dataset(tmp_path).to_table().num_rows == 2


def test_read_ledger_from_any_file_system(place: str, tmp_path: Path) -> None:
    url = files.join(place, "0.parquet")
    publish.write_bytes(url, write(tmp_path / "0", annotate("1")).read_bytes())
    assert [row["key"] for row in rows(url)] == ["1", "1"]


def test_read_ledger_of_another_file_says_so(tmp_path: Path) -> None:
    pq.write_table(pa.table({"key": ["1"]}), tmp_path / "0.parquet")
    with pytest.raises(InputError, match=r"0\.parquet: not a ledger: no column index"):
        rows(tmp_path / "0.parquet")
    (tmp_path / "1.parquet").write_bytes(b"x")
    with pytest.raises(InputError, match=r"1\.parquet: not a readable ledger"):
        rows(tmp_path / "1.parquet")
