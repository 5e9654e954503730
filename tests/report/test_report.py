from __future__ import annotations

import base64
import io
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from capfilt.config import resolve
from capfilt.cut import CutConfig
from capfilt.errors import ConfigError, InputError
from capfilt.io.commits import list_commits
from capfilt.report.page import shown
from capfilt.report.report import Report, preset_of, report
from capfilt.report.sheets import make_sheets, thumbnail
from capfilt.report.speed import speed_of
from capfilt.schema import to_dict
from capfilt.select.origin import Origin
from capfilt.select.select import select
from tests.report.conftest import SCARCE, TEXTS, scarce_run


def test_report_is_one_small_file_with_pictures(written: Report) -> None:
    page = Path(written.url)
    assert page.name == "report.html"
    assert page.stat().st_size == written.size_bytes < 10**6
    assert written.pictures > 30
    assert "http" not in page.read_text().replace("http://example.com", "").replace(
        "http://www.w3.org/1999/xlink", ""
    ).replace("http-equiv", "")


def test_report_of_a_cut_says_so_and_finds_dropped_pictures(
    hostile_run: str, tmp_path: Path
) -> None:
    select(hostile_run, str(tmp_path / "cut"), CutConfig(min_match_prob=0.8))
    found = report(str(tmp_path / "cut"), target=str(tmp_path / "page.html"))
    text = (tmp_path / "page.html").read_text()
    assert "from that input&#39;s ledgers" in text or "from that input's ledgers" in text
    assert "min_match_prob 0.8" in text
    assert found.pictures > 30  # those that the cut dropped come from the run and its input
    assert found.figures.tally.read == 24


def test_report_without_the_input_shows_what_is_left(hostile_run: str, tmp_path: Path) -> None:
    shutil.copytree(hostile_run, tmp_path / "run")
    for file in (tmp_path / "run/commits").iterdir():
        commit = json.loads(file.read_text())
        commit["input"]["url"] = "/nowhere/00000.tar"
        del commit["telemetry"]["device"]  # as before it was noted
        file.write_text(json.dumps(commit))
    found = report(str(tmp_path / "run"))
    text = Path(found.url).read_text()
    assert "picture not at hand" in text
    assert 5 < found.pictures < 48
    assert "machine hours" not in text


@pytest.mark.parametrize("kind", SCARCE)
def test_report_of_little_says_what_is_not_there(kind: str, tmp_path: Path) -> None:
    found = report(scarce_run(tmp_path, kind), price_per_hour=1)
    text = Path(found.url).read_text()
    assert not re.search(r">\s*(nan|inf|None)\b[ %]*<", text)
    assert ("no text has a score" in text) == (kind in ("nothing scored", "nothing read"))
    assert found.pictures == {"one": 2, "nothing read": 0}.get(kind, found.pictures)
    assert len(text) < 200_000
    if kind == "one":
        assert TEXTS[0] in text
    elif kind != "nothing read":
        assert "a long text, a long text" in text
        assert TEXTS[1] not in text


@pytest.mark.parametrize("price", [-1.0, float("nan"), float("inf")])
def test_report_at_no_price_is_an_error(price: float, hostile_run: str) -> None:
    with pytest.raises(ConfigError, match="--gpu-hour-price must be 0 or more"):
        report(hostile_run, price_per_hour=price)


def test_report_of_the_same_ledgers_is_the_same_page(written: Report, tmp_path: Path) -> None:
    """In another process, too, where hashes of texts are others."""
    target = tmp_path / "page.html"
    origin = str(Path(written.url).parent)
    arguments = ["report", origin, "--out", str(target), "--gpu-hour-price", "3.6"]
    subprocess.run([sys.executable, "-m", "capfilt", *arguments], check=True)
    assert target.read_bytes() == Path(written.url).read_bytes()


def test_report_of_no_run_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no run here"):
        report(str(tmp_path))


def test_speed_counts_an_hour_of_a_machine_once(hostile_run: str) -> None:
    commits = list_commits(hostile_run)
    one, two = commits.values()
    spans = {"one": (100.0, 160.0), "two": (130.0, 200.0)}
    for name, commit in (("one", one), ("two", two)):
        start, end = spans[name]
        commit.telemetry.update(device="NVIDIA H200 GPU-1", ended=end, seconds=end - start)  # type: ignore[attr-defined]
    found = speed_of(commits)
    assert found is not None
    assert (found.busy_s, found.machines, found.kinds) == (100.0, 1, ("NVIDIA H200",))
    assert found.images_per_s == 24 / 100
    assert found.price_per_million(3.6) == pytest.approx(0.1 / 24 * 1e6)


