"""A run over texts that strangers have written with intent, and its report."""

from __future__ import annotations

import io
import shutil
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from capfilt.config import resolve
from capfilt.report.report import Report, report
from capfilt.run.job import run
from capfilt.run.where import Where
from tests import checkpoints
from tests.run.conftest import picture

HOSTILE = [
    "<script>document.title = 'ran'</script>",
    "<img src=http://example.com/a.png onerror=\"document.title='ran'\">",
    '"><svg onload="document.title=\'ran\'"></svg>',
    "<a href=\"javascript:document.title='ran'\">click</a>",
    "</bdi></li></ul></main><h1>Another page</h1>",
    "{{ 7 * 191 }} {% raw %} &lt;b&gt;",
    "\u202eright to left \u2066 and a bell \x07",
    "<style>body { display: none }</style>",
    "a dog dog runs",
    "a dog on the grass",
    "a dog on the grass",
    "",
]
KEY = "<i onmouseover=alert(1)>"


def write_hostile(folder: Path) -> None:
    """Two shards: hostile texts, a broken image, and a key that is markup."""
    folder.mkdir()
    for shard in range(2):
        with tarfile.open(folder / f"{shard:05d}.tar", "w") as tar:
            for i, text in enumerate(HOSTILE):
                key = f"{KEY}{shard}" if i == 5 else f"{shard}{i:04d}"
                image = b"<html>" if i == 3 else picture(100 * shard + i)
                for ending, content in (("jpg", image), ("txt", text.encode())):
                    member = tarfile.TarInfo(f"{key}.{ending}")
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))


@pytest.fixture(scope="session")
def hostile_run(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("hostile")
    write_hostile(folder / "web")
    config = resolve(
        options={
            "captioner": str(checkpoints.make_captioner(folder / "captioner")),
            "filter": str(checkpoints.make_filter(folder / "filter")),
        },
        overrides=["scoring.similarity=true", "captions.per_image=2"],
    )
    run(config, Where(input=str(folder / "web"), output=str(folder / "run"), local=True))
    return str(folder / "run")


SCARCE = {
    "one": ["captioner=none"],  # and so no synthetic caption
    "nothing kept": ["selection.min_match_prob=1"],
    "nothing scored": ["filter=none"],
    "nothing read": [],
}
TEXTS = ["כלב רץ על הדשא", "a long text, " * 300, "w" * 5000]


def scarce_run(folder: Path, kind: str) -> str:
    """A run that has little to report."""
    count = {"one": 1, "nothing read": 0}.get(kind, len(TEXTS))
    (folder / "web").mkdir(parents=True)
    with tarfile.open(folder / "web/00000.tar", "w") as tar:
        for number, text in enumerate(TEXTS[:count]):
            for ending, content in (("jpg", picture(number)), ("txt", text.encode())):
                member = tarfile.TarInfo(f"{number}.{ending}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    config = resolve(
        options={
            "captioner": str(checkpoints.make_captioner(folder / "captioner")),
            "filter": str(checkpoints.make_filter(folder / "filter")),
        },
        overrides=SCARCE[kind],
    )
    run(config, Where(input=str(folder / "web"), output=str(folder / "run"), local=True))
    return str(folder / "run")


@pytest.fixture(scope="session")
def written(hostile_run: str) -> Report:
    return report(hostile_run, price_per_hour=3.6)


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """Headless Chromium, if this machine has one (`make test` asks the system for it)."""
    sync_api = pytest.importorskip("playwright.sync_api")
    names = ("chromium", "chromium-browser", "google-chrome")
    found = next(filter(None, map(shutil.which, names)), None)
    if found is None:
        pytest.skip("no Chromium on this machine: `make browser` as root installs one")
    with sync_api.sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield opened
        opened.close()
