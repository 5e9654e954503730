"""The page: what the figures are called, and how they are written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files as resources
from typing import Any

import numpy as np

from capfilt import __version__
from capfilt.cut import SOURCES, ScoreName
from capfilt.record import Source, Verdict
from capfilt.report.charts import Chart, edges
from capfilt.report.figures import MOST_WORDS, Figures

BARS = 50  # of a histogram of scores, at most
PLACES = 100  # of the curve, at most, and one
TITLES: Mapping[ScoreName, str] = {"match_prob": "match probability", "similarity": "similarity"}
# Source: BLIP, arXiv:2201.12086, Table 2 and section 4.2.
PAPER = (
    ("BLIP, nucleus sampling", "25 %"),
    ("BLIP, beam search", "19 %"),
    ("BLIP, captioner and filter share parameters", "8 %"),
)
Rows = list[tuple[Any, ...]]


@dataclass(frozen=True)
class Drawn:
    """A chart with its numbers as a table."""

    name: str
    title: str
    note: str
    svg: Any
    head: Sequence[str]
    rows: Rows


@dataclass(frozen=True)
class Ranking:
    """What comes most often."""

    name: str
    title: str
    what: str
    unit: str
    rows: Rows
    note: str = ""


def render(**parts: Any) -> str:
    """Fill the template; every text is escaped by it."""
    from jinja2 import Environment

    environment = Environment(autoescape=True, trim_blocks=True)
    environment.filters["shown"] = shown
    template = resources("capfilt.report").joinpath("page.html").read_text(encoding="utf-8")
    return environment.from_string(template).render(version=__version__, **parts)


def shown(text: Any, most: int = 120) -> str:
    """A stranger's text as a page can hold it: on one line, no control characters, not endless."""
    raw = "(no text)" if text is None else str(text)
    line = " ".join(raw[: 2 * most].split()) or "(empty)"
    safe = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in line)
    return safe if len(safe) <= most else safe[: most - 1] + "\N{HORIZONTAL ELLIPSIS}"


def percent(part: float, whole: float = 1) -> str:
    """A share as a page shows it."""
    return f"{part / whole:.1%}".replace("%", " %") if whole else "-"


def by_source(figures: Figures) -> Rows:
    """Texts of each source by verdict."""
    rows: Rows = []
    for source in SOURCES:
        counts = [figures.tally.texts[source, verdict] for verdict in Verdict]
        if any(counts):
            share = figures.tally.kept_share(source)
            rows.append(
                (
                    str(source),
                    f"{sum(counts):,}",
                    *(f"{count:,}" for count in counts),
                    "-" if share is None else percent(share),
                )
            )
    return rows


def reasons(counts: Mapping[str, int], whole: int) -> Rows:
    """Counts by reason, the most frequent first."""
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return [(name.replace("_", " "), f"{n:,}", percent(n, whole)) for name, n in ordered]


def histogram(figures: Figures, name: ScoreName, threshold: float | None) -> Drawn:
    """How one score is distributed, by source."""
    scores = figures.scores[name]
    grid = scores.grid(BARS)
    places = scores.edges[grid]
    chart = Chart(f"hist-{name}", f"Texts by {TITLES[name]}", x=TITLES[name], y="texts")
    of_all = scores.between(grid)
    counts = {str(SOURCES[i]): c.tolist() for i, c in enumerate(of_all) if c.any()}
    chart.steps(places, counts)
    chart.between(places[0], places[-1])
    if threshold is not None and name == figures.by:
        chart.mark(threshold, f"threshold {threshold:g}")
    return Drawn(
        name=f"hist-{name}-table",
        title=f"Texts by {TITLES[name]}",
        note="Every text that was scored, kept or not; the first and the last step hold what lies "
        "beyond them, a thousandth at most.",
        svg=chart.svg(),
        head=["from", *counts],
        rows=[
            (f"{at:g}", *(f"{values[i]:,}" for values in counts.values()))
            for i, at in enumerate(places[:-1].tolist())
        ],
    )


def curve(figures: Figures, threshold: float | None) -> Drawn:
    """Which share a threshold would keep."""
    name, scores = TITLES[figures.by], figures.scores[figures.by]
    title = f"Kept as a function of the least {name}"
    chart = Chart("curve", title, x=f"least {name}", y="share kept")
    grid = scores.grid(PLACES)
    if threshold is not None:  # the table tells of it, where it is as round as the counts
        grid = sorted({*grid, *np.nonzero(scores.edges == threshold)[0].tolist()})
    x = scores.edges[grid]
    texts = scores.texts_from()
    values = {
        str(source): texts[i, grid] / texts[i, 0] for i, source in enumerate(SOURCES) if texts[i, 0]
    }
    chart.curves(x, values)
    chart.between(x[0], x[-1])
    if threshold is not None:
        chart.mark(threshold, f"threshold {threshold:g}")
    images = scores.images_from()[grid].tolist()
    rows = [
        (
            f"{at:g}{', the threshold' if at == threshold else ''}",
            *(f"{100 * share[i]:.1f} %" for share in values.values()),
            f"{images[i]:,}",
        )
        for i, at in enumerate(x.tolist())
    ]
    return Drawn(
        name="curve-table",
        title=title,
        note=f"Of the texts that have a {name}. capfilt select --dry-run counts other rules.",
        svg=chart.svg(),
        head=[f"least {name}", *values, "images with such a text"],
        rows=rows,
    )


def lengths(figures: Figures) -> Drawn:
    """How many words texts have."""
    title = "Words of a text"
    chart = Chart("lengths", title, x="words", y="texts")
    counts = {str(SOURCES[i]): c.tolist() for i, c in enumerate(figures.words) if c.any()}
    chart.steps(edges(-0.5, MOST_WORDS + 0.5, MOST_WORDS + 1), counts)
    chart.axes.xaxis.get_major_locator().set_params(integer=True)
    used = [i for i in range(MOST_WORDS + 1) if any(values[i] for values in counts.values())]
    if used:
        chart.between(used[0] - 0.5, used[-1] + 0.5)
    return Drawn(
        name="lengths-table",
        title=title,
        note=f"Separated by white space; longer texts count as {MOST_WORDS}.",
        svg=chart.svg(),
        head=["words", *counts],
        rows=[(str(i), *(f"{values[i]:,}" for values in counts.values())) for i in used],
    )


def repetition(figures: Figures) -> Rows:
    """How many texts repeat themselves or each other."""
    rows: Rows = []
    for source, wordings in sorted(figures.wordings.items()):
        code = SOURCES.index(source)
        whole = int(figures.words[code].sum())
        rows.append(
            (
                str(source),
                percent(int(figures.repeating[code]), whole),
                percent(wordings.different()),
                percent(wordings.shared()),
            )
        )
    return rows


def source_title(source: Source) -> str:
    """What texts of a source are called."""
    return {"web": "web texts", "synthetic": "synthetic captions", "human": "human captions"}[
        str(source)
    ]
