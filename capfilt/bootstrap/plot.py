"""The results as a picture: a panel for each figure, a dot for each seed of each arm."""

from __future__ import annotations

import io
import logging
from pathlib import Path
from typing import Any

from capfilt.bootstrap.page import TITLES
from capfilt.bootstrap.results import ORDER, Results, Row
from capfilt.io.publish import write_bytes

log = logging.getLogger("capfilt")

_PANELS = ("tr_r1", "ir_r1", "captions_true", "finetuned_captions_true", "cider", "finetuned_cider")
_MOST = 4  # panels
_MAIN, _CONTROL, _DOT = "#2a6f97", "#8d99ae", "#1b1b1e"


def plot(results: Results, path: Path) -> None:
    """Write an SVG, of the same bytes for the same results; without matplotlib, say so."""
    try:
        from matplotlib import rc_context
        from matplotlib.figure import Figure
        from matplotlib.layout_engine import ConstrainedLayoutEngine
    except ImportError:
        log.warning("%s: needs another package: pip install 'capfilt[plot]'", path)
        return
    rows = {name: results.arms[name] for name in _sorted(results)}
    panels = [key for key in _PANELS if any(key in row for row in rows.values())][:_MOST]
    if not panels:
        return
    settings = {"svg.hashsalt": "capfilt", "svg.fonttype": "none", "font.family": "sans-serif"}
    layout = ConstrainedLayoutEngine(wspace=0.06)
    with rc_context(settings):
        figure = Figure(figsize=(3.1 * len(panels), 0.42 * len(rows) + 1.3), layout=layout)
        figure.supxlabel("mean and standard deviation; a dot for each seed", fontsize=9)
        axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
        for axis, key in zip(axes, panels, strict=True):
            _draw(axis, rows, key)
        content = io.BytesIO()
        figure.savefig(content, format="svg", metadata={"Date": None})
    write_bytes(str(path), content.getvalue())


def _sorted(results: Results) -> list[str]:
    """The paper's arms from best to worst, then the controls."""
    main = [name for name in ORDER if name in results.arms]
    return [*main, *(name for name in results.arms if name not in ORDER)]


def _draw(axis: Any, rows: dict[str, Row], key: str) -> None:
    for place, (name, row) in enumerate(rows.items()):
        if key not in row:
            continue
        spread = row[key]
        colour = _MAIN if name in ORDER else _CONTROL
        values = [100 * value for value in spread.values]
        error = 100 * (spread.deviation or 0.0)
        axis.errorbar(
            100 * spread.mean, place, xerr=error, fmt="D", ms=7, color=colour, capsize=4, lw=1.6
        )
        axis.plot(values, [place] * len(values), "o", ms=3, color=_DOT, alpha=0.7, zorder=3)
    axis.set_yticks(range(len(rows)), list(rows))
    axis.set_ylim(len(rows) - 0.5, -0.5)
    axis.set_title(f"{TITLES[key]}, %", fontsize=10, loc="left")
    axis.grid(axis="x", color="#e3e6ea", lw=0.8)
    axis.set_axisbelow(True)
    for side in ("top", "right", "left"):
        axis.spines[side].set_visible(False)
    axis.tick_params(axis="y", length=0)
