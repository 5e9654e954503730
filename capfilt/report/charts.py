"""A report's charts: SVG from matplotlib, in colours of the page, so that light and dark both fit.

matplotlib draws in colours that no chart has; in the SVG they become the page's CSS variables.
"""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from capfilt.errors import ConfigError

_COLOURS = {
    "fg": "#010203",
    "muted": "#010204",
    "grid": "#010205",
    "web": "#010206",
    "synthetic": "#010207",
    "human": "#010208",
    "mark": "#010209",
}
_SIZE = (6.4, 2.9)  # inches; the page scales it
_DASHES = {"web": "-", "synthetic": "--", "human": ":"}  # colour is not the only difference


class Chart:
    """One chart; `svg` ends it."""

    def __init__(self, name: str, title: str, *, x: str, y: str) -> None:
        """Begin a chart.

        Args:
            name: Unique in the page.
            title: What a screen reader says of it.
            x: Label of the axis.
            y: Label of the axis.

        Raises:
            ConfigError: matplotlib is not installed.
        """
        self._name = name
        self._title = title
        self._matplotlib = load_matplotlib()
        with self._matplotlib.rc_context(_style(name)):
            from matplotlib.figure import Figure

            self._figure = Figure(figsize=_SIZE, layout="constrained")
            self.axes: Any = self._figure.subplots()
        self.axes.set_xlabel(x)
        self.axes.set_ylabel(y)
        self.axes.spines[["top", "right"]].set_visible(False)
        self.axes.grid(axis="y", color=_COLOURS["grid"], linewidth=0.6)
        self.axes.set_axisbelow(True)

    def steps(self, edges: npt.NDArray[Any], counts: Mapping[str, Sequence[int]]) -> None:
        """Histograms over the same edges, by source."""
        self.axes.yaxis.get_major_locator().set_params(integer=True)
        for source, values in counts.items():
            self.axes.stairs(
                values,
                edges,
                color=_COLOURS[source],
                linestyle=_DASHES[source],
                linewidth=1.6,
                label=source,
            )

    def curves(self, x: npt.NDArray[Any], values: Mapping[str, npt.NDArray[Any]]) -> None:
        """Lines over the same places, by source."""
        for source, y in values.items():
            style = {"color": _COLOURS[source], "linestyle": _DASHES[source]}
            self.axes.plot(x, y, linewidth=1.6, label=source, **style)
        self.axes.set_ylim(0, 1.02)

    def mark(self, x: float, label: str) -> None:
        """A vertical line."""
        low, high = self.axes.get_xlim()
        self.axes.set_xlim(min(low, x), max(high, x))
        self.axes.axvline(x, color=_COLOURS["mark"], linewidth=1.4, label=label)

    def between(self, low: float, high: float) -> None:
        """Show this part of the axis alone."""
        self.axes.set_xlim(low, high)

    def svg(self) -> str:
        """The chart as an `<svg>` element with a title."""
        out = io.StringIO()
        with self._matplotlib.rc_context(_style(self._name)):
            if len(self.axes.get_legend_handles_labels()[0]) > 1:
                above = {"loc": "lower right", "bbox_to_anchor": (1, 1), "borderaxespad": 0}
                self.axes.legend(frameon=False, fontsize="small", ncols=4, **above)
            self._figure.savefig(out, format="svg", transparent=True, metadata=_NO_METADATA)
        return _into_page(out.getvalue(), self._name, self._title)


_NO_METADATA: Mapping[str, None] = dict.fromkeys(("Date", "Creator", "Format", "Type"))


def edges(low: float, high: float, bins: int) -> npt.NDArray[np.float64]:
    """The edges of a histogram's bins."""
    return np.linspace(low, high, bins + 1)


def load_matplotlib() -> Any:
    """What draws the charts.

    Raises:
        ConfigError: It is not installed.
    """
    try:
        import matplotlib
    except ImportError as error:
        raise ConfigError(
            "the report's charts need matplotlib: pip install 'capfilt[plot]'"
        ) from error
    return matplotlib


def _style(name: str) -> dict[str, Any]:
    names = ("axes.labelcolor", "text.color")
    muted = ("axes.edgecolor", "xtick.color", "ytick.color")
    return {
        "svg.fonttype": "none",
        "svg.hashsalt": name,
        "font.family": "sans-serif",
        "font.size": 9,
        "axes.formatter.useoffset": False,
        **dict.fromkeys(names, _COLOURS["fg"]),
        **dict.fromkeys(muted, _COLOURS["muted"]),
    }


def _into_page(svg: str, name: str, title: str) -> str:
    svg = re.sub(r"<style.*?</style>", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    for variable, colour in _COLOURS.items():
        svg = svg.replace(colour, f"var(--{variable})")
    # Several charts share a page: their ids must differ.
    svg = re.sub(r'\bid="([^"]+)"', rf'id="{name}-\1"', svg)
    svg = re.sub(r'(url\(|href=")#', rf"\g<1>#{name}-", svg)
    role = f'role="img" aria-labelledby="{name}-title"'
    svg = re.sub(r'<svg [^>]*viewBox="([^"]+)"[^>]*>', rf'<svg viewBox="\1" {role}>', svg, count=1)
    return svg.replace(">", f'><title id="{name}-title">{title}</title>', 1)
