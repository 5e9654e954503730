"""What a demo prints: its steps, a sign of life while it works on a terminal, and its figures.

It is read in terminals of any width and in logs of any encoding: lines are broken between words,
and what only Unicode can draw is drawn otherwise where stdout has none.
"""

from __future__ import annotations

import logging
import sys
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from pathlib import Path

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from capfilt.demo.truth import CAPTION_FALSE, CAPTION_TRUE, Found

_KINDS = {  # of texts, as the table has them
    "true": "web: true",
    "lie": "web: one word wrong",
    "other": "web: another picture's",
    "junk": "web: junk",
    "empty": "web: empty",
    CAPTION_TRUE: "captioner's: true",
    CAPTION_FALSE: "captioner's: false",
}
_COLUMNS = 40  # the width of the table without its bars
_LONGEST_BAR = 20
_HEAD_OF_ASCII = box.Box("    \n    \n -- \n    \n    \n    \n    \n    \n", ascii=True)

log = logging.getLogger("capfilt")


class Screen:
    """A demo's stdout."""

    def __init__(self, *, quiet: bool) -> None:
        self._console = Console(highlight=False, quiet=quiet)
        self._is_unicode = self._console.encoding.startswith("utf")
        self._steps = 0

    @property
    def is_live(self) -> bool:
        """Whether somebody watches, so that a display may change in place."""
        return self._console.is_terminal and not self._console.quiet and sys.stderr.isatty()

    def step(self, text: str) -> None:
        """The next step: what was done."""
        self._steps += 1
        lines = textwrap.fill(
            text, self._console.width, initial_indent="   ", subsequent_indent="   ",
            break_long_words=False, break_on_hyphens=False,
        )  # fmt: skip
        self._console.print(f"[bold]{self._steps}[/bold]{escape(lines[1:])}", soft_wrap=True)

    @contextmanager
    def working(self, what: str, messages: Path) -> Iterator[None]:
        """Say on a terminal what is being done; what it says itself is left in a file."""
        with (
            messages.open("a", encoding="utf-8") as file,
            self._console.status(escape(what), spinner="line"),
            redirect_stderr(file),
        ):
            yield

    def show(self, found: Found, captions_true: float) -> None:
        """The texts by kind, and what they come to; `captions_true` is of greedy captions."""
        self._console.print()
        self._console.print(self._table(found))
        self._console.print()
        for sentence in _sentences(found, captions_true):
            self._console.print(sentence)

    def end(self, page: str) -> None:
        """Where to look and how to go on; not broken, since it is for copying."""
        self._console.print(
            f"\nLook at it:     {escape(page)}\n"
            "Your own data:  [bold]capfilt ingest URLS.parquet WEB\n"
            "                capfilt run WEB OUTPUT \\\n"
            "                  --captioner Salesforce/blip-image-captioning-base \\\n"
            "                  --filter Salesforce/blip-itm-base-coco[/bold]",
            soft_wrap=True,
        )

    def _table(self, found: Found) -> Table:
        head = box.SIMPLE_HEAD if self._is_unicode else _HEAD_OF_ASCII
        table = Table(box=head, pad_edge=False, show_edge=False)
        table.add_column("text", overflow="fold")
        table.add_column("texts", justify="right", no_wrap=True)
        table.add_column("kept", justify="right", no_wrap=True)
        table.add_column("", no_wrap=True)
        longest = max(0, min(_LONGEST_BAR, self._console.width - _COLUMNS))
        for kind, name in _KINDS.items():
            texts, kept = found.texts[kind], found.kept[kind]
            share = kept / texts if texts else 0.0
            bar = ("█" if self._is_unicode else "#") * round(longest * share)
            colour = "green" if kind in ("true", CAPTION_TRUE) else "red"
            table.add_row(name, str(texts), f"{share:.0%}", f"[{colour}]{bar}[/]")
        return table


@contextmanager
def warnings_only() -> Iterator[None]:
    """Leave out what the log says of progress, unless somebody has asked for all of it."""
    level = log.level
    if level == logging.INFO:
        log.setLevel(logging.WARNING)
    try:
        yield
    finally:
        log.setLevel(level)


def _sentences(found: Found, captions_true: float) -> Iterator[str]:
    yield (
        f"Of the texts kept [bold]{found.filter_precision:.1%}[/bold] are true, and "
        f"{found.filter_recall:.1%} of the true ones are kept."
    )
    yield (
        f"Of the captions {found.captions_written_true:.0%} were true when written (nucleus "
        f"sampling) and {found.captions_kept_true:.0%} of those kept; noise ratio "
        f"{found.noise_ratio:.0%}. Greedy ones: {captions_true:.0%}."
    )
    if found.itm_auc is not None:
        hard = found.itm_auc_hard_lies
        rest = "" if hard is None else f", from those with one word wrong {hard:.3f}"
        yield (
            f"The filter tells true from false web texts with an AUC of {found.itm_auc:.3f}{rest}."
        )
