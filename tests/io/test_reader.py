from __future__ import annotations

import tarfile
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from capfilt.config import ImageConfig
from capfilt.io.reader import read_samples
from capfilt.record import Sample
from capfilt.shard import Form, InputShard

IMAGE, COUNT = b"\xff\xd8\xff" + bytes(300_000), 30


def make(folder: Path, form: Form) -> InputShard:
    """A shard of samples with text, metadata, an extra where the form has them; one has no text."""
    members = [
        (f"{i:03d}.{ext}", content)
        for i in range(COUNT)
        for ext, content in (
            ("jpg", IMAGE),
            ("json", b'{"width": %d}' % i),
            ("seg.png", IMAGE),
            ("txt", b"text %d" % i),
        )
        if (i, ext) != (7, "txt")
    ]
    url = folder / {Form.TAR: "0.tar", Form.PARQUET: "0.parquet", Form.FILES: "0"}[form]
    if form is Form.TAR:
        for name, content in members:
            (folder / name).write_bytes(content)
        with tarfile.open(url, "w") as tar:
            for name, _ in members:
                tar.add(folder / name, name)
    elif form is Form.FILES:
        url.mkdir()
        for name, content in members:
            (url / name).write_bytes(content)
    else:
        failed = [None, *["success"] * (COUNT - 1)]
        columns = {
            "key": [f"{i:03d}" for i in range(COUNT)],
            "caption": [f"text {i}" for i in range(COUNT)],
            "width": list(range(COUNT)),
            "status": ["failed_to_download", *failed[1:]],
            "jpg": pa.array([None, *[IMAGE] * (COUNT - 1)], pa.binary()),
        }
        pq.write_table(pa.table(columns), url, compression="none", row_group_size=5)
    expected = COUNT - 1 if form is Form.PARQUET else COUNT
    return InputShard("0", form, str(url), 0, "", expected=expected)


def bytes_read() -> int:
    """By this process so far, from wherever."""
    return int(Path("/proc/self/io").read_text().split()[1])


@pytest.mark.parametrize("form", [Form.TAR, Form.PARQUET, Form.FILES])
def test_read_samples_without_images_are_the_same_and_cost_little(
    form: Form, tmp_path: Path
) -> None:
    shard = make(tmp_path, form)

    def without(sample: Sample) -> Sample:
        return replace(sample, image=None, extras={})

    whole = [without(sample) for sample in read_samples(shard, ImageConfig())]
    before = bytes_read()
    alone = list(read_samples(shard, ImageConfig(), images=False))
    assert bytes_read() - before < COUNT * len(IMAGE) / 4
    assert alone == whole
    assert alone[1].metadata["width"] == (2 if form is Form.PARQUET else 1)
