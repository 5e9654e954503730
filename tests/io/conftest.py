"""Small shards of every form, and a real S3 server."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from capfilt.config import ImageConfig
from capfilt.io.inputs import read_samples
from capfilt.record import Annotated, Sample, Score, Source, Text, Verdict
from capfilt.shard import Form, InputShard

LIMITS = ImageConfig()


def jpeg(colour: int = 0, side: int = 16) -> bytes:
    """A JPEG of one colour."""
    encoded = io.BytesIO()
    Image.new("RGB", (side, side), (colour % 256, 64, 128)).save(encoded, "JPEG")
    return encoded.getvalue()


def write_tar(path: Path, members: Iterable[tuple[str, bytes]]) -> Path:
    """Write a tar as Python's `tarfile` does."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, content in members:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


def sample_members(key: str, text: str = "a dog", **fields: Any) -> list[tuple[str, bytes]]:
    """A sample as img2dataset writes it."""
    tree = {"caption": text, "url": f"http://host.invalid/{key}", "key": key, **fields}
    return [
        (f"{key}.jpg", jpeg(len(key))),
        (f"{key}.json", json.dumps(tree).encode()),
        (f"{key}.txt", text.encode()),
    ]


def read(path: Path | str, form: Form = Form.TAR, **fields: Any) -> list[Sample]:
    """Every sample of a shard."""
    return list(read_samples(InputShard("0", form, str(path), 0, "", **fields), LIMITS))


def annotate(
    key: str,
    *,
    web: str | None = "the web text",
    synthetic: str = "a picture of a dog",
    metadata: Mapping[str, Any] | None = None,
    extras: Mapping[str, bytes] | None = None,
    score: Score | None = None,
    image: bytes | None = None,
) -> Annotated:
    """A sample that dropped its web text and kept a synthetic one."""
    dropped = Text(Source.WEB, 0, web, score or Score(0.1), Verdict.DROPPED)
    kept = Text(Source.SYNTHETIC, 0, synthetic, Score(0.9, None), Verdict.KEPT)
    sample = Sample(
        key, image or jpeg(), "jpg", (Text(Source.WEB, 0, web),), metadata or {}, extras or {}
    )
    return Annotated(sample, (dropped, kept), (kept,), Verdict.KEPT)


@pytest.fixture(scope="session")
def s3_server() -> Iterator[None]:
    """A loopback S3, known to s3fs by the environment as a user's own would be."""
    server = pytest.importorskip("moto.server").ThreadedMotoServer("127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as env:
        env.setenv("AWS_ENDPOINT_URL_S3", f"http://{host}:{port}")
        env.setenv("AWS_ACCESS_KEY_ID", "test")
        env.setenv("AWS_SECRET_ACCESS_KEY", "test")
        yield
    server.stop()


@pytest.fixture
def s3(s3_server: None, request: pytest.FixtureRequest) -> str:
    """The URL of a bucket of the test's own."""
    import boto3

    name = f"bucket-{abs(hash(request.node.nodeid))}"
    boto3.client("s3", region_name="us-east-1").create_bucket(Bucket=name)
    return f"s3://{name}"


@pytest.fixture(params=["local", "memory", "s3"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty folder, on each kind of file system."""
    if request.param == "local":
        return str(tmp_path / "place")
    if request.param == "memory":
        return f"memory://{tmp_path.name}"
    return str(request.getfixturevalue("s3"))
