"""A run from and to object stores that fail, and to other file systems."""

from __future__ import annotations

import itertools
import logging
import os
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import fsspec
import pytest
import s3fs

from capfilt.errors import CapfiltError, ConfigError
from capfilt.io import files
from capfilt.io.publish import Published, publishing
from capfilt.run.job import run
from capfilt.run.verify import verify
from capfilt.run.where import Where
from tests.faults.conftest import Undisturbed, command, complete
from tests.io.conftest import s3, s3_server  # noqa: F401
from tests.io.s3_proxy import FAULTS, Proxy
from tests.run.conftest import hashes

SECRET, KEY = "s3cr3t-of-the-tests/abcdefghijklmnopqrst", "AKIATESTSKEYOFTESTS0"


@pytest.fixture
def bad_s3(s3: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, Proxy]]:  # noqa: F811
    with Proxy(os.environ["AWS_ENDPOINT_URL_S3"]) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", proxy.url)
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", KEY)
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
        s3fs.S3FileSystem.clear_instance_cache()
        yield s3, proxy
        s3fs.S3FileSystem.clear_instance_cache()


def download(url: str, folder: Path) -> Path:
    for entry in files.find(url):
        file = folder / entry.name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(files.read_bytes(entry.url))
    return folder


def upload(folder: str, url: str) -> None:
    fs, path = fsspec.url_to_fs(url)
    for file in Path(folder).iterdir():
        fs.pipe_file(f"{path}/{file.name}", file.read_bytes())


