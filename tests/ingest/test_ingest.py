import contextlib
import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from capfilt.errors import CommitError, ConfigError, InputError
from capfilt.ingest import Ingested, ingest
from capfilt.ingest.stats import meaning, read_stats
from capfilt.io.inputs import find_shards
from tests.web_server import FAULTS, IMAGES, WebServer, encoded, picture

pytest.importorskip("img2dataset")


@pytest.fixture(scope="module", autouse=True)
def without_torch(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """img2dataset's processes do without torch, which they would import for seconds, for nothing.

    Those of the test that kills one import it.
    """
    folder = tmp_path_factory.mktemp("path")
    (folder / "torch.py").write_text("raise ModuleNotFoundError(name='torch')")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        yield


@dataclass
class Download:
    """One real download of every image and every fault, for many tests to look at."""

    web: WebServer
    urls: str
    output: Path
    result: Ingested

    def rows(self) -> dict[str, dict[str, Any]]:
        """Path on the server -> row of the shards' Parquet files."""
        files = sorted(self.output.glob("?????.parquet"))
        table = pa.concat_tables([pq.read_table(file) for file in files])
        return {row["url"].rpartition("/")[2]: row for row in table.to_pylist()}

    def members(self) -> dict[str, bytes]:
        found = {}
        for file in sorted(self.output.glob("*.tar")):
            with tarfile.open(file) as tar:
                for member in tar:
                    content = tar.extractfile(member)
                    assert content is not None
                    found[member.name] = content.read()
        return found

    def image(self, name: str) -> bytes:
        return self.members()[self.rows()[name]["key"] + ".jpg"]


@pytest.fixture(scope="module")
def download(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Download]:
    folder = tmp_path_factory.mktemp("ingest")
    with WebServer() as web:
        urls = [web.put(f"/{name}", make()) for name, make in IMAGES.items()]
        for name, make in FAULTS.items():
            web.answers[f"/{name}"] = make()
            urls.append(web.url(f"/{name}"))
        urls.append(web.url("/missing"))
        web.put("/k%C3%BCche.jpg", encoded(picture()))
        urls.append(web.url("/küche.jpg"))
        count = len(urls)
        columns = {
            "URL": urls,
            "TEXT": [None if i == 0 else f"text {i} ü\tx" for i in range(count)],
            "similarity": [i / 10 for i in range(count)],
            "width": [7] * count,  # a name that img2dataset keeps for itself
        }
        pq.write_table(pa.table(columns), folder / "list.parquet")
        result = ingest(
            str(folder / "list.parquet"),
            str(folder / "web"),
            allow_private_hosts=True,
            samples_per_shard=10,
            processes=1,
            threads=8,
            timeout_s=2,
            retries=0,
        )
        yield Download(web, str(folder / "list.parquet"), folder / "web", result)


def test_ingest_every_row_is_counted_once(download: Download) -> None:
    found = download.result
    assert found.rows == len(IMAGES) + len(FAULTS) + 2
    assert found.succeeded == len(IMAGES) + 1
    assert sum(found.failures.values()) == found.failed == len(FAULTS) + 1
    assert (found.shards, found.shards_failed) == (2, ())


def test_ingest_every_fault_has_its_name(download: Download) -> None:
    rows = download.rows()
    named = {name: meaning(rows[name]["error_message"]) for name in [*FAULTS, "missing"]}
    assert named == {
        "html": "Image decoding error",
        "truncated": "Image decoding error",
        "empty": "empty response",
        "short": "connection ended before the image did",
        "slow": "timed out",
        "dripping": "timed out",
        "huge": "image has too many pixels",
        "gone": "HTTP Error 410",
        "robots": "Use of image disallowed by X-Robots-Tag directive",
        "missing": "HTTP Error 404",
    }
    assert download.result.failures["timed out"] == 2


def test_ingest_small_jpeg_keeps_its_bytes(download: Download) -> None:
    assert download.image("plain.jpg") == IMAGES["plain.jpg"]()


def test_ingest_large_image_keeps_its_shape_and_shorter_side(download: Download) -> None:
    image = Image.open(io.BytesIO(download.image("large.jpg")))
    assert (image.width, image.height) == (480, 384)  # of 1000 x 800
    row = download.rows()["large.jpg"]
    assert (row["original_width"], row["original_height"]) == (1000, 800)


def test_ingest_other_formats_become_jpeg(download: Download) -> None:
    image = Image.open(io.BytesIO(download.image("palette.png")))
    assert (image.format, image.mode) == ("JPEG", "RGB")
    first = np.asarray(Image.open(io.BytesIO(download.image("animated.gif"))))[0, 0]
    assert np.abs(first.astype(int) - [255, 0, 0]).max() < 30  # the red frame comes first


def test_ingest_non_ascii_url_is_fetched(download: Download) -> None:
    assert download.rows()["küche.jpg"]["status"] == "success"


def test_ingest_texts_and_other_columns_pass_through(download: Download) -> None:
    members, row = download.members(), download.rows()["large.jpg"]
    metadata = json.loads(members[row["key"] + ".json"])
    assert metadata["caption"] == members[row["key"] + ".txt"].decode() == "text 1 ü\tx"
    assert metadata["similarity"] == 0.1
    assert metadata["width"] == 480
    assert len(metadata["sha256"]) == 64


def test_ingest_again_redoes_only_what_is_missing_and_refuses_loopback(download: Download) -> None:
    # Last of the file's tests on this download: it changes it.
    kept = (download.output / "00000.tar").stat().st_mtime_ns
    before = read_stats(str(download.output))
    download.web.requests.clear()
    (download.output / "00001_stats.json").unlink()
    found = ingest(
        download.urls, str(download.output), samples_per_shard=10, processes=1, threads=8
    )
    assert (download.output / "00000.tar").stat().st_mtime_ns == kept
    assert (found.shards, found.rows) == (before.shards, before.rows)
    assert found.failures["refused: not a public address"] == found.rows - 10
    assert download.web.requests == []


def test_ingest_of_another_list_or_other_settings_is_refused(download: Download) -> None:
    output = str(download.output)
    other = download.output.parent / "other.csv"
    other.write_text("caption,url\na,http://x.invalid/y\n")
    with pytest.raises(ConfigError, match=r"has shards of another list than .*other\.csv"):
        ingest(str(other), output, samples_per_shard=10)
    with pytest.raises(ConfigError, match="of samples_per_shard 10, not 20; give another output"):
        ingest(download.urls, output, samples_per_shard=20)
    shards = [shard.id for shard in find_shards(output).shards]
    assert shards == ["00000", "00001"]


def test_ingest_same_list_elsewhere_goes_on_and_nothing_done_is_no_claim(
    tmp_path: Path, web: WebServer
) -> None:
    content = "".join(f"a,{web.put(f'/{i}.jpg', encoded(picture()))}\n" for i in range(4))
    for name in ("one", "two", "three"):
        (tmp_path / f"{name}.csv").write_text("caption,url\n" + content)
    (tmp_path / "three.csv").write_text("text,url\n" + content)

    def go(name: str) -> Ingested:
        return ingest(
            str(tmp_path / f"{name}.csv"),
            str(tmp_path / "web"),
            allow_private_hosts=True,
            samples_per_shard=2,
            processes=1,
            threads=2,
        )

    record = tmp_path / "web" / "_capfilt" / "ingest.json"
    record.parent.mkdir(parents=True)
    record.write_text("{}")  # of a call that ended before its first shard
    assert go("one").succeeded == 4
    (tmp_path / "web" / "00001_stats.json").unlink()
    web.requests.clear()
    assert go("two").succeeded == 4
    assert len(web.requests) == 2
    with pytest.raises(ConfigError, match="another list"):
        go("three")


def test_ingest_into_a_place_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_text("caption,url\na,http://x.invalid/y\n")
    (tmp_path / "file").touch()
    with pytest.raises(CommitError, match=r"file/web") as caught:
        ingest(str(tmp_path / "list.csv"), str(tmp_path / "file" / "web"))
    assert "\n" not in str(caught.value)


def test_ingest_of_a_list_that_is_missing_makes_nothing(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"list\.csv: no such file"):
        ingest(str(tmp_path / "list.csv"), str(tmp_path / "web"))
    assert not (tmp_path / "web").exists()


def test_ingest_hosts_allowed_by_name_and_nothing_else(tmp_path: Path, web: WebServer) -> None:
    good = web.put("/good.jpg", encoded(picture()))
    named = web.put("/good.jpg", encoded(picture())).replace("127.0.0.1", "localhost")
    hop = web.redirect("/hop", named)
    secret = tmp_path / "secret.jpg"
    secret.write_bytes(encoded(picture()))
    urls = [good, named, hop, secret.as_uri(), web.url("/good.jpg", "2130706433")]
    lines = ["caption,url", *(f"a picture,{url}" for url in urls)]
    (tmp_path / "list.csv").write_text("\n".join(lines) + "\n")
    found = ingest(
        str(tmp_path / "list.csv"),
        str(tmp_path / "web"),
        allow_private_hosts=["127.0.0.1"],
        format="parquet",
        processes=1,
        threads=2,
        retries=0,
    )
    rows = pq.read_table(tmp_path / "web" / "00000.parquet").to_pylist()
    status = {row["url"]: row["error_message"] for row in rows}
    assert found.succeeded == 1
    assert status[good] is None
    assert status[named] == (
        "refused: 127.0.0.1 (address of localhost) is not a public address; "
        "allow_private_hosts fetches it"
    )
    assert status[hop] == status[named]
    assert status[secret.as_uri()] == "refused: file: URLs are not fetched, only http and https"
    assert found.failures == {"refused: not a public address": 3, "refused: not http or https": 1}
    assert sorted(web.requests) == ["/good.jpg", "/hop"]


def test_ingest_broken_list_is_an_input_error_and_the_rest_is_for_the_log(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "list.csv").write_text("caption,url\na,b\na,b,c,d\n")
    log = tmp_path / "log"
    with pytest.raises(InputError, match=rf"Expected 2 columns.* \({log} says more\)"):
        ingest(str(tmp_path / "list.csv"), str(tmp_path / "web"), processes=1, log_file=log)
    assert "Traceback" in log.read_text()
    assert "Traceback" not in capfd.readouterr().err


def test_ingest_without_img2dataset_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "img2dataset", None)
    with pytest.raises(ConfigError, match=r"pip install 'capfilt\[ingest\]'"):
        ingest("list.csv", str(tmp_path))