def test_speed_counts_an_hour_of_a_host_once(hostile_run: str) -> None:
    """However many processes worked there, also after one was started again."""
    commits = list_commits(hostile_run)
    for commit, worker, end in zip(commits.values(), ("a:17", "a:18"), (160.0, 180.0), strict=True):
        commit.telemetry.update(device="CPU", worker=worker, ended=end, seconds=60.0)  # type: ignore[attr-defined]
    found = speed_of(commits)
    assert found is not None
    assert (found.busy_s, found.machines, found.unit) == (80.0, 1, "machine")
    next(iter(commits.values())).telemetry.update(worker="b:17")  # type: ignore[attr-defined]
    found = speed_of(commits)
    assert found is not None
    assert (found.busy_s, found.machines) == (120.0, 2)


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ([], "blip"),
        (["seed=7", "compute.batch_size=4"], "blip"),
        (["preset=blip2"], "blip2"),
        (["captions.method=beam"], "of its own"),
        (["captions.top_p=0.5"], "of its own"),
        (["selection.min_match_prob=0.95"], "of its own"),
        (["preset=blip2", "selection.top_k=1"], "of its own"),
        (["scoring.similarity=true", "selection.top_k=2"], "of its own"),
    ],
)
def test_preset_is_the_one_that_decides_alike(overrides: list[str], expected: str) -> None:
    config = resolve(options={"captioner": "c", "filter": "f"}, overrides=overrides)
    assert preset_of(to_dict(config)) == expected


def test_sheets_of_drops_show_what_a_score_has_dropped(hostile_run: str, tmp_path: Path) -> None:
    """Not a good web text that gave way to a synthetic caption."""
    select(hostile_run, str(tmp_path / "cut"), CutConfig(mix="synthetic-first"))
    sheets = make_sheets(Origin.open(str(tmp_path / "cut")), "match_prob", 0.5, count=50)
    reasons = {
        sheet.name: [{line.reason for line in card.lines} for card in sheet.cards]
        for sheet in sheets
    }
    assert any("not_in_mix" in of_card for of_card in reasons["random"])
    for name in ("web-drops", "synthetic-drops"):
        assert all("below_min_match_prob" in of_card for of_card in reasons[name])
        assert len(reasons[name]) > 3


def test_thumbnail_of_a_transparent_picture_is_on_white() -> None:
    encoded = io.BytesIO()
    Image.new("RGBA", (40, 40), (255, 0, 0, 0)).save(encoded, "PNG")
    found = thumbnail(encoded.getvalue())
    assert found is not None
    shown_as = Image.open(io.BytesIO(base64.b64decode(found.partition(",")[2])))
    assert np.asarray(shown_as).min() > 250


def test_report_with_endless_sheets_is_an_error(hostile_run: str) -> None:
    with pytest.raises(ConfigError, match="--samples must be 0 to 50, is 51"):
        report(hostile_run, samples=51)


def test_thumbnail_is_small_and_never_made_of_a_bomb() -> None:
    encoded = io.BytesIO()
    Image.new("L", (20_000, 10_000)).save(encoded, "PNG")
    assert thumbnail(encoded.getvalue()) is None
    assert thumbnail(b"<svg onload=alert(1)>") is None
    small = io.BytesIO()
    Image.new("RGB", (3000, 1000), "red").save(small, "JPEG")
    found = thumbnail(small.getvalue())
    assert found is not None
    assert found.startswith("data:image/jpeg;base64,/9j/")
    assert len(found) < 5000


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (None, "(no text)"),
        (" \n", "(empty)"),
        ("a\n\tb", "a b"),
        ("bell \x07", "bell \N{REPLACEMENT CHARACTER}"),
        ("\u202eover", "\N{REPLACEMENT CHARACTER}over"),
        ("x" * 500, "x" * 119 + "\N{HORIZONTAL ELLIPSIS}"),
    ],
)
def test_shown(text: str | None, expected: str) -> None:
    assert shown(text) == expected
