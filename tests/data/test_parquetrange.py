from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from capfilt.config import ImageConfig
from capfilt.data.config import DatasetConfig
from capfilt.data.parquetrange import ParquetRange
from capfilt.data.sources import open_datasets
from capfilt.errors import InputError
from capfilt.io.reader import read_samples
from capfilt.shard import Form, InputShard
from tests.data.conftest import jpeg


def write(path: Path, *, keys: bool = True) -> InputShard:
    """What img2dataset writes: 50 rows in groups of 8, every third a failure without an image."""
    rows = [
        {
            "caption": f"text {n}",
            "status": "failed_to_download" if n % 3 == 0 else "success",
            "jpg": None if n % 3 == 0 else jpeg(n),
            "url": "http://x.invalid",
            **({"key": f"{n:05d}"} if keys else {}),
        }
        for n in range(50)
    ]
    pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=8)
    return InputShard("0", Form.PARQUET, str(path), path.stat().st_size, "")


def test_read_gives_what_a_stream_gives(tmp_path: Path) -> None:
    shard = write(tmp_path / "0.parquet")
    whole = {sample.key: sample for sample in read_samples(shard, ImageConfig())}
    reader = ParquetRange(shard, ImageConfig())
    for numbers in ([1, 2, 4, 5], [7, 8, 49], [16], list(reversed([40, 38, 37]))):
        found = reader.read(numbers)
        assert [sample.key for sample in found] == [f"{n:05d}" for n in numbers]
        for sample in found:
            assert sample.image == whole[sample.key].image
            assert sample.texts == whole[sample.key].texts


def test_rows_without_keys_are_called_by_their_number(tmp_path: Path) -> None:
    reader = ParquetRange(write(tmp_path / "0.parquet", keys=False), ImageConfig())
    assert [s.key for s in reader.read([10, 11, 20])] == ["000000010", "000000011", "000000020"]


def test_failures_of_img2dataset_are_no_examples(tmp_path: Path) -> None:
    write(tmp_path / "0.parquet")
    [dataset] = open_datasets([DatasetConfig(str(tmp_path))])
    assert dataset.stock.size == 33
    assert dataset.stock.grain == 8
    assert list(dataset.numbers(0, 0, 4)) == [1, 2, 4, 5]


def test_a_file_that_is_shorter_than_before_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"0\.parquet: has fewer rows than were counted"):
        ParquetRange(write(tmp_path / "0.parquet"), ImageConfig()).read([49, 50])


def test_a_damaged_file_is_an_error(tmp_path: Path) -> None:
    shard = write(tmp_path / "0.parquet")
    Path(shard.url).write_bytes(Path(shard.url).read_bytes()[:-30])
    with pytest.raises(InputError, match="not a readable Parquet file"):
        ParquetRange(shard, ImageConfig()).usable()