def test_ingest_killed_takes_its_processes_along_and_the_next_finishes(
    tmp_path: Path, web: WebServer
) -> None:
    web.put("/a.jpg", encoded(picture()))
    web.put("/b.jpg", encoded(picture()), wait_s=60)
    lines = [f"a picture,{web.url(path)}" for path in ("/a.jpg", "/a.jpg", "/b.jpg", "/b.jpg")]
    (tmp_path / "list.csv").write_text("\n".join(["caption,url", *lines]) + "\n")
    output = tmp_path / "web"
    arguments = (str(tmp_path / "list.csv"), str(output))
    options = {"samples_per_shard": 2, "processes": 1, "threads": 2, "retries": 0}
    script = (
        "from capfilt.ingest import ingest\n"
        f"ingest(*{arguments!r}, allow_private_hosts=True, **{options!r})\n"
    )
    group = subprocess.Popen([sys.executable, "-c", script], start_new_session=True)
    try:
        wait_until(lambda: (output / "00000_stats.json").exists() and "/b.jpg" in web.requests)
        assert len(processes_of_session(group.pid)) > 3
        group.kill()  # the caller alone, as a machine's memory guard would
        group.wait()
        wait_until(lambda: not processes_of_session(group.pid))
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(group.pid, signal.SIGKILL)
    assert not (output / "00001_stats.json").exists()
    web.put("/b.jpg", encoded(picture()))
    web.requests.clear()
    found = ingest(*arguments, allow_private_hosts=True, **options)  # type: ignore[arg-type]
    assert (found.shards, found.succeeded) == (2, 4)
    assert web.requests == ["/b.jpg", "/b.jpg"]