def test_run_on_an_s3_that_fails_every_tenth_request_changes_nothing(
    undisturbed: Undisturbed,
    bad_s3: tuple[str, Proxy],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    bucket, proxy = bad_s3
    upload(undisturbed.web, f"{bucket}/web")
    proxy.requests.clear()
    proxy.share = 0.1
    where = Where(f"{bucket}/web", f"{bucket}/out", local=True)
    with caplog.at_level(logging.DEBUG):
        summary = run(undisturbed.config, where)
    proxy.share = 0.0
    assert summary.shards_failed == ()
    assert set(proxy.faults) == set(FAULTS), proxy.faults
    out = download(f"{bucket}/out", tmp_path / "out")
    assert hashes(out) == undisturbed.hashes
    assert verify(f"{bucket}/out").problems == ()
    for file in out.rglob("*"):
        if file.is_file():
            assert SECRET.encode() not in file.read_bytes()
            assert KEY.encode() not in file.read_bytes()
    assert {"capfilt", "s3fs", "aiobotocore.credentials"} <= {r.name for r in caplog.records}
    assert SECRET not in "".join(r.getMessage() for r in caplog.records)
    # The key's name is in the header of every request, which botocore shows at level DEBUG alone.
    shown = [r for r in caplog.records if r.name == "capfilt" or r.levelno > logging.DEBUG]
    assert KEY not in "".join(r.getMessage() for r in shown)


def listings(proxy: Proxy) -> Counter[str]:
    """How often each prefix was listed, with all that is below it."""
    found: Counter[str] = Counter()
    for path, times in proxy.answered.items():
        asked = parse_qs(urlsplit(path).query)
        if "list-type" in asked and asked.get("max-keys") != ["1"]:  # one is whether there is any
            found[asked["prefix"][0]] += times
    return found


def test_run_and_resume_list_each_prefix_once(
    undisturbed: Undisturbed, bad_s3: tuple[str, Proxy]
) -> None:
    bucket, proxy = bad_s3
    upload(undisturbed.web, f"{bucket}/web")
    where = Where(f"{bucket}/web", f"{bucket}/out", local=True)
    known = {"web/", "out/commits/", "out/data/", "out/ledger/"}
    run(undisturbed.config, where)
    found = listings(proxy)
    # What was put aside of each shard is looked for as it begins and removed as it ends.
    for shard in undisturbed.commits:
        assert found.pop(f"out/partial/{shard}/") == 2
    assert known <= found.keys() <= known | {"out/", "out/failures/"}
    assert max(found.values()) == 1
    proxy.answered.clear()
    again = run(undisturbed.config, where)
    assert (again.shards_done, again.shards_before) == (0, len(undisturbed.commits))
    found = listings(proxy)
    assert known <= found.keys() <= known | {"out/", "out/failures/"}
    assert max(found.values()) == 1


def test_credentials_are_in_nothing_that_a_command_prints(
    undisturbed: Undisturbed, bad_s3: tuple[str, Proxy]
) -> None:
    bucket, proxy = bad_s3
    shard = Path(undisturbed.web, "00000.tar").read_bytes()
    fs, path = fsspec.url_to_fs(f"{bucket}/web/00000.tar")
    fs.pipe_file(path, shard)
    proxy.share = 0.1
    arguments = command(replace(undisturbed, web=f"{bucket}/web"), Path("out"), "--local")
    arguments[arguments.index("out")] = f"{bucket}/out"
    logs = ["--debug", "--log-format", "json"]
    run_it = arguments.index("run")
    done = complete([*arguments[:run_it], *logs, *arguments[run_it:]])
    assert done.returncode == 0, done.stderr
    assert '"level": "debug"' in done.stderr
    for said in (done.stdout, done.stderr):
        assert SECRET not in said
        assert KEY not in said


def test_listing_a_prefix_takes_one_request(
    undisturbed: Undisturbed, bad_s3: tuple[str, Proxy]
) -> None:
    from capfilt.io.inputs import find_shards

    bucket, proxy = bad_s3
    upload(undisturbed.web, f"{bucket}/web")
    proxy.requests.clear()
    assert len(find_shards(f"{bucket}/web").shards) == len(undisturbed.commits)
    asked = [path for *_, path in proxy.requests if "delimiter" in path]
    listed = [path for path in asked if "web%2F" in path and "max-keys=1&" not in path]
    assert len(listed) == 1, asked


def test_s3_that_always_fails_is_given_up_after_waiting_longer_and_longer(
    bad_s3: tuple[str, Proxy],
) -> None:
    bucket, proxy = bad_s3
    upload_one(bucket)
    proxy.requests.clear()
    proxy.share = 1.0
    proxy_faults = Proxy.meet

    def down(self: Proxy, method: str, path: str) -> str | None:
        proxy_faults(self, method, path)
        return "503"

    proxy.meet = down.__get__(proxy)  # type: ignore[method-assign]
    with pytest.raises(CapfiltError, match="one") as raised:
        files.read_bytes(f"{bucket}/one.txt")
    assert SECRET not in str(raised.value)
    times = [at for at, *_ in proxy.requests]
    assert 4 <= len(times) <= 20
    waits = [later - earlier for earlier, later in itertools.pairwise(times)]
    assert max(waits) > 0.2
    assert len({round(wait, 3) for wait in waits}) > 2  # jitter


def upload_one(bucket: str) -> None:
    fs, path = fsspec.url_to_fs(f"{bucket}/one.txt")
    fs.pipe_file(path, b"one")


# s3fs sends what has 100 MB or more, as a shard of 10,000 images has, in parts of 50 MB.
_IN_PARTS = 110_000_000
_PUBLISH = """
import sys
from capfilt.io.publish import publishing
with publishing(sys.argv[1]) as publication, publication.path.open("wb") as file:
    for number in range(11):
        file.write(bytes([number]) * 10_000_000)
"""


def publish_in_parts(url: str) -> Published:
    with publishing(url) as publication, publication.path.open("wb") as file:
        for number in range(11):
            file.write(bytes([number]) * 10_000_000)
    return publication.published


def test_file_sent_in_parts_arrives_whole_from_parts_that_fail(
    bad_s3: tuple[str, Proxy],
) -> None:
    bucket, proxy = bad_s3
    proxy.share = 0.5
    published = publish_in_parts(f"{bucket}/out/data/00000.tar")
    proxy.share = 0.0
    tries = Counter(
        parse_qs(urlsplit(path).query).get("partNumber", [""])[0] for *_, path in proxy.requests
    )
    assert tries.keys() >= {"1", "2", "3"}
    assert sum(tries[part] for part in "123") > 3, tries  # some part was sent again
    assert files.digest(f"{bucket}/out/data/00000.tar") == (_IN_PARTS, published.sha256)
    assert unfinished_uploads(bucket) == []


@pytest.mark.slow
def test_upload_in_parts_of_a_killed_worker_is_not_there_and_is_made_again(
    bad_s3: tuple[str, Proxy], tmp_path: Path
) -> None:
    bucket, proxy = bad_s3
    url = f"{bucket}/out/data/00000.tar"
    proxy.share = 1.0
    held = threading.Event()

    def hold(self: Proxy, method: str, path: str) -> str | None:
        if "partNumber=3" in path:
            held.set()
            return "reset"  # until it is killed
        return None

    proxy.meet = hold.__get__(proxy)  # type: ignore[method-assign]
    process = subprocess.Popen([sys.executable, "-c", _PUBLISH, url], stderr=subprocess.DEVNULL)
    assert held.wait(120)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    assert files.info(url) is None
    assert unfinished_uploads(bucket) == ["out/data/00000.tar"]  # unseen, and paid for
    del proxy.meet
    proxy.share = 0.0
    published = publish_in_parts(url)
    assert files.digest(url) == (_IN_PARTS, published.sha256)


def unfinished_uploads(bucket: str) -> list[str]:
    import boto3

    name = bucket.removeprefix("s3://")
    answer = boto3.client("s3", region_name="us-east-1").list_multipart_uploads(Bucket=name)
    return [upload["Key"] for upload in answer.get("Uploads", [])]


def test_run_from_memory_and_to_memory_gives_the_same_bytes(
    undisturbed: Undisturbed, tmp_path: Path
) -> None:
    upload(undisturbed.web, f"memory://{tmp_path.name}/web")
    where = Where(f"memory://{tmp_path.name}/web", f"memory://{tmp_path.name}/out", local=True)
    run(undisturbed.config, where)
    assert hashes(download(where.output, tmp_path / "out")) == undisturbed.hashes


def test_url_with_a_password_is_refused_before_it_is_recorded(
    undisturbed: Undisturbed, tmp_path: Path
) -> None:
    urls = ("http://me:hush@127.0.0.1:1/web", "https://hush@127.0.0.1:1/web", "s3://k:hush@b/x")
    for name, url in zip(("input", "output", "human"), urls, strict=True):
        where = replace(Where(undisturbed.web, str(tmp_path / "out"), local=True), **{name: url})
        with pytest.raises(ConfigError, match="credentials") as raised:
            run(undisturbed.config, where)
        assert "hush" not in str(raised.value)
    assert not (tmp_path / "out").exists()
