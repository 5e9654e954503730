"""The page as a browser shows it."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from capfilt.report.report import Report
from tests.report.conftest import HOSTILE
from tests.run.conftest import ledger_rows

AXE = Path(__file__).resolve().parents[2] / ".venv/browser/node_modules/axe-core/axe.min.js"


@pytest.fixture(scope="module", params=["light", "dark"])
def page(browser: Any, written: Report, request: pytest.FixtureRequest) -> Any:
    """The open page; `requests` are those that are no data URLs, `dialogs` its alerts."""
    opened = browser.new_page(color_scheme=request.param, viewport={"width": 1280, "height": 900})
    opened.requests, opened.faults = [], []
    opened.on("request", lambda r: r.url.startswith("data:") or opened.requests.append(r.url))
    opened.on("dialog", lambda dialog: opened.faults.append(dialog.message))
    opened.on("pageerror", lambda error: opened.faults.append(str(error)))
    opened.goto(f"file://{written.url}")
    yield opened
    opened.close()


def cells(page: Any, table: str) -> list[list[str]]:
    """The rows of a table, hidden ones too."""
    script = "t => [...t.tBodies[0].rows].map(r => [...r.cells].map(c => c.textContent))"
    return [[cell.strip() for cell in row] for row in page.eval_on_selector(f"#{table}", script)]


def test_figures_are_those_of_the_ledger(page: Any, hostile_run: str) -> None:
    rows = ledger_rows(hostile_run)
    verdicts = Counter((row["source"], row["verdict"]) for row in rows)
    for source, texts, *parts, share in cells(page, "texts-by-source"):
        expected = [verdicts[source, v] for v in ("kept", "dropped", "failed")]
        assert [int(part) for part in parts] == expected
        assert int(texts) == sum(expected)
        assert share == f"{100 * expected[0] / sum(expected[:2]):.1f} %"
    assert page.inner_text("#tile-images") == "24"
    kept_images = {row["key"] for row in rows if row["verdict"] == "kept"}
    assert page.inner_text("#tile-images-kept") == str(len(kept_images))
    reasons = Counter(row["reason"] for row in rows if row["verdict"] == "dropped")
    shown = {name.replace(" ", "_"): int(n) for name, n, _ in cells(page, "dropped")}
    assert shown == reasons
    failed = {row["key"] for row in rows if row["verdict"] == "failed"}
    without = len({row["key"] for row in rows} - kept_images - failed)
    assert without > 0
    assert [row[:2] for row in cells(page, "dropped-images")] == [["no text kept", str(without)]]
    assert cells(page, "failed") == [["image not an image", "2", "8.3 %"]]
    rejected = verdicts["synthetic", "dropped"] / 44
    assert page.inner_text("#tile-noise-ratio") == f"{100 * rejected:.1f} %"
    assert cells(page, "noise")[0][1] == f"{100 * rejected:.1f} %"


@pytest.mark.parametrize("score", ["match_prob", "similarity"])
def test_histogram_is_the_ledgers(page: Any, hostile_run: str, score: str) -> None:
    table = cells(page, f"hist-{score}-table")
    edges = [float(row[0]) for row in table]
    rows = [row for row in ledger_rows(hostile_run) if row[score] is not None]
    assert len(rows) > 50
    assert len(edges) > 10
    expected = Counter((max(e for e in edges if row[score] >= e), row["source"]) for row in rows)
    shown = Counter[tuple[float, str]]()
    for edge, (_, *counts) in zip(edges, table, strict=True):
        for source, count in zip(("web", "synthetic"), counts, strict=True):
            shown[edge, source] = int(count)
    assert +shown == expected


def test_curve_is_the_ledgers(page: Any, hostile_run: str) -> None:
    rows = [row for row in ledger_rows(hostile_run) if row["match_prob"] is not None]
    table = cells(page, "curve-table")
    assert "0.5, the threshold" in [row[0] for row in table]
    assert len(table) > 20
    for at, web, synthetic, images in table:
        least = float(at.removesuffix(", the threshold"))
        above = [row for row in rows if row["match_prob"] >= least]
        for source, shown in (("web", web), ("synthetic", synthetic)):
            share = sum(row["source"] == source for row in above) / sum(
                row["source"] == source for row in rows
            )
            assert float(shown.removesuffix(" %")) == pytest.approx(100 * share, abs=0.06)
        assert int(images) == len({row["key"] for row in above})


def test_texts_are_counted(page: Any) -> None:
    assert cells(page, "frequent-web")[0] == ["a dog on the grass", "4"]
    repetition = {row[0]: row[1:] for row in cells(page, "repetition")}
    assert repetition["web"] == ["9.1 %", "45.5 %", "0.0 %"]  # 2 of 22; 10 different ones


def test_strangers_texts_are_shown_and_do_nothing(page: Any) -> None:
    shown = page.eval_on_selector_all("bdi.text", "all => all.map(e => e.textContent)")
    for text in (*HOSTILE[:3], HOSTILE[4], HOSTILE[5], HOSTILE[7]):
        assert text in shown
    page.hover("main")
    assert page.title().startswith("capfilt report")
    assert page.faults == []
    assert [url for url in page.requests if not url.startswith("file:")] == []
    assert len(page.requests) == 1
    assert page.locator("script, iframe, object, form, [onerror], [onload]").count() == 0
    assert page.locator("h1").count() == 1
    assert page.locator("a[href^='javascript']").count() == 0
    assert page.locator("footer").bounding_box()["height"] > 0  # nobody's style hides the page
    assert "1337" not in page.inner_text("body")


def test_sheets_show_pictures_with_verdicts(page: Any, hostile_run: str) -> None:
    rejected = [
        row
        for row in ledger_rows(hostile_run)
        if row["source"] == "web" and row["reason"] == "below_min_match_prob"
    ]
    worst = min(rejected, key=lambda row: row["match_prob"])
    drops = page.locator("section:has(#sheet-web-drops) > ul > li")
    assert drops.count() == min(len(rejected), 12) > 4
    assert worst["key"] in drops.nth(0).locator(".key").inner_text()
    assert f"match {worst['match_prob']:.3f}" in drops.nth(0).inner_text()
    loaded = page.eval_on_selector_all("img", "all => all.filter(i => i.naturalWidth > 20).length")
    assert loaded == page.locator("img").count() > 30
    for card in page.locator("li.card:has(img)").all()[:8]:  # who does not see it hears the caption
        alt = card.locator("img").get_attribute("alt")
        texts = card.locator("li.kept bdi").all_inner_texts()
        assert alt in texts if texts else alt.endswith("no text kept")
    kept = page.locator("li.kept").first
    colour = kept.evaluate("e => getComputedStyle(e).borderLeftColor")
    other = page.locator("li.dropped").first.evaluate("e => getComputedStyle(e).borderLeftColor")
    assert colour != other


def test_page_can_be_used_by_keyboard(page: Any) -> None:
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "To the figures"
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.getAttribute('href')") == "#what"
    summary = page.locator("summary").first
    summary.focus()
    page.keyboard.press("Enter")
    assert page.locator("#hist-match_prob-table").is_visible()
    page.keyboard.press("Enter")


def test_page_does_not_scroll_sideways_on_a_phone(page: Any) -> None:
    page.set_viewport_size({"width": 360, "height": 800})
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    page.set_viewport_size({"width": 1280, "height": 900})


def test_axe_finds_no_serious_fault(page: Any) -> None:
    if not AXE.exists():
        pytest.skip(f"{AXE} is not there: `make browser` asks npm for it")
    page.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
    found = page.evaluate(AXE.read_text(encoding="utf-8") + "; axe.run()")
    faults = {fault["id"]: fault["nodes"][0]["html"] for fault in found["violations"]}
    assert faults == {}
    assert len(found["passes"]) > 20