def wait_until(condition: Callable[[], bool], within_s: float = 180) -> None:
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline, "it did not come about in time"
        time.sleep(0.1)


def processes_of_session(session: int) -> list[str]:
    """Those that live; one that has ended may wait long for somebody to hear of it."""
    listed = subprocess.run(["ps", "-o", "stat=,args=", "-s", str(session)], capture_output=True)
    return [line for line in listed.stdout.decode().splitlines() if not line.startswith("Z")]


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"format": "tfrecord"}, "format"),
        ({"threads": 0}, "threads"),
        ({"samples_per_shard": 1}, "samples_per_shard"),
        ({"retries": -1}, "retries"),
    ],
)
def test_ingest_value_out_of_range_is_a_config_error(
    tmp_path: Path, options: dict[str, Any], named: str
) -> None:
    with pytest.raises(ConfigError, match=named):
        ingest("list.csv", str(tmp_path), **options)


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ("<urlopen error timed out>", "timed out"),
        ("The read operation timed out", "timed out"),
        ("HTTP Error 302: Found - Redirection to url 'file:///x' is not allowed",
         "refused: not http or https"),
        ("HTTP Error 503: Service\n Unavailable", "HTTP Error 503"),
        ("<urlopen error [Errno -2] Name or service not known>",
         "[Errno -2] Name or service not known"),
        ("x" * 500, "x" * 100),
    ],
)  # fmt: skip
def test_meaning_groups_messages(message: str, expected: str) -> None:
    assert meaning(message) == expected


def test_read_stats_adds_shards_and_names_what_is_uncounted(tmp_path: Path) -> None:
    stats = {
        "count": 5,
        "successes": 2,
        "status_dict": {"success": 2, "timed out": 1, "x timed out": 1},
    }
    for shard in ("00000", "00001"):
        (tmp_path / f"{shard}_stats.json").write_text(json.dumps(stats))
    found = read_stats(str(tmp_path))
    assert (found.shards, found.rows, found.succeeded, found.failed) == (2, 10, 4, 6)
    assert found.failures == {"timed out": 4, "no message": 2}


def test_read_stats_of_another_json_is_an_input_error(tmp_path: Path) -> None:
    (tmp_path / "00000_stats.json").write_text("[]")
    with pytest.raises(InputError, match="00000_stats"):
        read_stats(str(tmp_path))
