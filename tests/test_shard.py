from __future__ import annotations

import pytest

from capfilt.shard import root_of, shard_id


@pytest.mark.parametrize(
    ("pattern", "root"),
    [
        ("s3://bucket/web", "s3://bucket/web"),
        ("s3://bucket/web/", "s3://bucket/web"),
        ("s3://bucket/web/*.tar", "s3://bucket/web"),
        ("s3://bucket/{a,b}/{00000..00009}.tar", "s3://bucket"),
        ("/data/web/0000?.tar", "/data/web"),
        ("*.tar", "."),
    ],
)
def test_root_of_is_the_folder_above_the_first_wildcard(pattern: str, root: str) -> None:
    assert root_of(pattern) == root


def test_shard_id_depends_on_the_name_below_the_root_only() -> None:
    assert shard_id("s3://bucket/web/00000.tar", "s3://bucket/web") == "00000"
    assert shard_id("s3://bucket/a/00000.tar", "s3://bucket") == "a/00000"
    assert shard_id("/data/web/00000", "/data/web") == "00000"
