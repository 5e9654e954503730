"""`capfilt report`: one HTML file that says what a run did, and helps to choose a threshold."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from capfilt.config import PRESETS, resolve
from capfilt.cut import ScoreName
from capfilt.errors import ConfigError
from capfilt.io import files, publish
from capfilt.record import Source, Verdict
from capfilt.report import page
from capfilt.report.charts import load_matplotlib
from capfilt.report.figures import Figures, figures_of, frequent_phrases, texts_of
from capfilt.report.page import Ranking, Rows, percent
from capfilt.report.sheets import make_sheets
from capfilt.report.speed import Speed, speed_of
from capfilt.run.manifest import Manifest
from capfilt.schema import to_dict
from capfilt.select.missing import warn_of_missing
from capfilt.select.origin import CUT_OF, Origin

FILE = "report.html"
FREQUENT = 15  # captions and phrases of each kind
PHRASES = (2, 4)  # words
MOST_SAMPLES = 50  # of a sheet; four sheets of pictures of up to 20 kB: 4 MB


@dataclass(frozen=True)
class Report:
    """Where it lies, and its figures."""

    url: str
    size_bytes: int
    figures: Figures
    pictures: int

    def to_dict(self) -> dict[str, Any]:
        """For `--json`."""
        return {
            "report": self.url,
            "size_bytes": self.size_bytes,
            "pictures": self.pictures,
            **self.figures.tally.to_dict(),
        }


def report(
    output_url: str,
    *,
    target: str | None = None,
    price_per_hour: float | None = None,
    samples: int = 12,
) -> Report:
    """Write the report of an OUTPUT, of a run or of a cut.

    Args:
        output_url: The OUTPUT.
        target: Where the page goes; None: `report.html` in OUTPUT.
        price_per_hour: Of one GPU, or of one machine without; for the price of a million images.
        samples: Pictures of each contact sheet.

    Raises:
        ConfigError, InputError, CommitError: One line: what, where, what to do.
    """
    if not 0 <= samples <= MOST_SAMPLES:
        raise ConfigError(f"--samples must be 0 to {MOST_SAMPLES}, is {samples}")
    if price_per_hour is not None and not 0 <= price_per_hour < math.inf:
        raise ConfigError(f"--gpu-hour-price must be 0 or more, is {price_per_hour:g}")
    load_matplotlib()  # before anything is counted
    origin = Origin.open(output_url)
    warn_of_missing(origin)
    by, threshold = _rule(origin.manifest)
    figures = figures_of(origin, by)
    speed = speed_of(origin.commits)
    sheets = make_sheets(origin, by, threshold, count=samples) if samples else []
    charts = [page.histogram(figures, name, threshold) for name in figures.scores]
    if by in figures.scores:
        charts.append(page.curve(figures, threshold))
    tally = figures.tally
    html = page.render(
        output=origin.url,
        tiles=_tiles(figures, speed, is_noise=origin.manifest.measures_noise),
        facts=_facts(origin, speed, price_per_hour),
        by_source=page.by_source(figures),
        noise=_noise(figures, is_noise=origin.manifest.measures_noise),
        dropped=page.reasons(tally.dropped_texts, sum(tally.texts.values())),
        dropped_images=page.reasons(tally.dropped_samples, tally.read),
        failed=page.reasons(tally.failed_samples, tally.read),
        charts=charts,
        lengths=page.lengths(figures),
        repetition=page.repetition(figures),
        sampled=_sampled(figures),
        frequent=_frequent(origin, figures),
        sheets=sheets,
    )
    url = target or files.join(origin.url, FILE)
    published = publish.write_bytes(files.absolute(url), html.encode("utf-8", "replace"))
    pictures = sum(card.picture is not None for sheet in sheets for card in sheet.cards)
    return Report(published.url, published.size_bytes, figures, pictures)


def _rule(manifest: Manifest) -> tuple[ScoreName, float | None]:
    """The score that decides, and its threshold."""
    selection, scoring = manifest.config["selection"], manifest.config["scoring"]
    if selection.get("min_match_prob") is not None:
        return "match_prob", float(selection["min_match_prob"])
    if selection.get("min_similarity") is not None:
        return "similarity", float(selection["min_similarity"])
    if selection.get("kept_from") is not None:  # what a kept fraction came to
        return selection["by"], float(selection["kept_from"])
    return ("similarity" if scoring["similarity"] else "match_prob"), None


def _tiles(figures: Figures, speed: Speed | None, *, is_noise: bool) -> list[dict[str, str]]:
    tally = figures.tally
    kept = sum(n for (_, verdict), n in tally.texts.items() if verdict is Verdict.KEPT)
    tiles = [
        ("images", "images read", f"{tally.read:,}"),
        ("images-kept", "images kept", f"{tally.samples[Verdict.KEPT]:,}"),
        ("texts", "texts", f"{sum(tally.texts.values()):,}"),
        ("texts-kept", "texts kept", f"{kept:,}"),
    ]
    if is_noise and tally.noise_ratio is not None:
        tiles.append(("noise-ratio", "noise ratio", percent(tally.noise_ratio)))
    if speed is not None:
        tiles.append(("speed", "images/s of one machine", f"{speed.images_per_s:,.1f}"))
    return [dict(zip(("name", "label", "value"), tile, strict=True)) for tile in tiles]


def _facts(origin: Origin, speed: Speed | None, price: float | None) -> list[tuple[str, str]]:
    manifest = origin.manifest
    config = manifest.config
    facts = [("input", manifest.input)]
    if CUT_OF in manifest.decisive:
        facts.append(("made by", "select, from that input's ledgers"))
    for role in ("captioner", "filter"):
        model = manifest.models.get(role)
        name = "none"
        if model is not None:
            name = f"{model['source']} ({model['architecture']}, sha256 {model['sha256'][:12]})"
        facts.append((role, name))
    facts += [
        ("preset", preset_of(config)),
        ("captions", _captions(manifest)),
        ("selection", _told(manifest.rules()) or "every text is kept"),
        ("seed", str(config["seed"])),
        ("version", f"capfilt {manifest.versions['capfilt']}, torch {manifest.versions['torch']}"),
        ("fingerprint", manifest.fingerprint),
        ("shards", f"{len(origin.commits):,}"),
    ]
    if speed is not None:
        facts += _speed_facts(speed, price)
    return facts


def _speed_facts(speed: Speed, price: float | None) -> list[tuple[str, str]]:
    facts = [
        ("machines", f"{speed.machines} ({', '.join(speed.kinds)})"),
        (f"{speed.unit} hours", f"{speed.busy_s / 3600:,.2f}"),
        ("images/s of one machine", f"{speed.images_per_s:,.1f}"),
    ]
    if price is not None:
        cost = speed.price_per_million(price)
        facts.append(("price of a million images", f"{cost:,.2f} at {price:g} an hour"))
    return facts


def preset_of(config: Mapping[str, Any]) -> str:
    """The preset whose values a run's config has in all that decides about texts."""
    sections = ("captions", "scoring", "selection")
    roles = {role: config[role] for role in ("captioner", "filter")}
    for name in PRESETS:
        wanted = to_dict(resolve(preset=name, options=roles))
        if all(config[section] == wanted[section] for section in sections):
            return name
    return "of its own"


