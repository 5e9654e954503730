"""What several results look like: facts about a place, figures in columns, counts."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.markup import escape as without_markup
from rich.table import Table

from capfilt.record import Source, Verdict
from capfilt.tally import Tally
from capfilt.text import printable

# Source: BLIP, arXiv:2201.12086, Table 2.
PAPER_NOISE_RATIO = "BLIP: 25 % with nucleus sampling, 19 % with beams"


def escape(text: str) -> str:
    """A stranger's words: neither rich's markup in them is obeyed nor the terminal's."""
    return without_markup(printable(text))


def figures(*columns: str) -> Table:
    """An empty table whose first column is text where it has no title, all others numbers."""
    table = Table(box=None, padding=(0, 2, 0, 0))
    for name in columns:
        table.add_column(name, justify="right" if name else "left")
    return table


def page(
    title: str,
    facts: dict[str, str],
    tally: Tally,
    noise_ratio: float | None,
    lines: list[str],
) -> RenderableType:
    """An OUTPUT: facts and counts, then lines of their own."""
    return described("output", title, facts | counts(tally, noise_ratio), lines)


def described(
    name: str, place: str, facts: dict[str, str], lines: Sequence[str] = ()
) -> RenderableType:
    """Facts about a place, then lines of their own."""
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim")
    table.add_column(overflow="fold")
    for title, value in ({name: place} | facts).items():
        table.add_row(title, escape(value))
    return Group(table, *map(escape, lines))


def counts(tally: Tally, noise_ratio: float | None) -> dict[str, str]:
    """Images and texts by what became of them, and why."""
    samples = tally.samples
    facts = {
        "images": f"{tally.read:,} read = {samples[Verdict.KEPT]:,} kept "
        f"+ {samples[Verdict.DROPPED]:,} dropped + {samples[Verdict.FAILED]:,} failed"
    }
    for source in Source:
        share = tally.kept_share(source)
        if share is not None:
            kept = tally.texts[source, Verdict.KEPT]
            facts[f"{source} texts"] = f"{kept:,} of {tally.judged(source):,} kept ({share:.1%})"
    if noise_ratio is not None:
        facts["noise ratio"] = f"{noise_ratio:.1%} ({PAPER_NOISE_RATIO})"
    for title, reasons in (
        ("texts dropped", tally.dropped_texts),
        ("images dropped", tally.dropped_samples),
        ("images failed", tally.failed_samples),
    ):
        if reasons:
            facts[title] = ", ".join(f"{reason} {n:,}" for reason, n in reasons.most_common())
    return facts
