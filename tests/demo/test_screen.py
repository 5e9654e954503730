import contextlib
import io
import logging
import sys
from pathlib import Path

import pytest

from capfilt.demo.screen import Screen, warnings_only
from capfilt.demo.truth import CAPTION_FALSE, CAPTION_TRUE, Found

TEXTS = {"true": 105, "lie": 60, "other": 60, "junk": 60, "empty": 15}
KEPT = {"true": 84, "lie": 12, "other": 1, "junk": 0, "empty": 0}
FOUND = Found(
    images=300,
    texts=TEXTS | {CAPTION_TRUE: 270, CAPTION_FALSE: 30},
    kept=KEPT | {CAPTION_TRUE: 270, CAPTION_FALSE: 15},
    itm_auc=0.9801,
    itm_auc_hard_lies=0.9,
    noise_ratio=0.05,
    captions_written_true=0.9,
    captions_kept_true=0.947,
    filter_precision=0.926,
    filter_recall=0.944,
)
STEP = (
    "Fetched 300 pictures from a web of one machine, three of them broken on purpose (2 of them)."
)


def shown(found: Found, *, columns: int, encoding: str = "utf-8") -> list[str]:
    """The lines that a terminal of so many columns and this encoding gets."""
    written = io.BytesIO()
    with pytest.MonkeyPatch.context() as patch, io.TextIOWrapper(written, encoding) as stdout:
        patch.setenv("COLUMNS", str(columns))
        patch.setenv("TERM", "dumb")
        with contextlib.redirect_stdout(stdout):
            screen = Screen(quiet=False)
            screen.step(STEP)
            screen.show(found, 0.942)
            screen.end("/a/folder/of/somebody/with/a/name/longer/than/forty/columns/report.html")
        stdout.flush()
        return written.getvalue().decode(encoding).splitlines()


@pytest.mark.parametrize("encoding", ["utf-8", "latin-1", "ascii"])
@pytest.mark.parametrize("columns", [40, 60, 80, 200])
def test_screen_shows_every_figure_whole(columns: int, encoding: str) -> None:
    lines = shown(FOUND, columns=columns, encoding=encoding)
    rows = [line.split() for line in lines]
    assert ["web:", "another", "picture's", "60", "2%"] in [row[:5] for row in rows]
    assert ["captioner's:", "true", "270", "100%"] in [row[:4] for row in rows]
    text = " ".join(" ".join(lines).split())
    assert f"1 {STEP}" in text
    assert "92.6% are true, and 94.4% of the true ones are kept" in text
    assert "an AUC of 0.980, from those with one word wrong 0.900." in text
    end = next(at for at, line in enumerate(lines) if line.startswith("Look at it:"))
    assert all(len(line) <= columns for line in lines[:end])
    assert lines[end].endswith("/columns/report.html")  # in one piece, for copying
    assert lines[end + 1].endswith("capfilt ingest URLS.parquet WEB")
    assert lines[end + 2].endswith("capfilt run WEB OUTPUT \\")


def test_screen_bars_are_as_long_as_the_share_that_was_kept() -> None:
    def bars(columns: int, encoding: str, sign: str) -> list[int]:
        lines = shown(FOUND, columns=columns, encoding=encoding)
        return [line.count(sign) for line in lines if line.startswith(("web:", "captioner's:"))]

    whole = [16, 4, 0, 0, 0, 20, 10]
    assert bars(80, "utf-8", "█") == bars(80, "ascii", "#") == whole
    assert bars(50, "utf-8", "█") == [length // 2 for length in whole]
    assert bars(40, "utf-8", "█") == [0] * 7


def test_screen_of_few_pictures_leaves_out_what_there_is_not() -> None:
    def text(auc: float | None, hard: float | None) -> str:
        found = {**vars(FOUND), "itm_auc": auc, "itm_auc_hard_lies": hard}
        return " ".join(shown(Found(**found), columns=200))

    assert "AUC of 0.900." in text(0.9, None)
    assert "AUC" not in text(None, None)


def test_screen_keeps_what_others_say_for_a_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with Screen(quiet=False).working("something", tmp_path / "log"):
        sys.stderr.write("a library's news\n")
    printed = capsys.readouterr()
    assert (printed.out.strip(), printed.err) == ("", "")
    assert (tmp_path / "log").read_text() == "a library's news\n"


@pytest.mark.parametrize(
    ("wanted", "within"), [(logging.INFO, logging.WARNING), (logging.DEBUG, logging.DEBUG)]
)
def test_warnings_only_leaves_a_log_that_is_to_be_whole(wanted: int, within: int) -> None:
    log = logging.getLogger("capfilt")
    before = log.level
    log.setLevel(wanted)
    try:
        with warnings_only():
            assert log.level == within
        assert log.level == wanted
    finally:
        log.setLevel(before)