def _captions(manifest: Manifest) -> str:
    if "captioner" not in manifest.models:
        return "none made"
    return _told(manifest.config["captions"], "per_image", "method", "top_p", "prompt")


def _told(section: dict[str, Any], *names: str) -> str:
    told = {name: section.get(name) for name in names or section}
    return ", ".join(f"{name} {value!r}" for name, value in told.items() if value is not None)


def _noise(figures: Figures, *, is_noise: bool) -> Rows:
    ratio = figures.tally.noise_ratio if is_noise else None
    return [("this run", "-" if ratio is None else percent(ratio)), *page.PAPER]


def _sampled(figures: Figures) -> str:
    least = min((wordings.share for wordings in figures.wordings.values()), default=1.0)
    return f" They are of one text in {1 / least:,.0f}." if least < 1 else ""


def _frequent(origin: Origin, figures: Figures) -> list[Ranking]:
    best = {s: figures.wordings[s].most_frequent(FREQUENT) for s in sorted(figures.wordings)}
    texts = texts_of(origin, {key for counts in best.values() for key in counts})
    found = []
    for source, counts in best.items():
        title = page.source_title(source)
        rows = sorted(((texts[key], n) for key, n in counts.items()), key=lambda r: (-r[1], r[0]))
        rows = rows[:FREQUENT]
        shown: Rows = [(text, f"{count:,}") for text, count in rows]
        found.append(
            Ranking(f"frequent-{source}", f"Most frequent {title}", "text", "images", shown)
        )
    if Source.SYNTHETIC in figures.wordings:
        found += [_phrases(figures, n) for n in PHRASES]
    return found


def _phrases(figures: Figures, n: int) -> Ranking:
    counts = frequent_phrases(figures.captions, n)
    best = sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:FREQUENT]
    return Ranking(
        f"phrases-{n}",
        f"Most frequent runs of {n} words in synthetic captions",
        "words",
        "captions",
        [(phrase, f"{count:,}") for phrase, count in best if count > 1],
        f"In a sample of {len(figures.captions):,} captions.",
    )
