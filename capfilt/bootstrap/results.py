"""What came of the experiment: every figure's mean and spread over the seeds, and what to heed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from capfilt.bootstrap.config import ARMS, BootstrapConfig
from capfilt.bootstrap.figures import Figures, Values

# Table 1, best first; the controls have no place in it.
ORDER = ("both", "captioner", "filter", "raw")
# Whose differences the controls are for.
_CONTROLS = (("repeat", "raw"), ("continue", "both"), ("shared", "both"))
# Files of a captioner-and-filter pair: of the two, and of what they made of the web.
_PAIRS = _MODULES, _HARVEST = "modules-", "harvest-"
# Source: BLIP, arXiv:2201.12086, Tables 2 and 4.
PAPER_NOISE_RATIO, PAPER_SHARED_NOISE_RATIO = 0.25, 0.08


@dataclass(frozen=True)
class Spread:
    """A figure of all seeds that have it."""

    values: tuple[float, ...]

    @property
    def mean(self) -> float:
        return mean(self.values)

    @property
    def deviation(self) -> float | None:
        """Standard deviation (n - 1); None of a single seed."""
        return stdev(self.values) if len(self.values) > 1 else None

    def to_dict(self) -> dict[str, Any]:
        """For `--json`."""
        return {"mean": self.mean, "deviation": self.deviation, "values": list(self.values)}


Row = Mapping[str, Spread]


@dataclass(frozen=True)
class Results:
    """Rows by name: new models by arm, and captioner-and-filter pairs by what they began with."""

    seeds: tuple[int, ...]  # those of which there is anything
    arms: Mapping[str, Row]
    modules: Mapping[str, Row]
    differences: Mapping[str, Row]  # "both - raw" and so on, seed by seed
    warnings: tuple[str, ...]

    @classmethod
    def read(cls, out: Path, config: BootstrapConfig) -> Results:
        """Gather what has been measured so far of the arms and rounds that are wanted."""
        folders = {seed: out / f"seed-{seed}" / "figures" for seed in config.seeds}
        seeds = tuple(seed for seed, folder in folders.items() if any(folder.glob("*.json")))
        names = {path.stem for seed in seeds for path in folders[seed].glob("*.json")}
        pairs = {name[len(p) :] for name in names for p in _PAIRS if name.startswith(p)}
        arms = {
            name: [Figures.read(folders[seed] / f"{name}.json") for seed in seeds]
            for name in sorted(names, key=_place)
            if _is_wanted_arm(name, config)
        }
        modules = {
            name: [_of_pair(folders[seed], name) for seed in seeds]
            for name in sorted(pairs, key=_place)
            if _is_wanted_pair(name, config)
        }
        return cls(
            seeds=seeds,
            arms={name: _row(rows) for name, rows in arms.items()},
            modules={name: _row(rows) for name, rows in modules.items()},
            differences=_differences(arms),
            warnings=tuple(_warnings(modules)),
        )

    def to_dict(self) -> dict[str, Any]:
        """For `--json`."""
        tables = {
            name: {
                row: {figure: spread.to_dict() for figure, spread in figures.items()}
                for row, figures in getattr(self, name).items()
            }
            for name in ("arms", "modules", "differences")
        }
        return {"seeds": list(self.seeds), **tables, "warnings": list(self.warnings)}


def _is_wanted_arm(name: str, config: BootstrapConfig) -> bool:
    """Others may be there from before, measured in another way."""
    arm, _, number = name.partition("-")
    return arm in config.arms and int(number or 1) <= config.rounds


def _is_wanted_pair(name: str, config: BootstrapConfig) -> bool:
    return int(name) <= config.rounds if name.isdigit() else name in config.arms


def _of_pair(folder: Path, name: str) -> Values:
    """A captioner's and a filter's figures, and those of what they made of the web."""
    return Figures.read(folder / f"{_MODULES}{name}.json") | Figures.read(
        folder / f"{_HARVEST}{name}.json"
    )


def _place(name: str) -> tuple[int, str]:
    order = [str(arm) for arm in ARMS]
    return (order.index(name) if name in order else len(order), name)


def _row(of_seeds: Sequence[Mapping[str, float]]) -> Row:
    names = dict.fromkeys(name for figures in of_seeds for name in figures)
    return {
        name: Spread(tuple(figures[name] for figures in of_seeds if name in figures))
        for name in names
    }


def _differences(arms: Mapping[str, Sequence[Mapping[str, float]]]) -> dict[str, Row]:
    """Of neighbours in Table 1's order, of its ends, of controls and rounds, seed by seed."""
    found = {}
    rounds = pairwise([ORDER[0], *(name for name in arms if name.startswith(f"{ORDER[0]}-"))])
    for better, worse in (
        *pairwise(ORDER), (ORDER[0], ORDER[-1]), *_CONTROLS, *((b, a) for a, b in rounds)
    ):  # fmt: skip
        if better in arms and worse in arms:
            rows = [
                {name: a[name] - b[name] for name in a if name in b}
                for a, b in zip(arms[better], arms[worse], strict=True)
            ]
            found[f"{better} - {worse}"] = _row(rows)
    return found


def _warnings(modules: Mapping[str, Sequence[Mapping[str, float]]]) -> list[str]:
    """Rounds whose noise ratio falls as the paper's does where captioner and filter share weights.

    More than half that way, relative to the first round of the same seeds, is worth a word.
    """
    share = (PAPER_NOISE_RATIO + PAPER_SHARED_NOISE_RATIO) / 2 / PAPER_NOISE_RATIO
    found = []
    for name in modules.keys() - {"1", "shared"}:
        pairs = [
            (first["noise_ratio"], later["noise_ratio"])
            for first, later in zip(modules.get("1", ()), modules[name], strict=False)
            if "noise_ratio" in first and "noise_ratio" in later
        ]
        if not pairs:
            continue
        before, after = (mean(ratios) for ratios in zip(*pairs, strict=True))
        if after < share * before:
            found.append(
                f"round {name}: the noise ratio fell from {before:.1%} to {after:.1%}. In "
                f"the paper {PAPER_NOISE_RATIO:.0%} fall to {PAPER_SHARED_NOISE_RATIO:.0%} where "
                "captioner and filter share weights, a sign that the filter confirms what the "
                "captioner gets wrong: look at the captions, or stop at the round before"
            )
    return sorted(found)
