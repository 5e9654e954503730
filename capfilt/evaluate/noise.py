"""The noise ratio: which share of synthetic captions a filter rejects.

Source: BLIP, arXiv:2201.12086, section 4.2, Table 2: 25 % with nucleus sampling, 19 % with beams,
8 % where captioner and filter share their parameters (they agree too well).
"""

from __future__ import annotations

import json
import time
from collections import Counter
from dataclasses import asdict, dataclass
from typing import Any

from capfilt.config import ScoringConfig
from capfilt.errors import InputError
from capfilt.evaluate.captions import write_captions
from capfilt.evaluate.filter_quality import score_pairs
from capfilt.evaluate.pictures import Pictures, shown
from capfilt.io import files, outputs
from capfilt.io.commits import list_commits
from capfilt.io.ledger import read_ledger
from capfilt.models.captioner import Captioner
from capfilt.models.filter import Filter
from capfilt.record import Source, Verdict
from capfilt.text import normalise


@dataclass(frozen=True)
class Noise:
    """Of all texts of a source, how many fall below the threshold.

    `web` counts stand beside the synthetic ones where a run has judged web texts.
    """

    place: str
    threshold: float
    synthetic: int
    synthetic_rejected: int
    web: int
    web_rejected: int
    seconds: float

    @property
    def noise_ratio(self) -> float:
        """Share of synthetic captions that are rejected, in [0, 1]."""
        return self.synthetic_rejected / self.synthetic

    def to_dict(self) -> dict[str, Any]:
        """For `--json`."""
        return {"task": "noise", "noise_ratio": self.noise_ratio, **asdict(self)}


def is_run(url: str) -> bool:
    """Whether a folder is the OUTPUT of a `capfilt run`."""
    return files.exists(files.join(url, outputs.MANIFEST))


def noise_of_run(output_url: str, *, threshold: float | None = None) -> Noise:
    """Read the noise ratio off a run's ledgers, without a model.

    A text that was judged without a score (nothing was left of it) counts as rejected, as in
    `capfilt status`; texts of images that failed do not count.

    Args:
        output_url: OUTPUT of a `capfilt run`.
        threshold: Inclusive, on the match probability; None: the run's own.

    Raises:
        InputError: No synthetic caption has a match probability, or there is no threshold.
    """
    started = time.monotonic()
    if threshold is None:
        threshold = _threshold_of(output_url)
    commits = list_commits(output_url)
    judged: Counter[str] = Counter()
    rejected: Counter[str] = Counter()
    scored = 0
    for shard in shown(commits, "ledgers", len(commits)):
        for batch in read_ledger(files.join(output_url, outputs.ledger_path(shard))):
            for row in batch.select(["source", "verdict", "match_prob"]).to_pylist():
                if row["verdict"] == Verdict.FAILED:
                    continue
                match_prob = row["match_prob"]
                judged[row["source"]] += 1
                rejected[row["source"]] += match_prob is None or match_prob < threshold
                scored += row["source"] == Source.SYNTHETIC and match_prob is not None
    if not scored:
        raise InputError(
            f"{output_url}: no synthetic caption has a match probability; the noise ratio needs a "
            "run with captioner and filter and scoring.match_prob"
        )
    return Noise(
        place=output_url,
        threshold=threshold,
        synthetic=judged[Source.SYNTHETIC],
        synthetic_rejected=rejected[Source.SYNTHETIC],
        web=judged[Source.WEB],
        web_rejected=rejected[Source.WEB],
        seconds=round(time.monotonic() - started, 3),
    )


def noise_of_images(
    captioner: Captioner,
    filter_: Filter,
    scoring: ScoringConfig,
    pictures: Pictures,
    *,
    threshold: float,
    limit: int | None = None,
) -> Noise:
    """Caption the images of a folder, one caption each, and let the filter judge.

    Args:
        captioner: Its config says how it decodes.
        filter_: Gives match probabilities.
        scoring: The filter's config.
        pictures: The folder.
        threshold: Inclusive, on the match probability.
        limit: Take at most this many images, in the order of their names.

    Raises:
        InputError: There is no image, or one cannot be decoded.
    """
    started = time.monotonic()
    written = write_captions(captioner, pictures.names()[:limit], pictures)
    visible = {
        path: text
        for path, text in written.items()
        if normalise(text, max_words=scoring.max_words).strip()
    }
    scores = score_pairs(filter_, list(visible.items()), pictures)
    kept = sum(s.match_prob is not None and s.match_prob >= threshold for s in scores)
    return Noise(
        place=pictures.folder,
        threshold=threshold,
        synthetic=len(written),
        synthetic_rejected=len(written) - kept,
        web=0,
        web_rejected=0,
        seconds=round(time.monotonic() - started, 3),
    )


def _threshold_of(output_url: str) -> float:
    url = files.join(output_url, outputs.MANIFEST)
    try:
        config = json.loads(files.read_bytes(url))["config"]
        threshold = config["selection"]["min_match_prob"]
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{url}: not a manifest of capfilt ({error})") from error
    if threshold is None:
        raise InputError(f"{output_url}: the run had no threshold; say --threshold")
    return float(threshold)
