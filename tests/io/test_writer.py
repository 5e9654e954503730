from __future__ import annotations

from pathlib import Path

import pytest

from capfilt.config import OutputConfig
from capfilt.errors import InputError
from capfilt.io.writer import count_samples, open_writer
from tests.io.conftest import annotate, jpeg


@pytest.mark.parametrize(("form", "ending"), [("webdataset", "tar"), ("parquet", "parquet")])
@pytest.mark.parametrize("images", [True, False])
@pytest.mark.parametrize("count", [0, 3])
def test_open_writer_writes_the_form_that_the_config_says(
    tmp_path: Path, form: str, ending: str, images: bool, count: int
) -> None:
    path = tmp_path / f"0.{ending}"
    output = OutputConfig(format=form, images=images)  # type: ignore[arg-type]
    with open_writer(path, output) as writer:
        for i in range(count):
            writer.write(annotate(str(i), extras={"more.json": b"{}"}))
    assert count_samples(str(path)) == count
    assert (jpeg() in path.read_bytes()) is (images and count > 0)


@pytest.mark.parametrize("name", ["0.tar", "0.parquet"])
def test_count_samples_of_a_damaged_shard_is_an_error(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"x" * 600)
    with pytest.raises(InputError, match="damaged data shard"):
        count_samples(str(tmp_path / name))
