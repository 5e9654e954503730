"""Contact sheets: which images to show, and their pictures, in the manner of BLIP's Figure 4.

The choice is a function of the ledgers and a seed. A picture is read by itself, wherever it lies; a
sheet never costs more than its few pictures.
"""

from __future__ import annotations

import base64
import io
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from capfilt.config import IMAGE_FORMATS, ImageConfig
from capfilt.cut import CODES, REASONS, SOURCES, Mask, Rows, ScoreName
from capfilt.data.reader import read_numbers
from capfilt.errors import CapfiltError
from capfilt.io import files
from capfilt.io.ledger import read_ledger_columns
from capfilt.io.reader import read_samples
from capfilt.io.tar import tar_key
from capfilt.record import Reason, Sample, Source
from capfilt.select.origin import Origin
from capfilt.select.survey import each
from capfilt.shard import Form, InputShard

THUMBNAIL = 224  # pixels, of the longer side
_QUALITY = 60
_MOST_PIXELS = ImageConfig().max_pixels
_FOR_SCORE = (
    Reason.BELOW_MIN_MATCH_PROB,
    Reason.BELOW_MIN_SIMILARITY,
    Reason.BELOW_KEPT_FRACTION,
    Reason.NOT_IN_TOP_K,
)

Priorities = npt.NDArray[np.float64]  # per image; the lowest are shown, infinity never


@dataclass(frozen=True)
class Line:
    """A text under a picture."""

    source: Source
    text: str | None
    kept: bool
    match_prob: float | None
    similarity: float | None
    reason: str | None


@dataclass(frozen=True)
class Card:
    """A picture with its texts."""

    key: str
    picture: str | None  # a data URL
    lines: tuple[Line, ...]

    @property
    def caption(self) -> str:
        """What the picture shows, for who does not see it: as far as a kept text says so."""
        kept = (line.text for line in self.lines if line.kept and line.text)
        return next(kept, f"Picture {self.key}, no text kept")


@dataclass(frozen=True)
class Sheet:
    """Pictures that are shown together, and why."""

    name: str
    title: str
    cards: tuple[Card, ...]


def make_sheets(
    origin: Origin, by: ScoreName, threshold: float | None, *, count: int, seed: int = 0
) -> list[Sheet]:
    """Choose and draw the sheets; those without an image are left out.

    Raises:
        InputError: A ledger cannot be read. A picture that cannot is not shown.
    """
    rules = _rules(by, threshold, seed)
    chosen = _choose(origin, [rule for _, _, rule in rules], count)
    sheets = []
    for (name, title, _), places in zip(rules, chosen, strict=True):
        cards = tuple(_cards(origin, places))
        if cards:
            sheets.append(Sheet(name, title, cards))
    return sheets


Rule = Callable[[str, Rows], Priorities]


def _rules(by: ScoreName, threshold: float | None, seed: int) -> list[tuple[str, str, Rule]]:
    def chance(shard_id: str, rows: Rows) -> Priorities:
        number = zlib.crc32(f"{seed} {shard_id}".encode())
        return np.random.default_rng(number).random(rows.images)

    def random(shard_id: str, rows: Rows) -> Priorities:
        return np.where(_any(rows, ~rows.failed), chance(shard_id, rows), np.inf)

    def near(_: str, rows: Rows) -> Priorities:
        return _least(rows, ~rows.failed, np.abs(rows.score(by) - (threshold or 0.0)))

    def web_drops(_: str, rows: Rows) -> Priorities:
        mine = _rejected(rows) & (rows.source == SOURCES.index(Source.WEB))
        return _least(rows, mine, rows.score(by))

    def synthetic_drops(shard_id: str, rows: Rows) -> Priorities:
        mine = _rejected(rows) & (rows.source == SOURCES.index(Source.SYNTHETIC))
        return np.where(_any(rows, mine), chance(shard_id, rows), np.inf)

    rules: list[tuple[str, str, Rule]] = [
        ("random", "A random sample", random),
        ("near", "Nearest to the threshold", near),
        ("web-drops", "Web texts dropped with most confidence", web_drops),
        ("synthetic-drops", "Synthetic captions dropped", synthetic_drops),
    ]
    return [rule for rule in rules if rule[0] != "near" or threshold is not None]


def _rejected(rows: Rows) -> Mask:
    """Texts that were dropped for their score."""
    decided: Mask = np.isin(rows.reason, [CODES[reason] for reason in _FOR_SCORE])
    return decided & ~rows.failed


def _any(rows: Rows, texts: Mask) -> Mask:
    found = np.zeros(rows.images, dtype=bool)
    found[rows.image[texts]] = True
    return found


