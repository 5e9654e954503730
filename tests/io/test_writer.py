from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from capfilt.config import OutputConfig
from capfilt.errors import InputError
from capfilt.io.writer import count_samples, open_writer
from capfilt.shard import Form, InputShard
from tests.io.conftest import annotate, jpeg

TAR_INPUT = InputShard("0", Form.TAR, "not read", 0, "")


@pytest.mark.parametrize(("form", "ending"), [("webdataset", "tar"), ("parquet", "parquet")])
@pytest.mark.parametrize("images", [True, False])
@pytest.mark.parametrize("count", [0, 3])
def test_open_writer_writes_the_form_that_the_config_says(
    tmp_path: Path, form: str, ending: str, images: bool, count: int
) -> None:
    path = tmp_path / f"0.{ending}"
    output = OutputConfig(format=form, images=images)  # type: ignore[arg-type]
    with open_writer(path, output, TAR_INPUT) as writer:
        for i in range(count):
            writer.write(annotate(str(i), extras={"more.json": b"{}"}))
    assert count_samples(str(path)) == count
    assert (jpeg() in path.read_bytes()) is (images and count > 0)


def test_open_writer_parquet_input_keeps_its_columns(tmp_path: Path) -> None:
    source = tmp_path / "in.parquet"
    pq.write_table(pa.table({"jpg": pa.array([b"x"], pa.binary()), "n": [1]}), source)
    shard = InputShard("0", Form.PARQUET, str(source), 0, "")
    with open_writer(tmp_path / "0.parquet", OutputConfig(format="parquet"), shard):
        pass
    names = pq.read_schema(tmp_path / "0.parquet").names
    assert names == ["key", "image", "caption", "captions", "web_text", "n"]


@pytest.mark.parametrize("name", ["0.tar", "0.parquet"])
def test_count_samples_of_a_damaged_shard_is_an_error(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"x" * 600)
    with pytest.raises(InputError, match="damaged data shard"):
        count_samples(str(tmp_path / name))
