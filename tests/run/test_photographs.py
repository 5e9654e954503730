"""Real photographs and web texts, through the real img2dataset, into consumers' own loaders."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.dataset
import pyarrow.parquet as pq
import pytest

from capfilt.config import RunConfig, resolve
from capfilt.ingest import Ingested, ingest
from capfilt.record import Verdict
from capfilt.run.job import run
from capfilt.run.summary import Summary
from capfilt.run.verify import verify
from capfilt.run.where import Where
from tests.run.conftest import ledger_rows
from tests.web_server import FAULTS, IMAGES, WebServer

SHARED = Path(__file__).resolve().parents[2].parent / "shared" / "data"
PHOTOGRAPHS = 150
AT_ONCE = FAULTS.keys() - {"slow", "dripping"}  # those that are not waited for

pytest.importorskip("img2dataset")
pytestmark = pytest.mark.skipif(
    not (SHARED / "flickr8k").is_dir(),
    reason="needs Flickr8k's photographs, which are not part of the repository",
)


@dataclass(frozen=True)
class Web:
    """What strangers offer, and what came of downloading it."""

    list_rows: list[dict[str, Any]]
    folder: Path
    ingested: Ingested


@pytest.fixture(scope="module")
def web(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Web]:
    """Photographs with human captions or web texts, among the faults a server has at once."""
    folder = tmp_path_factory.mktemp("photographs")
    lines = (SHARED / "flickr8k" / "captions.jsonl").read_text().splitlines()[:PHOTOGRAPHS]
    captions = [json.loads(line) for line in lines]
    web_texts = pq.read_table(SHARED / "web_text" / "laion_sample.parquet")["TEXT"].to_pylist()
    with WebServer() as server:
        rows = []
        for i, captioned in enumerate(captions):
            photograph = (SHARED / "flickr8k" / captioned["image"]).read_bytes()
            url = server.put(f"/{captioned['image']}", photograph)
            text = captioned["captions"][0] if i % 2 else web_texts[i]
            rows.append({"url": url, "caption": text, "orig_id": f"photo-{i}"})
        for name, make in IMAGES.items():
            rows.append({"url": server.put(f"/{name}", make()), "caption": name, "orig_id": name})
        for name in AT_ONCE:
            server.answers[f"/{name}"] = FAULTS[name]()
            rows.append({"url": server.url(f"/{name}"), "caption": name, "orig_id": name})
        rows.append({"url": server.url("/missing"), "caption": "404", "orig_id": "missing"})
        pq.write_table(pa.Table.from_pylist(rows), folder / "urls.parquet")
        ingested = ingest(
            str(folder / "urls.parquet"),
            str(folder / "web"),
            allow_private_hosts=True,
            samples_per_shard=64,
            processes=1,
            timeout_s=60,
            retries=0,
        )
        yield Web(rows, folder / "web", ingested)


@pytest.fixture(scope="module", params=["webdataset", "parquet"])
def dataset(
    request: pytest.FixtureRequest,
    web: Web,
    captioner: str,
    filter_: str,
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[Summary, Path, str]:
    out = tmp_path_factory.mktemp(request.param)
    config: RunConfig = resolve(
        options={"captioner": captioner, "filter": filter_, "output.format": request.param}
    )
    return run(config, Where(str(web.folder), str(out), local=True)), out, request.param


def test_every_row_of_the_list_is_in_the_ledger_or_among_img2datasets_failures(
    web: Web, dataset: tuple[Summary, Path, str]
) -> None:
    summary, out, _ = dataset
    table = pa.concat_tables([pq.read_table(file) for file in sorted(web.folder.glob("*.parquet"))])
    status = {row["orig_id"]: row for row in table.to_pylist()}
    assert status.keys() == {row["orig_id"] for row in web.list_rows}
    keys = {row["key"] for row in ledger_rows(out) if row["source"] == "web"}
    downloaded = {i: row["key"] for i, row in status.items() if row["status"] == "success"}
    assert keys == set(downloaded.values())
    assert len(keys) == summary.tally.read == web.ingested.succeeded
    failed = {i for i, row in status.items() if row["status"] != "success"}
    assert failed == {*AT_ONCE, "missing"}
    assert all(status[i]["error_message"] for i in failed)
    assert web.ingested.rows == len(web.list_rows) == len(keys) + len(failed)


def test_odd_images_pass_or_fail_by_name_and_counts_add_up(
    web: Web, dataset: tuple[Summary, Path, str]
) -> None:
    summary, out, _ = dataset
    reasons = {row["text"]: row["reason"] for row in ledger_rows(out) if row["verdict"] == "failed"}
    assert reasons == {"pixel.gif": "image_too_small"}
    tally = summary.tally
    assert tally.read == sum(tally.samples[verdict] for verdict in Verdict)
    assert tally.samples[Verdict.FAILED] == 1
    assert verify(str(out)).problems == ()


def test_web_texts_are_stored_raw(web: Web, dataset: tuple[Summary, Path, str]) -> None:
    _, out, _ = dataset
    texts = {row["text"] for row in ledger_rows(out) if row["source"] == "web"}
    downloaded = {row["caption"] for row in web.list_rows} - {*AT_ONCE, "404"}
    assert texts == downloaded
    assert any("." in text for text in texts), "normalised texts would have lost these"


def test_consumers_load_what_was_kept(web: Web, dataset: tuple[Summary, Path, str]) -> None:
    """webdataset, datasets and pyarrow see the same samples, with the original pictures."""
    summary, out, form = dataset
    kept = summary.tally.samples[Verdict.KEPT]
    assert kept > PHOTOGRAPHS / 4
    first: dict[str, str] = {}
    for row in ledger_rows(out):
        if row["verdict"] == "kept":
            first.setdefault(row["key"], row["text"])
    from datasets import load_dataset

    if form == "webdataset":
        import webdataset

        tars = sorted(map(str, (out / "data").glob("*.tar")))
        read = list(webdataset.WebDataset(tars, shardshuffle=False, empty_check=False))
        assert {s["__key__"]: s["txt"].decode() for s in read} == first
        original = {
            hashlib.sha256((SHARED / "flickr8k" / "images" / name).read_bytes()).hexdigest()
            for name in (row["url"].rpartition("/")[2] for row in web.list_rows[:PHOTOGRAPHS])
        }
        hashes = [hashlib.sha256(s["jpg"]).hexdigest() for s in read]
        assert sum(digest in original for digest in hashes) >= kept - len(IMAGES)
        found = load_dataset("webdataset", data_files=tars, split="train", streaming=True)
        loaded = {row["__key__"]: row["txt"] for row in found}
    else:
        files = sorted(map(str, (out / "data").glob("*.parquet")))
        table = pyarrow.dataset.dataset(files).to_table()
        keys, captions = (table[name].to_pylist() for name in ("key", "caption"))
        assert dict(zip(keys, captions, strict=True)) == first
        found = load_dataset("parquet", data_files=files, split="train", streaming=True)
        loaded = {}
        for row in found:
            loaded[row["key"]] = row["caption"]
            assert row["image"].size[0] >= 16  # a decoded picture, as viewers show it
    assert loaded == first