def _least(rows: Rows, texts: Mask, values: Priorities) -> Priorities:
    """Of each image the least value of some texts."""
    found = np.full(rows.images, np.inf)
    able = texts & ~np.isnan(values)
    np.minimum.at(found, rows.image[able], values[able])
    return found


def _choose(origin: Origin, rules: list[Rule], count: int) -> list[list[tuple[str, int]]]:
    """For each rule the images that come first: shards and numbers."""

    def of_shard(shard_id: str) -> list[list[tuple[float, str, int]]]:
        rows = origin.rows(shard_id)
        found = []
        for rule in rules:
            priority = rule(shard_id, rows)
            first = np.argsort(priority, kind="stable")[:count]
            found.append(
                [(float(priority[i]), shard_id, int(i)) for i in first if priority[i] < np.inf]
            )
        return found

    best: list[list[tuple[float, str, int]]] = [[] for _ in rules]
    for found in each(origin.commits, of_shard):
        best = [sorted(old + new)[:count] for old, new in zip(best, found, strict=True)]
    return [[(shard_id, number) for _, shard_id, number in of_rule] for of_rule in best]


def _cards(origin: Origin, places: list[tuple[str, int]]) -> Iterator[Card]:
    for shard_id, number in places:
        url = origin.ledger_url(shard_id)
        rows = origin.rows(shard_id)
        start, stop = np.searchsorted(rows.image, [number, number + 1]).tolist()
        table = read_ledger_columns(url, ["key", "text"]).slice(start, stop - start)
        keys, texts = table["key"].to_pylist(), table["text"].to_pylist()
        lines = tuple(
            Line(
                source=SOURCES[int(rows.source[row])],
                text=text,
                kept=bool(rows.open[row]),
                match_prob=_score(rows.match_prob[row]),
                similarity=_score(rows.similarity[row]),
                reason=None if rows.open[row] else str(REASONS[int(rows.reason[row])]),
            )
            for row, text in zip(range(start, stop), texts, strict=True)
        )
        yield Card(keys[0], _picture(origin, shard_id, number, keys[0]), lines)


def _picture(origin: Origin, shard_id: str, number: int, key: str) -> str | None:
    """A thumbnail as a data URL; None where the picture is not at hand."""
    try:
        sample = _sample(origin, shard_id, number)
    except (CapfiltError, OSError, ValueError):
        return None
    image = sample.image if sample is not None and sample.key in (key, tar_key(key)) else None
    return None if image is None else thumbnail(image)


def _sample(origin: Origin, shard_id: str, number: int) -> Sample | None:
    rows = origin.rows(shard_id)
    present = rows.with_kept()
    if present[number] and origin.output.images:
        return _nth(origin.shard(shard_id), int(present[:number].sum()))
    if origin.parent is not None:
        return _sample(origin.parent, shard_id, number)
    shard = origin.input_shard(shard_id)  # of which an older version showed other pictures
    # A reader by numbers does not count samples without an image.
    first = np.r_[True, rows.image[1:] != rows.image[:-1]]
    without = int((rows.reason[first][:number] == CODES[Reason.NO_IMAGE]).sum())
    return _nth(shard, number if shard.form is Form.FILES else number - without)


def _nth(shard: InputShard, number: int) -> Sample | None:
    if shard.form is Form.PAIRS or not files.exists(shard.url):
        return None
    if shard.form is Form.FILES:
        samples: Iterable[Sample] = read_samples(shard, ImageConfig())
        return next((sample for at, sample in enumerate(samples) if at == number), None)
    return read_numbers(shard, [number], metadata=True)[0]


def thumbnail(image: bytes) -> str | None:
    """A small JPEG of a picture as a data URL; None for what cannot be decoded safely."""
    from PIL import Image

    try:
        with Image.open(io.BytesIO(image), formats=IMAGE_FORMATS) as opened:
            if opened.width * opened.height > _MOST_PIXELS:
                return None
            opened.draft("RGB", (THUMBNAIL, THUMBNAIL))
            small = opened.convert("RGBA" if opened.has_transparency_data else "RGB")
    except Exception:  # noqa: BLE001 - decoders raise nearly every class on bad data
        return None
    small.thumbnail((THUMBNAIL, THUMBNAIL))
    if small.mode == "RGBA":
        white = Image.new("RGBA", small.size, "white")
        small = Image.alpha_composite(white, small).convert("RGB")
    encoded = io.BytesIO()
    small.save(encoded, "JPEG", quality=_QUALITY)
    return "data:image/jpeg;base64," + base64.b64encode(encoded.getvalue()).decode("ascii")


def _score(value: np.float32) -> float | None:
    return None if np.isnan(value) else float(value)
