from __future__ import annotations

import pytest

from capfilt.shard import Form, InputShard, place_of, root_of, shard_id


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


@pytest.mark.parametrize(
    ("url", "name"),
    [
        ("s3://bucket/web/00000.tar", "00000"),
        ("s3://bucket/00000/00000.tar", "00000"),
        ("s3://bucket/a//b/0.tar", "a/b/0"),
        ("/data/web/v1.0", "v1.0"),
    ],
)
def test_place_of_a_shard_leads_back_to_its_url(url: str, name: str) -> None:
    assert InputShard(name, Form.TAR, place_of(url, name), 0, "").url == url


def test_place_of_shards_beside_each_other_is_one_string() -> None:
    first, second = (place_of(f"s3://bucket/web/{name}.tar", name) for name in ("00000", "00001"))
    assert first is second
